"""Watchdog: a thread in each worker that ends it when nothing moves any more.

A collective waits for its peers without end, and Spark cannot tell a hung worker from a busy one. So each
worker watches itself: the run says which phase it enters, and in long phases gives signs of life. When none
came for the phase's limit, the watchdog writes every thread's stack to the worker's log, reports what it saw,
and ends the process. It runs while the main thread is blocked in a collective.

A worker that waits for its peers cannot tell a busy peer from a lost one, so it does not judge itself: the
driver, who knows everybody's phase, says so when nobody works (`hinet_model.training.control.monitor`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from hinet_model.config import WatchdogSettings
from hinet_model.training.control.reports import Reporter

STALL_EXIT_CODE = 70
COLLECTIVE_PHASES = frozenset({"exchange", "gather", "agree"})
"""Phases in which a worker waits for its peers."""


class Progress:
    """Where a worker is: written by the run, read by heartbeat and watchdog."""

    def __init__(self) -> None:
        self.epoch, self.step = 0, 0
        # One tuple, so that a reader never sees a new phase with the time of the one before.
        self._now = ("start", time.monotonic())

    @property
    def phase(self) -> str:
        """The phase that was entered last."""
        return self._now[0]

    def enter(self, phase: str) -> None:
        """Begin a phase; each beginning is a sign of life."""
        self._now = (phase, time.monotonic())

    def alive(self) -> None:
        """Give a sign of life in the midst of a phase that takes long."""
        self.enter(self.phase)

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """A phase in the midst of another, which goes on if nothing was raised."""
        before = self.phase
        self.enter(phase)
        yield
        self.enter(before)

    def state(self) -> dict[str, Any]:
        """What a heartbeat says; ``quiet_seconds`` have passed since the last sign of life."""
        phase, since = self._now
        return {
            "phase": phase,
            "epoch": self.epoch,
            "step": self.step,
            "quiet_seconds": round(time.monotonic() - since, 1),
        }


@dataclass(frozen=True)
class PhaseLimits:
    """Longest time without a sign of life, in seconds.

    Args:
        step: In any phase that has no limit of its own.
        by_phase: In these.
    """

    step: float
    by_phase: Mapping[str, float]

    @classmethod
    def of_settings(cls, settings: WatchdogSettings) -> PhaseLimits:
        """The limits that section ``watchdog`` of the run's settings gives."""
        return cls(
            settings.stall_seconds,
            {
                "start": settings.start_seconds,
                "first batch": settings.start_seconds,
                "checkpoint": settings.checkpoint_seconds,
                "restore": settings.checkpoint_seconds,
                "gather": settings.judge_seconds,
                "judge": settings.judge_seconds,
            },
        )

    def of(self, phase: str) -> float:
        """The limit of one phase."""
        return self.by_phase.get(phase, self.step)


class Watchdog:
    """Ends this process when its `Progress` stands still.

    Args:
        progress: What the run says.
        reporter: Told ``stalled``, with the main thread's stack, before the end; knows what the driver has found.
        limits: Longest time without a sign of life.
        log: Open file that takes the stacks of all threads.
        end: Ends the process; replaced in tests of the watchdog alone.
    """

    def __init__(
        self,
        progress: Progress,
        reporter: Reporter,
        limits: PhaseLimits,
        log: IO[str],
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._progress, self._reporter, self._log, self._end = progress, reporter, log, end
        self._limits = limits
        self._closed = threading.Event()
        self._main = threading.main_thread().ident
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._limits.step / 10)):
            state = self._progress.state()
            may_judge = self._reporter.told_nobody_works() or state["phase"] not in COLLECTIVE_PHASES
            if may_judge and state["quiet_seconds"] > self._limits.of(state["phase"]):
                self._bite(state)
                return

    def _bite(self, state: Mapping[str, Any]) -> None:
        frame = sys._current_frames().get(self._main or 0)
        stack = "".join(traceback.format_stack(frame)[-6:]) if frame else ""
        # A log that takes nothing any more (a full disk) must not keep the worker hanging.
        with contextlib.suppress(OSError, ValueError):
            faulthandler.dump_traceback(self._log, all_threads=True)
            self._log.flush()
        self._reporter.send("stalled", stack=stack, **state)
        # Time for the peers to tell the driver in which phase they are stuck.
        time.sleep(1.0)
        self._end(STALL_EXIT_CODE)

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=2.0)
