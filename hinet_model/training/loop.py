"""Loop: one optimiser step after the other, and a validation pass; the same code on any world.

A step: fetch the batch's distinct embedding rows as a leaf, forward, loss as this rank's share of the global
batch, backward (buckets of dense gradients leave as they fill), bring the rows' gradients to those who train them,
wait, step both optimisers. Every rank takes every planned step, with an empty batch if that is its part.

Randomness inside a step (dropout) is seeded by (seed, global step, rank), so a run that goes on from a
checkpoint draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hinet_model.config import TrainingSettings
from hinet_model.data.batch import Batch, BatchLayout
from hinet_model.data.plan import EpochPlan
from hinet_model.models.model import ScenarioModel
from hinet_model.nn.normalisation import ScenarioNorm
from hinet_model.objective.balance import TaskBalance, Unmoved
from hinet_model.objective.losses import MultiTaskLoss
from hinet_model.training.control.reports import Reporter
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.dist.dense_exchange import GradientExchange
from hinet_model.training.dist.table_exchange import build_table_exchange
from hinet_model.training.dist.world import World
from hinet_model.training.optimisation import RunOptimisers

_LOSS, _STOP, _ROWS, _CELLS = 0, 1, 2, 3
"""Places in a step's statistics: loss, ranks that wish to stop, rows, then one loss sum per cell."""


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; says at which step."""


class AfterStep(Protocol):
    """Called on every rank after each step, for tests and instruments that look into a run."""

    def __call__(self, trainer: Trainer, batch: Batch, loss: float) -> None: ...


@dataclass
class EpochSummary:
    """What one epoch of training measured, over all ranks unless said otherwise.

    Args:
        rows: Rows that entered the loss.
        losses: Loss of each step.
        cell_losses: Mean cross-entropy of each scenario x task; NaN for a scenario without rows. ``(M, N)``
        seconds: Wall time on this rank.
        wait_seconds: Of these, how long this rank's training waited for the loader.
        stopped_at: Step to go on with if the run was asked to stop, else None.
    """

    rows: int = 0
    losses: list[float] = field(default_factory=list)
    cell_losses: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # type: ignore[type-arg]
    seconds: float = 0.0
    wait_seconds: float = 0.0
    stopped_at: int | None = None


@dataclass
class Scores:
    """Predictions of a whole split, from all ranks, in no particular order.

    Shape:
        scenario_index: ``(R,)`` int64 · labels, probs: ``(R, N)`` float32
    """

    scenario_index: np.ndarray  # type: ignore[type-arg]
    labels: np.ndarray  # type: ignore[type-arg]
    probs: np.ndarray  # type: ignore[type-arg]


class Trainer:
    """Takes the steps of a run.

    Args:
        settings: Section ``training`` of the run's settings.
        model: The model, on the world's device.
        layout: Its scenarios and tasks.
        loss: The weighted loss.
        optimisers: Of the dense parameters and of the embedding table.
        clip_norm: Largest norm of the dense gradient, None for no limit.
        world: The workers.
        reporter: Told about progress; asked whether to stop.
        progress: Where this worker is, for heartbeat and watchdog.
        after_step: Looks into the run after each step.
        balance: Task weights that move; none do if not given.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        model: ScenarioModel,
        layout: BatchLayout,
        loss: MultiTaskLoss,
        optimisers: RunOptimisers,
        clip_norm: float | None,
        world: World,
        reporter: Reporter,
        progress: Progress,
        after_step: AfterStep | None = None,
        balance: TaskBalance | None = None,
    ) -> None:
        self.settings, self.model, self.loss, self.world = settings, model, loss, world
        self.optimisers = optimisers
        self.global_step = 0
        self._clip_norm = clip_norm
        self._reporter, self._progress, self._after_step = reporter, progress, after_step
        self._num_scenarios, self._num_tasks = layout.num_scenarios, layout.num_tasks
        self.balance: TaskBalance = Unmoved() if balance is None else balance
        self._norms = [part for part in model.modules() if isinstance(part, ScenarioNorm)]
        self._num_reported = _CELLS + self._num_scenarios * self._num_tasks + self._num_scenarios
        self.exchange = GradientExchange(
            model.dense_parameters(),
            world,
            num_statistics=self._num_reported + sum(norm.num_statistics for norm in self._norms),
        )
        assert settings.table == "replicated" or not self.balance.per_task
        self._table = build_table_exchange(
            settings.table, model.embedding, optimisers.table, self.exchange, world, progress
        )
        self._pinned = world.device.type == "cuda"

    def train_epoch(self, plan: EpochPlan, batches: Iterator[Batch], start_step: int = 0) -> EpochSummary:
        """Take the steps ``start_step ..`` of a plan.

        Args:
            plan: The epoch's plan.
            batches: This rank's part of each of these steps.

        Raises:
            NonFiniteLossError: The loss is not a number any more.
        """
        self.model.train()
        summary = EpochSummary()
        statistics = torch.zeros(self._num_reported, dtype=torch.float64)
        losses: list[Tensor] = []
        started = last_report = time.perf_counter()
        reported_rows = 0
        limit = self.settings.max_steps
        for step in range(start_step, plan.num_steps):
            self._progress.epoch, self._progress.step = plan.epoch, step
            self._progress.enter("first batch" if step == start_step else "data")
            before = time.perf_counter()
            batch = next(batches)
            summary.wait_seconds += time.perf_counter() - before
            stats = self._step(batch)
            statistics += stats
            losses.append(stats[_LOSS])
            if self._after_step is not None:
                self._after_step(self, batch, float(stats[_LOSS]))
            last = step + 1 == plan.num_steps or (limit is not None and self.global_step >= limit)
            if last or self.global_step % self.settings.log_every_steps == 0:
                recent = torch.stack(losses[-self.settings.log_every_steps :])
                self._check_finite(recent, plan.epoch, step)
                now, rows = time.perf_counter(), int(statistics[_ROWS])
                if self.world.rank == 0:
                    self._reporter.send(
                        "progress",
                        epoch=plan.epoch,
                        step=step + 1,
                        steps=plan.num_steps,
                        rows=rows,
                        rows_per_second=(rows - reported_rows) / max(now - last_report, 1e-9),
                        loss=float(recent.mean()),
                    )
                last_report, reported_rows = now, rows
                if bool(stats[_STOP] > 0) or (limit is not None and self.global_step >= limit):
                    summary.stopped_at = step + 1
                    break
        summary.seconds = time.perf_counter() - started
        summary.rows = int(statistics[_ROWS])
        summary.losses = torch.stack(losses).tolist() if losses else []
        summary.cell_losses = self._cell_means(statistics)
        if summary.stopped_at is None:
            self.balance.after_epoch()
        return summary

    def _step(self, batch: Batch) -> Tensor:
        """One step; returns the statistics of the global batch, on the host, float64."""
        self._progress.enter("compute")
        # Seeded per step: resuming needs no generator state, and ranks drop different units.
        torch.manual_seed(hash((self.settings.seed, self.global_step, self.world.rank)) & (2**63 - 1))
        if self._pinned:
            batch = batch.to(self.world.device, non_blocking=True)
        rows = self._table.fetch(batch.unique_ids)
        with torch.autocast(
            self.world.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"
        ):
            logits = self.model(batch, rows)
        if self.balance.per_task:
            ids, gradients, statistics = self._exchange_per_task(logits.float(), rows, batch)
        else:
            factors = self._as_tensor(self.balance.factors)
            ids, gradients = self._exchange(logits.float(), rows, batch, factors)
            statistics = self.exchange.statistics.double().cpu()
            self.balance.after_step(self._task_losses(statistics))
        self._take_norm_statistics(statistics)
        self._progress.enter("update")
        if self._clip_norm is not None:
            self.exchange.clip_norm(self._clip_norm)
        self.global_step += 1
        self.optimisers.step(ids, gradients, self.global_step)
        return statistics[: self._num_reported]

    def _exchange(
        self,
        logits: Tensor,
        rows: Tensor,
        batch: Batch,
        factors: Tensor | None,
        keep_graph: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Backward pass and exchange; returns rows of this rank's table and their global gradients."""
        self.exchange.start_step()
        rows.grad = None
        loss, cell_sums = self.loss(logits, batch, factors)
        loss.backward(retain_graph=keep_graph)
        statistics = self.exchange.statistics
        statistics[_LOSS] = loss.detach()
        statistics[_STOP] = float(self._reporter.stop_requested)
        statistics[_ROWS] = batch.num_rows
        cells = self._num_scenarios * self._num_tasks
        statistics[_CELLS : _CELLS + cells] = cell_sums.detach().reshape(-1)
        statistics[_CELLS + cells : self._num_reported] = torch.tensor(
            batch.scenario_counts, dtype=torch.float32
        )
        if self._norms and not keep_graph:
            statistics[self._num_reported :] = torch.cat([norm.statistics() for norm in self._norms])
        self._progress.enter("exchange")
        gradients = rows.grad if rows.grad is not None else torch.zeros_like(rows)
        ids, gradients = self._table.collect(batch.unique_ids, gradients)
        self.exchange.finish()
        return ids, gradients

    def _exchange_per_task(self, logits: Tensor, rows: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """One backward pass and exchange per task; the balance makes one gradient of the global ones."""
        parts: list[Tensor] = []
        losses: list[float] = []
        for task in range(self._num_tasks):
            only = self._as_tensor([float(other == task) for other in range(self._num_tasks)])
            last = task + 1 == self._num_tasks
            ids, row_gradients = self._exchange(logits, rows, batch, only, keep_graph=not last)
            losses.append(float(self.exchange.statistics[_LOSS]))
            parts.append(torch.cat([self.exchange.dense_gradient(), row_gradients.flatten()]))
        task_losses = torch.tensor(losses, dtype=torch.float64)
        weights = torch.tensor(self.balance.factors or [1.0] * self._num_tasks, dtype=torch.float64)
        combined = self.balance.combine(torch.stack(parts), task_losses, self.global_step)
        num_dense = combined.numel() - row_gradients.numel()
        self.exchange.set_dense_gradient(combined[:num_dense])
        statistics = self.exchange.statistics.double().cpu()
        statistics[_LOSS] = float((weights * task_losses).sum())
        return ids, combined[num_dense:].view_as(row_gradients), statistics

    def _take_norm_statistics(self, statistics: Tensor) -> None:
        """Move running moments by the whole global batch's sums."""
        start = self._num_reported
        for norm in self._norms:
            norm.take_statistics(statistics[start : start + norm.num_statistics])
            start += norm.num_statistics

    def _task_losses(self, statistics: Tensor) -> Tensor:
        cells = self._num_scenarios * self._num_tasks
        sums = statistics[_CELLS : _CELLS + cells].reshape(self._num_scenarios, self._num_tasks)
        return self.loss.task_losses(sums, float(statistics[_ROWS]))

    def _as_tensor(self, factors: Sequence[float] | None) -> Tensor | None:
        return None if factors is None else torch.tensor(factors, device=self.world.device)

    def _check_finite(self, losses: Tensor, epoch: int, step: int) -> None:
        if not bool(torch.isfinite(losses).all()):
            raise NonFiniteLossError(
                f"the loss is {float(losses[-1])} at epoch {epoch}, within the {len(losses)} steps up to step {step}; "
                "expected a finite number: lower optimiser.learning_rate, or set optimiser.clip_norm"
            )

    def _cell_means(self, statistics: Tensor) -> np.ndarray:  # type: ignore[type-arg]
        cells = self._num_scenarios * self._num_tasks
        sums = statistics[_CELLS : _CELLS + cells].reshape(self._num_scenarios, self._num_tasks)
        counts = statistics[_CELLS + cells :].unsqueeze(1)
        means: np.ndarray = (sums / counts).numpy()  # type: ignore[type-arg]
        return means

    @torch.no_grad()  # inference mode would hand Horovod tensors that its own thread may not touch
    def score(self, plan: EpochPlan, batches: Iterator[Batch]) -> Scores:
        """Predict a whole split; every rank receives the scores of all.

        Args:
            plan: Plan of the split, without shuffling.
            batches: This rank's part of each step.
        """
        self.model.eval()
        self.optimisers.settle()
        nothing = torch.zeros(0, self._num_tasks, device=self.world.device)
        parts: list[tuple[Tensor, Tensor, Tensor]] = [
            (nothing.new_zeros(0, dtype=torch.int64), nothing, nothing)
        ]
        for step in range(plan.num_steps):
            self._progress.enter("first batch" if step == 0 else "data")
            batch = next(batches)
            self._progress.step = step
            self._progress.enter("validate")
            moved = batch.to(self.world.device, non_blocking=True) if self._pinned else batch
            logits = self.model(moved, self._table.look_up(moved.unique_ids))
            parts.append((moved.scenario_index, moved.labels, torch.sigmoid(logits.float())))
        scenario_index, labels, probs = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        self._progress.enter("gather")
        return Scores(
            scenario_index=self.world.gather(scenario_index, "scores.scenario_index").cpu().numpy(),
            labels=self.world.gather(labels, "scores.labels").cpu().numpy(),
            probs=self.world.gather(probs, "scores.probs").cpu().numpy(),
        )
