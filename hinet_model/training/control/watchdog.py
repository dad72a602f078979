"""Watchdog: a thread in each worker that ends it when nothing moves any more.

A collective waits for its peers without end, and Spark cannot tell a hung worker from a busy one. So each
worker watches itself: the loop says which phase it enters, and when no phase has begun for
``stall_seconds`` the watchdog writes every thread's stack to the worker's log, reports what it saw, and ends
the process. It runs while the main thread is blocked in a collective. All workers stall together when one of
them does; the phase tells the cause from its victims: those wait in ``exchange``, it does not.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from hinet_model.training.control.reports import Reporter

STALL_EXIT_CODE = 70
COLLECTIVE_PHASES = frozenset({"exchange", "gather", "agree"})
"""Phases in which a worker waits for its peers."""


class Progress:
    """Where a worker is: written by the loop, read by heartbeat and watchdog."""

    def __init__(self) -> None:
        self.phase, self.epoch, self.step = "start", 0, 0
        self._since = time.monotonic()

    def enter(self, phase: str) -> None:
        """Begin a phase; each beginning is a sign of life."""
        self.phase = phase
        self._since = time.monotonic()

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """A phase in the midst of another, which goes on if nothing was raised."""
        before = self.phase
        self.enter(phase)
        yield
        self.enter(before)

    def seconds_in_phase(self) -> float:
        return time.monotonic() - self._since

    def state(self) -> dict[str, Any]:
        """What a heartbeat says."""
        return {
            "phase": self.phase,
            "epoch": self.epoch,
            "step": self.step,
            "seconds_in_phase": round(self.seconds_in_phase(), 1),
        }


class Watchdog:
    """Ends this process when its `Progress` stands still.

    Args:
        progress: What the loop reports.
        reporter: Told ``stalled``, with the main thread's stack, before the end.
        stall_seconds: Longest time in one phase.
        start_seconds: Longest time in phase ``start``, which waits for all workers to come up.
        log: Open file that takes the stacks of all threads.
        end: Ends the process; replaced in tests of the watchdog alone.
    """

    def __init__(
        self,
        progress: Progress,
        reporter: Reporter,
        *,
        stall_seconds: float,
        start_seconds: float,
        log: IO[str],
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._progress, self._reporter, self._log, self._end = progress, reporter, log, end
        self._limits = {"start": start_seconds}
        self._limit = stall_seconds
        self._closed = threading.Event()
        self._main = threading.main_thread().ident
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._limit / 10)):
            if self._progress.seconds_in_phase() > self._limits.get(self._progress.phase, self._limit):
                self._bite()
                return

    def _bite(self) -> None:
        frame = sys._current_frames().get(self._main or 0)
        stack = "".join(traceback.format_stack(frame)[-6:]) if frame else ""
        faulthandler.dump_traceback(self._log, all_threads=True)
        self._log.flush()
        self._reporter.send("stalled", stack=stack, **self._progress.state())
        # Time for the peers to tell the driver in which phase they are stuck.
        time.sleep(1.0)
        self._end(STALL_EXIT_CODE)

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=2.0)
