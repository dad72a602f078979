"""Optimisation: the two optimisers of a run as one thing that steps, follows a schedule and is saved."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hinet_model.config import OptimiserSettings
from hinet_model.models.model import ScenarioModel
from hinet_model.training.optimisers import build_dense_optimiser, build_table_optimiser, rate_factor


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

    def settle(self) -> None:
        """Make the whole table current, as it is read when the model is validated, saved or scored."""
        self.table.catch_up_all()

    def state_dict(self) -> dict[str, Any]:
        """Both optimisers' states; rates are not among them, they follow from the global step."""
        return {"dense": self.dense.state_dict(), "table": self.table.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.dense.load_state_dict(state["dense"])
        self.table.load_state_dict(state["table"])
