"""Loop: one optimiser step, and one prediction; the same code on any world.

A step: fetch the batch's distinct embedding rows as a leaf, forward, loss as this rank's share of the global
batch, backward (buckets of dense gradients leave as they fill), bring the rows' gradients to those who train them,
wait, step both optimisers. Every rank takes every planned step, with an empty batch if that is its part.

Randomness inside a step (dropout) is seeded by (seed, global step, rank), so a run that goes on from a
checkpoint draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hinet_model.data.batch import Batch
from hinet_model.models.model import ScenarioModel
from hinet_model.objective.balance import TaskBalance
from hinet_model.objective.losses import MultiTaskLoss
from hinet_model.training.control.reports import Reporter
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.dist.dense_exchange import GradientExchange
from hinet_model.training.dist.table_exchange import TableExchange
from hinet_model.training.dist.world import World
from hinet_model.training.optimisers import RunOptimisers
from hinet_model.training.statistics import StepMeasures, StepStatistics, Wishes


@dataclass(frozen=True)
class StepParts:
    """What takes part in a step; `hinet_model.training.assemble` makes it.

    Args:
        world: The workers.
        model: The model, on the world's device.
        loss: The weighted loss.
        balance: Task weights that move.
        optimisers: Of the dense parameters and of the embedding table.
        statistics: What a step measures.
        exchange: Brings the workers' dense gradients and statistics together.
        table: Brings rows of the embedding table to batches, and their gradients back.
    """

    world: World
    model: ScenarioModel
    loss: MultiTaskLoss
    balance: TaskBalance
    optimisers: RunOptimisers
    statistics: StepStatistics
    exchange: GradientExchange
    table: TableExchange


@dataclass(frozen=True)
class StepOptions:
    """How a step is taken.

    Args:
        seed: Seeds dropout, with the step and the rank.
        precision: Of the forward pass.
        clip_norm: Largest norm of the dense gradient, None for no limit.
    """

    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    clip_norm: float | None = None


class Trainer:
    """Takes steps.

    Args:
        parts: What takes part.
        options: How.
        reporter: Asked whether to stop.
        progress: Where this worker is, for heartbeat and watchdog.

    Attributes:
        wishes: What this worker tells all others with the next step; whether to stop the reporter knows.
    """

    def __init__(
        self, parts: StepParts, options: StepOptions, reporter: Reporter, progress: Progress
    ) -> None:
        self.parts, self.options = parts, options
        self.reporter, self.progress = reporter, progress
        self.wishes = Wishes()
        self._device = parts.world.device

    def step(self, batch: Batch, global_step: int) -> StepMeasures:
        """Take one step.

        Args:
            batch: This rank's part of the global batch.
            global_step: Steps taken before this one.
        """
        parts = self.parts
        self.progress.enter("compute")
        # Seeded per step: resuming needs no generator state, and ranks drop different units.
        torch.manual_seed(hash((self.options.seed, global_step, parts.world.rank)) & (2**63 - 1))
        batch = self._moved(batch)
        rows = parts.table.fetch(batch.unique_ids)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.options.precision == "bf16"):
            logits = parts.model(batch, rows)
        loss = None
        if parts.balance.per_task:
            ids, gradients, loss = self._exchange_per_task(logits.float(), rows, batch, global_step)
            vector = parts.exchange.statistics.double().cpu()
        else:
            factors = self._as_tensor(parts.balance.factors)
            ids, gradients = self._exchange(logits.float(), rows, batch, factors)
            vector = parts.exchange.statistics.double().cpu()
            parts.balance.after_step(self._task_losses(vector))
        parts.statistics.update_norms(vector)
        self.progress.enter("update")
        if self.options.clip_norm is not None:
            parts.exchange.clip_norm(self.options.clip_norm)
        parts.optimisers.step(ids, gradients, global_step + 1)
        return parts.statistics.measures(vector, loss)

    def _exchange(
        self,
        logits: Tensor,
        rows: Tensor,
        batch: Batch,
        factors: Tensor | None,
        keep_graph: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Backward pass and exchange; returns rows of this rank's table and their global gradients."""
        parts = self.parts
        parts.exchange.start_step()
        rows.grad = None
        loss, cells_MN = parts.loss(logits, batch, factors)
        loss.backward(retain_graph=keep_graph)
        vector = parts.exchange.statistics
        wishes = replace(self.wishes, stop=self.reporter.stop_requested)
        parts.statistics.write(vector, batch, loss, cells_MN, wishes)
        if not keep_graph:
            parts.statistics.write_moments(vector)
        self.progress.enter("exchange")
        gradients = rows.grad if rows.grad is not None else torch.zeros_like(rows)
        ids, gradients = parts.table.collect(batch.unique_ids, gradients)
        parts.exchange.finish()
        return ids, gradients

    def _exchange_per_task(
        self, logits: Tensor, rows: Tensor, batch: Batch, global_step: int
    ) -> tuple[Tensor, Tensor, float]:
        """One backward pass and exchange per task; the balance makes one gradient of the global ones.

        Returns:
            Rows of this rank's table, their global gradients, and the loss that all tasks make together.
        """
        parts = self.parts
        num_tasks = parts.statistics.num_tasks
        gradients: list[Tensor] = []
        losses: list[float] = []
        for task in range(num_tasks):
            only = self._as_tensor([float(other == task) for other in range(num_tasks)])
            last = task + 1 == num_tasks
            ids, row_gradients = self._exchange(logits, rows, batch, only, keep_graph=not last)
            losses.append(parts.statistics.loss_of(parts.exchange.statistics))
            gradients.append(torch.cat([parts.exchange.dense_gradient(), row_gradients.flatten()]))
        task_losses = torch.tensor(losses, dtype=torch.float64)
        weights = torch.tensor(parts.balance.factors or [1.0] * num_tasks, dtype=torch.float64)
        # What a task's labels cost on average, however many of the rows have one.
        labels = parts.statistics.label_sums(parts.exchange.statistics).sum(dim=0).double().cpu()
        rows_per_label = parts.statistics.rows(parts.exchange.statistics) / labels
        means = torch.where(labels > 0, task_losses * rows_per_label, 0.0)
        combined = parts.balance.combine(torch.stack(gradients), means, global_step)
        num_dense = combined.numel() - row_gradients.numel()
        parts.exchange.set_dense_gradient(combined[:num_dense])
        return ids, combined[num_dense:].view_as(row_gradients), float((weights * task_losses).sum())

    @torch.no_grad()  # inference mode would hand Horovod tensors that its own thread may not touch
    def predict(self, batch: Batch) -> Tensor:
        """Probabilities of this rank's part of a batch, ``(B, N)`` float32; the model is in evaluation mode."""
        self.progress.enter("validate")
        batch = self._moved(batch)
        logits = self.parts.model(batch, self.parts.table.look_up(batch.unique_ids))
        return torch.sigmoid(logits.float())

    def _moved(self, batch: Batch) -> Batch:
        return batch.to(self._device, non_blocking=True) if self._device.type == "cuda" else batch

    def _task_losses(self, vector: Tensor) -> Tensor:
        statistics = self.parts.statistics
        return self.parts.loss.task_losses(
            statistics.cell_sums(vector), statistics.label_sums(vector).sum(dim=0)
        )

    def _as_tensor(self, factors: Sequence[float] | None) -> Tensor | None:
        return None if factors is None else torch.tensor(factors, device=self._device)
