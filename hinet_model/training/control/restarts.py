"""Restarts: a run that loses a worker goes on by itself from its last checkpoint, and knows what that has cost.

Goodput is the share of the time, from the start of the first workers to the end of the last, that went into what the
run has at its end: time in which workers started, or took steps that were lost with them and taken again, does not
count. A step that was taken before a checkpoint counts from the first step of its attempt on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foundation.session import is_alive
from hinet_model.training import checkpoint
from hinet_model.training.control import launch
from hinet_model.training.control.launch import Entry
from hinet_model.training.control.monitor import TrainingError
from hinet_model.training.control.reports import Report
from hinet_model.training.job import TrainingJob
from hinet_model.training.worker import main as worker_main

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0
"""Seconds before the first restart; each further one doubles them."""


class Attempts:
    """Attempts at one run, until one comes to the end or all are used up.

    Args:
        job: What to train.
        on_report: Sees the workers' reports as `launch.run` says, and ``restarts`` before each further attempt.

    Attributes:
        restarts: Attempts that followed the first.
        seconds: Wall time from the first start on, once `run` has ended.
        useful_seconds: Of these, what the run has something of.
    """

    def __init__(self, job: TrainingJob, on_report: Callable[[Report], None]) -> None:
        self._job, self._on_report = job, on_report
        self.restarts = 0
        self.seconds = self.useful_seconds = 0.0
        self._began: float | None = None
        self._saved: float | None = None

    @property
    def goodput(self) -> float:
        """Useful seconds over all seconds."""
        return self.useful_seconds / self.seconds if self.seconds else 0.0

    def run(self, spark: SparkSession, entry: Entry = worker_main) -> list[dict[str, Any]]:
        """Train; what each worker returned, in rank order. Raises as `launch.run`."""
        started, job = time.monotonic(), self._job
        try:
            while True:
                try:
                    results = launch.run(spark, job, self._see, entry)
                except TrainingError as error:
                    if not error.lost or self.restarts >= self._job.settings.training.restarts:
                        raise
                    self._count(self._saved)
                    job = self._again(spark, error)
                else:
                    self._count(time.monotonic())
                    return results
        finally:
            self._count(self._saved)
            self.seconds = time.monotonic() - started

    def _see(self, report: Report) -> None:
        if report["kind"] == "begins":
            self._began = time.monotonic()
        elif report["kind"] == "checkpoint":
            # What it holds was there when it was begun.
            self._saved = time.monotonic() - float(report["seconds"])
        self._on_report(report)

    def _count(self, until: float | None) -> None:
        """What this attempt did until a moment is kept."""
        if self._began is not None and until is not None:
            self.useful_seconds += max(0.0, until - self._began)
        self._began = self._saved = None

    def _again(self, spark: SparkSession, error: TrainingError) -> TrainingJob:
        """The job of the next attempt, when there is room for it."""
        if not is_alive(spark):
            raise TrainingError(f"the driver's Spark is gone: killed, or out of memory\n{error}") from error
        self.restarts += 1
        pause = min(_FIRST_PAUSE * 2 ** (self.restarts - 1), _LONGEST_PAUSE)
        newest = checkpoint.latest(self._job.checkpoint_folder)
        logger.error("%s", error)
        logger.warning(
            "restart %d of %d in %.0f s, from %s",
            self.restarts,
            self._job.settings.training.restarts,
            pause,
            newest or "the beginning: there is no checkpoint yet",
        )
        time.sleep(pause)
        self._wait_for_slots(spark)
        self._on_report({"kind": "restarts", "rank": 0, "restarts": self.restarts})
        return replace(self._job, resume=newest is not None)

    def _wait_for_slots(self, spark: SparkSession) -> None:
        """An executor that was lost is replaced by and by; `launch.run` says it where it is not."""
        training, deadline = self._job.settings.training, time.monotonic()
        deadline += self._job.settings.watchdog.start_seconds
        while launch.task_slots(spark) < training.workers and time.monotonic() < deadline:
            time.sleep(1.0)
