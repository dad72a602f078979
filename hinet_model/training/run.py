"""Run: epochs of planned steps from where the state stands to the end, and the callbacks at their moments."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from hinet_model.data.batch import Batch
from hinet_model.data.loading import SnapshotReader
from hinet_model.data.plan import EpochPlan
from hinet_model.models.model import table_name
from hinet_model.objective.balance import effective_weights
from hinet_model.training.callbacks import Callback
from hinet_model.training.loop import Trainer
from hinet_model.training.state import RunState, weights_digest
from hinet_model.training.validation import Validated


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; says at which step."""


@dataclass(frozen=True)
class RunInputs:
    """What a run reads.

    Args:
        plan: The plan of an epoch over a split.
        reader: Opens a split.
    """

    plan: Callable[[int, str], EpochPlan]
    reader: Callable[[str], SnapshotReader]


class Run:
    """Training on one worker, from where its state stands.

    Args:
        trainer: Takes the steps.
        state: Where the run stands; advanced here, and here alone.
        inputs: Plans and readers.
        epochs: Epochs in all.
        callbacks: What else happens, in this order.

    Attributes:
        plan: Of the epoch under way.
        entry: What the epoch that ended last measured; the last one of the state's history.
        losses: Loss of each of its steps.
        validated: What its validation found; None without one.
        stop_reason: Why the run ends before its last epoch; None while it goes on.
        step_started: When the last step began to wait for its batch, by `time.perf_counter`.
    """

    def __init__(
        self,
        trainer: Trainer,
        state: RunState,
        inputs: RunInputs,
        epochs: int,
        callbacks: Sequence[Callback],
    ) -> None:
        self.trainer, self.state, self.inputs, self.epochs = trainer, state, inputs, epochs
        self.parts, self.world = trainer.parts, trainer.parts.world
        self.callbacks = list(callbacks)
        self.reporter, self.progress = trainer.reporter, trainer.progress
        self.readers: dict[str, SnapshotReader] = {}
        self.plan = inputs.plan(state.epoch, "train")
        self.entry: dict[str, Any] = {}
        self.losses: list[float] = []
        self.validated: Validated | None = None
        self.stop_reason: str | None = None
        self.step_started = 0.0

    def stop(self, reason: str) -> None:
        """End the run after the step, or the epoch, under way."""
        self.stop_reason = reason

    def to_the_end(self) -> dict[str, Any]:
        """Train.

        Returns:
            The fields of the report ``finished``.
        """
        cut_short = False
        with ExitStack() as stack:
            for split in ("train", "validation"):
                self.readers[split] = stack.enter_context(self.inputs.reader(split))
            if self.world.rank == 0:
                self.reporter.send("begins", global_step=self.state.global_step)
            for callback in self.callbacks:
                callback.on_begin(self)
            while self.state.epoch < self.epochs and self.stop_reason is None:
                cut_short = not self._train_epoch()
                if not cut_short:
                    self._end_epoch()
            for callback in self.callbacks:
                callback.on_stop(self)
        return self._result(cut_short)

    def _train_epoch(self) -> bool:
        """Take the steps that the epoch has left; whether it came to its end."""
        state = self.state
        self.plan = self.inputs.plan(state.epoch, "train")
        self.progress.enter("agree")
        self.world.assert_same(self.plan.hash, "hash of the epoch's plan")
        self.parts.model.train()
        batches = self.readers["train"].batches(
            self.plan, self.world.rank, self.world.size, start_step=state.step
        )
        seconds, started, first = state.seconds, time.perf_counter(), state.step
        for step in range(first, self.plan.num_steps):
            self.progress.enter("data" if step > first else "first batch")
            self._take_step(step, batches)
            state.seconds = seconds + time.perf_counter() - started
            if self.stop_reason is not None:
                break
        rows = self.parts.statistics.rows(state.sums)
        planned = sum(self.plan.global_rows(step) for step in range(state.step))
        if rows != planned:
            raise RuntimeError(
                f"epoch {state.epoch}: {rows} rows entered the loss of {state.step} steps, the plan has {planned}"
            )
        return self.stop_reason is None

    def _take_step(self, step: int, batches: Iterator[Batch]) -> None:
        state = self.state
        self.progress.epoch, self.progress.step = state.epoch, step
        self.step_started = time.perf_counter()
        batch = next(batches)
        state.wait_seconds += time.perf_counter() - self.step_started
        measures = self.trainer.step(batch, state.global_step)
        state.count_step(measures)
        if not math.isfinite(measures.loss):
            raise NonFiniteLossError(
                f"the loss is {measures.loss} at epoch {state.epoch}, step {step}; expected a finite number: lower "
                "optimiser.learning_rate, or set optimiser.clip_norm"
            )
        for callback in self.callbacks:
            callback.on_step(self, batch, measures)

    def _end_epoch(self) -> None:
        state, parts = self.state, self.parts
        parts.balance.after_epoch()
        self.losses = state.epoch_losses()
        rows, seconds = parts.statistics.rows(state.sums), state.seconds
        self.entry = {
            "epoch": state.epoch,
            "global_step": state.global_step,
            "train_loss": sum(self.losses) / max(len(self.losses), 1),
            "train_cell_losses": [
                [None if math.isnan(loss) else loss for loss in of_scenario]
                for of_scenario in parts.statistics.cell_means(state.sums).tolist()
            ],
            "task_weights": effective_weights(parts.balance, parts.loss.task_weights),
            "rows": rows,
            "seconds": seconds,
            "rows_per_second": rows / max(seconds, 1e-9),
            "data_wait_share": state.wait_seconds / max(seconds, 1e-9),
            "mean_auc": None,
            "cells": [],
        }
        state.history.append(self.entry)
        state.end_epoch()
        for callback in self.callbacks:
            callback.on_epoch(self)

    def _result(self, cut_short: bool) -> dict[str, Any]:
        state, best = self.state, self.state.best
        own = {table_name(self.parts.model)} if self.parts.model.embedding.shard.count > 1 else set()
        return {
            "kind": "finished",
            "epochs": state.epoch,
            "global_step": state.global_step,
            "best_epoch": -1 if best is None else best.epoch,
            "best_value": None if best is None else best.value,
            "stopped": cut_short,
            "plan_hash": self.inputs.plan(0, "train").hash,
            "weights": weights_digest(self.parts.model, own),
            "history": state.history,
            "device": str(self.world.device),
            "threads": torch.get_num_threads(),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
