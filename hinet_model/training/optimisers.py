"""Optimisers of a run: of the dense parameters and of the embedding table, which step, follow a schedule and are saved
as one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hinet_model.config import OptimiserSettings
from hinet_model.models.model import ScenarioModel
from hinet_model.training.table_optimisers import build_table_optimiser


class RunOptimisers:
    """Steps the dense parameters and the embedding table together.

    Args:
        model: The model, on its device.
        settings: Section ``optimiser`` of the run's settings.
        total_steps: Steps of the whole run, which a falling schedule is stretched over.
    """

    def __init__(self, model: ScenarioModel, settings: OptimiserSettings, total_steps: int) -> None:
        self._settings, self._total_steps = settings, total_steps
        self.dense = build_dense_optimiser(settings, model.dense_parameters())
        self.table = build_table_optimiser(settings, model.embedding.weight)
        self._table_rate = self.table.learning_rate

    def step(self, ids: Tensor, row_gradients: Tensor, global_step: int) -> None:
        """Take one step; the dense gradients are in place, those of the table's rows are given.

        Args:
            ids: Distinct rows of the table that the global batch touches. ``(U,)``
            row_gradients: Their summed gradients. ``(U, D)``
            global_step: 1 is the first.
        """
        factor = rate_factor(self._settings, global_step, self._total_steps)
        for group in self.dense.param_groups:
            group["lr"] = self._settings.learning_rate * factor
        self.table.learning_rate = self._table_rate * factor
        self.dense.step()
        self.table.step(ids, row_gradients, global_step)

    def flush_decay(self) -> None:
        """Apply the decay that is pending on rows, before the model is validated or averaged."""
        self.table.decay.flush()

    def state_dict(self) -> dict[str, Any]:
        """Both optimisers' states; rates are not among them, they follow from the global step."""
        return {"dense": self.dense.state_dict(), "table": self.table.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.dense.load_state_dict(state["dense"])
        self.table.load_state_dict(state["table"])


def build_dense_optimiser(
    settings: OptimiserSettings, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Adam (AdamW where decay is asked for) with the fused kernel, on CPU and GPU alike."""
    kind = torch.optim.AdamW if settings.weight_decay else torch.optim.Adam
    return kind(
        list(parameters),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def rate_factor(settings: OptimiserSettings, step: int, total_steps: int) -> float:
    """Share of the full learning rate at a step: warm-up, then the schedule.

    Args:
        settings: Schedule, warm-up steps and the share it ends at.
        step: Global step, 1 is the first.
        total_steps: Steps of the whole run.

    Returns:
        A factor in (0, 1] for both rates (0 at the very end of a schedule that ends there).
    """
    if step <= settings.warmup_steps:
        return step / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    done = (step - settings.warmup_steps) / max(total_steps - settings.warmup_steps, 1)
    done = min(done, 1.0)
    left = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return settings.final_rate + (1 - settings.final_rate) * left
