"""Callbacks: what happens beside the steps of a run, at moments of its own.

A run calls every callback, in order, once as it begins (`on_begin`), after each step (`on_step`), after each epoch
that came to its end (`on_epoch`), and once when it ends in order (`on_stop`). All ranks have the same ones, so that a
callback may hold a collective; what one rank alone does holds none.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hinet_model.data.batch import Batch
from hinet_model.training import checkpoint
from hinet_model.training.position import Best, curve
from hinet_model.training.statistics import StepMeasures

if TYPE_CHECKING:
    from hinet_model.training.run import Run

logger = logging.getLogger(__name__)


class Callback:
    """Does nothing at any moment; others say at which they do what."""

    def on_begin(self, run: Run) -> None:
        """The run begins, or goes on from a checkpoint: ``run.state`` is where it stands."""

    def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
        """A step was taken: this rank's part of the batch, and what all ranks measured."""

    def on_epoch(self, run: Run) -> None:
        """An epoch ended; ``run.state`` is where the next one begins, ``run.entry`` what it measured."""

    def on_stop(self, run: Run) -> None:
        """The run has ended, after its last epoch or before."""


class StopWhenAsked(Callback):
    """End the run where the driver asks for it, after the step in which all workers know."""

    def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
        if measures.wishes.stop:
            run.stop("the driver asked for it")


class StopAfterSteps(Callback):
    """End the run after so many steps in all; an epoch of which they are the last is ended first."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_begin(self, run: Run) -> None:
        self._look(run)

    def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
        if run.state.step < run.plan.num_steps:
            self._look(run)

    def on_epoch(self, run: Run) -> None:
        self._look(run)

    def _look(self, run: Run) -> None:
        if run.state.global_step >= self._steps:
            run.stop(f"it has taken {self._steps} steps")


class ReportProgress(Callback):
    """Tell the driver about the steps, every so many of them."""

    def __init__(self, every_steps: int) -> None:
        self._every = every_steps
        self._since, self._rows_before = 0.0, -1

    def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
        state, statistics = run.state, run.parts.statistics
        if self._rows_before < 0:
            self._since = run.step_started
            self._rows_before = statistics.rows(state.sums) - statistics.rows(measures.sums)
        last = state.step == run.plan.num_steps
        if not last and run.stop_reason is None and state.global_step % self._every:
            return
        now, rows = time.perf_counter(), statistics.rows(state.sums)
        if run.world.rank == 0:
            recent = state.recent_losses(self._every)
            run.reporter.send(
                "progress",
                epoch=state.epoch,
                step=state.step,
                steps=run.plan.num_steps,
                rows=rows,
                rows_per_second=(rows - self._rows_before) / max(now - self._since, 1e-9),
                loss=sum(recent) / len(recent),
            )
        # What lies between two epochs is no part of the speed.
        self._since, self._rows_before = now, -1 if last else rows


class AverageWeights(Callback):
    """Take the weights at the end of each of a run's last epochs into their mean; before it is validated."""

    def __init__(self, first_epoch: int) -> None:
        self._first = first_epoch

    def on_epoch(self, run: Run) -> None:
        if run.entry["epoch"] >= self._first:
            run.parts.optimisers.flush_decay()
            run.state.average.add(run.entry["epoch"])


class KeepBest(Callback):
    """Remember the best validation; the checkpoint that holds what was validated is the one after this epoch."""

    def on_epoch(self, run: Run) -> None:
        if run.validated is None:
            return
        state, value = run.state, run.validated.mean_auc
        if value is not None and (state.best is None or value > state.best.value):
            state.best = Best(run.entry["epoch"], value, checkpoint.name_of(state.global_step))
            state.bad_validations = 0
        else:
            state.bad_validations += 1


class Patience(Callback):
    """End the run after so many validations that were no better."""

    def __init__(self, validations: int) -> None:
        self._validations = validations

    def on_begin(self, run: Run) -> None:
        self.on_epoch(run)

    def on_epoch(self, run: Run) -> None:
        if run.state.bad_validations >= self._validations:
            run.stop(f"{self._validations} validations were no better than the best")


class ReportEpoch(Callback):
    """Tell the driver what an epoch measured, validated or not."""

    def on_epoch(self, run: Run) -> None:
        if run.world.rank != 0:
            return
        best = run.state.best
        run.reporter.send(
            "epoch",
            **run.entry,
            losses=curve(run.losses, first_step=run.state.global_step - len(run.losses) + 1),
            best=best is not None and best.epoch == run.entry["epoch"],
            scenario_attention=None if run.validated is None else run.validated.scenario_attention,
        )


class Profile(Callback):
    """Record what some steps do, after the first few, as a trace that chrome://tracing and Perfetto show.

    Args:
        steps: Steps to record.
        file: Where to write the trace.
    """

    WARM_UP_STEPS = 5

    def __init__(self, steps: int, file: Path) -> None:
        self._file = file
        schedule = torch.profiler.schedule(wait=0, warmup=self.WARM_UP_STEPS, active=steps, repeat=1)
        self._profiler = torch.profiler.profile(
            schedule=schedule, on_trace_ready=self._write, acc_events=True
        )
        self._started = False

    def _write(self, profiler: torch.profiler.profile) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self._file))
        logger.info("trace of a few steps: %s", self._file)

    def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
        if not self._started:
            self._started = True
            self._profiler.start()
        else:
            self._profiler.step()

    def on_stop(self, run: Run) -> None:
        if self._started:
            self._profiler.stop()
