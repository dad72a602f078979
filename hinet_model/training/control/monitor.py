"""Monitor: the driver's view of a run, made of its workers' reports.

It knows where every worker is, hands epochs on to whoever records them, and when something goes wrong finds
the cause among its effects: one worker that fails leaves its peers hanging in a collective, and they complain
too, often first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hinet_model.training.control.reports import Report
from hinet_model.training.control.watchdog import COLLECTIVE_PHASES

COLLECTIVE_ERRORS = ("HorovodInternalError",)
"""Exceptions that a worker raises because a peer is gone."""


class TrainingError(RuntimeError):
    """The run ended before its time; the message names rank, cause and log."""


@dataclass(frozen=True)
class Failure:
    """One worker's end, and how likely it is the cause rather than an effect (0 is the cause)."""

    rank: int
    effect: int
    text: str


class RunMonitor:
    """Collects reports (see `hinet_model.training.control.reports`) from the server's threads.

    Args:
        num_workers: Workers that are expected.
        on_report: Sees every report but heartbeats, one at a time; must not raise.
        settle_seconds: After the first failure, how long others may still report theirs.
    """

    def __init__(
        self, num_workers: int, on_report: Callable[[Report], None], settle_seconds: float = 2.0
    ) -> None:
        self._num_workers = num_workers
        self._on_report = on_report
        self._settle = settle_seconds
        self._state: dict[int, dict[str, Any]] = {}
        self._logs: dict[int, str] = {}
        self._failures: list[Failure] = []
        self._first_failure_at: float | None = None
        self._finished: set[int] = set()
        self._closed = False
        self._lock = threading.Lock()

    def receive(self, report: Report) -> None:
        """Take one report in."""
        rank, kind = int(report["rank"]), report["kind"]
        with self._lock:
            if kind == "hello":
                self._logs[rank] = str(report["log"])
            if kind in ("heartbeat", "stalled"):
                self._state[rank] = dict(report)
            if kind == "finished":
                self._finished.add(rank)
            failure = None if self._closed or rank < 0 else self._failure(rank, report)
            if failure is not None:
                self._failures.append(failure)
                if self._first_failure_at is None:
                    self._first_failure_at = time.monotonic()
        if kind != "heartbeat":
            self._on_report(report)

    def _failure(self, rank: int, report: Report) -> Failure | None:
        kind = report["kind"]
        if kind == "failed":
            effect = 3 if report["error"] in COLLECTIVE_ERRORS else 0
            return Failure(
                rank, effect, f"raised {report['error']}: {report['message']}\n{report['traceback']}"
            )
        if kind == "stalled":
            effect = 2 if report["phase"] in COLLECTIVE_PHASES else 1
            return Failure(
                rank,
                effect,
                f"made no progress for {report['seconds_in_phase']} s in phase '{report['phase']}' "
                f"(epoch {report['epoch']}, step {report['step']})\n{report['stack']}",
            )
        if kind == "disconnected" and rank not in self._finished:
            state = self._state.get(rank, {})
            where = f"epoch {state['epoch']}, step {state['step']}" if state else "before its first heartbeat"
            return Failure(rank, 0, f"ended without a word at {where}: killed, or out of memory")
        return None

    @property
    def failed(self) -> bool:
        """Whether a worker has failed and the others had their time to say what they saw."""
        with self._lock:
            first = self._first_failure_at
        return first is not None and time.monotonic() - first > self._settle

    def close(self) -> None:
        """Count no further failures: what ends from here on was told to."""
        with self._lock:
            self._closed = True

    def error(self) -> TrainingError | None:
        """The most likely cause, with what the others reported after it; None where nobody failed."""
        with self._lock:
            failures = sorted(self._failures, key=lambda failure: failure.effect)
            if not failures:
                return None
            cause = failures[0]
            others = [f for f in failures[1:] if f.rank != cause.rank]
            lines = [f"rank {cause.rank} of {self._num_workers} {cause.text.rstrip()}"]
            lines += [f"  then rank {f.rank} {f.text.splitlines()[0]}" for f in others]
            log = self._logs.get(cause.rank)
            if log:
                lines.append(f"log of rank {cause.rank}: {log}")
        return TrainingError("\n".join(lines))
