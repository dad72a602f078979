"""Monitor: the driver's view of a run, made of its workers' reports.

It knows where every worker is, hands epochs on to whoever records them, and when something goes wrong finds
the cause among its effects: one worker that fails leaves its peers hanging in a collective, and they complain
too, often first. It alone can tell a worker that waits for a busy peer from one that waits in vain, and it sees
the worker that is too far gone to end itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hinet_model.training.control.reports import Report
from hinet_model.training.control.watchdog import COLLECTIVE_PHASES, PhaseLimits

COLLECTIVE_ERRORS = ("HorovodInternalError",)
"""Exceptions that a worker raises because a peer is gone."""

_LATE_SECONDS = 5.0
"""What a heartbeat may be late, and a watchdog, before the driver judges in their place."""


class TrainingError(RuntimeError):
    """The run ended before its time; the message names rank, cause and log.

    Args:
        message: What happened.
        lost: Whether a worker was lost or hung, so that another attempt may fare better; what a worker raised it
            would most likely raise again.
    """

    def __init__(self, message: str, lost: bool = False) -> None:
        super().__init__(message)
        self.lost = lost


@dataclass(frozen=True)
class Failure:
    """One worker's end, how likely it is the cause rather than an effect (0 is the cause), and whether it was lost."""

    rank: int
    effect: int
    text: str
    lost: bool = True


class RunMonitor:
    """Collects reports (see `hinet_model.training.control.reports`) from the server's threads.

    Args:
        num_workers: Workers that are expected.
        on_report: Sees every report but heartbeats, one at a time; must not raise.
        limits: Longest times without a sign of life.
        reconnect_seconds: How long a worker whose connection broke may be away.
        settle_seconds: After the first failure, how long others may still report theirs.
    """

    def __init__(
        self,
        num_workers: int,
        on_report: Callable[[Report], None],
        limits: PhaseLimits,
        reconnect_seconds: float = 60.0,
        settle_seconds: float = 2.0,
    ) -> None:
        self._num_workers = num_workers
        self._on_report = on_report
        self._limits = limits
        self._settle, self._reconnect = settle_seconds, reconnect_seconds
        self._state: dict[int, dict[str, Any]] = {}
        self._heard_at: dict[int, float] = {}
        self._away_since: dict[int, float] = {}
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
                self._heard_at[rank] = time.monotonic()
            if kind == "finished":
                self._finished.add(rank)
            if kind == "disconnected" and not self._closed:
                self._away_since[rank] = time.monotonic()
            if kind == "reconnected":
                # While it was away its heart was not heard.
                self._away_since.pop(rank, None)
                self._heard_at[rank] = time.monotonic()
            failure = None if self._closed else self._failure(rank, report)
            if failure is not None:
                self._add(failure)
        if kind != "heartbeat":
            self._on_report(report)

    def _failure(self, rank: int, report: Report) -> Failure | None:
        kind = report["kind"]
        if kind == "failed":
            effect = 4 if report["error"] in COLLECTIVE_ERRORS else 0
            text = f"raised {report['error']}: {report['message']}\n{report['traceback']}"
            return Failure(rank, effect, text, lost=effect > 0)
        if kind == "stalled":
            effect = 3 if report["phase"] in COLLECTIVE_PHASES else 2
            return Failure(
                rank,
                effect,
                f"made no progress for {report['quiet_seconds']} s in phase '{report['phase']}' "
                f"(epoch {report['epoch']}, step {report['step']})\n{report['stack']}",
            )
        return None

    def nobody_works(self) -> bool:
        """Whether every worker that is left waits for the others, for longer than any such wait may take."""
        now = time.monotonic()
        with self._lock:
            left = [rank for rank in range(self._num_workers) if rank not in self._finished]
            return bool(left) and all(
                rank in self._state
                and self._state[rank]["phase"] in COLLECTIVE_PHASES
                and self._state[rank]["quiet_seconds"] + now - self._heard_at[rank]
                # Each worker checks once more by its own clock.
                > self._limits.of(self._state[rank]["phase"]) + 0.5
                for rank in left
            )

    def find_silent(self) -> None:
        """Count as failed who was away for too long, or has sent no heartbeat: stopped, or cut off with its host."""
        now = time.monotonic()
        with self._lock:
            if self._closed:
                return
            left = (
                set(range(self._num_workers)) - self._finished - {failure.rank for failure in self._failures}
            )
            for rank in left:
                if rank in self._away_since:
                    if now - self._away_since[rank] > self._reconnect:
                        self._add(self._lost(rank))
                    continue
                silence = now - self._heard_at.get(rank, now)
                if (
                    rank in self._state
                    and silence > self._limits.of(self._state[rank]["phase"]) + _LATE_SECONDS
                ):
                    self._add(self._silent(rank, silence))

    def _silent(self, rank: int, seconds: float) -> Failure:
        return Failure(rank, 1, f"gave no sign of life for {seconds:.0f} s, the last one {self._place(rank)}")

    def _lost(self, rank: int) -> Failure:
        return Failure(rank, 0, f"ended without a word {self._place(rank)}: killed, or out of memory")

    def _place(self, rank: int) -> str:
        state = self._state.get(rank)
        if state is None:
            return "before its first heartbeat"
        return f"at epoch {state['epoch']}, step {state['step']} (phase '{state['phase']}')"

    def _add(self, failure: Failure) -> None:
        self._failures.append(failure)
        if self._first_failure_at is None:
            self._first_failure_at = time.monotonic()

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

    def _absent(self) -> list[Failure]:
        """Who was away, or silent, when the first of the others failed: a likely cause of it."""
        first = self._first_failure_at
        known = {failure.rank for failure in self._failures} | self._finished
        absent = [self._lost(rank) for rank in self._away_since if rank not in known]
        for rank, heard in self._heard_at.items():
            if rank in known or rank in self._away_since or first is None:
                continue
            if first - heard > _LATE_SECONDS:
                absent.append(self._silent(rank, first - heard))
        return absent

    def error(self) -> TrainingError | None:
        """The most likely cause, with what the others reported after it; None where nobody failed."""
        with self._lock:
            failures = sorted([*self._absent(), *self._failures], key=lambda failure: failure.effect)
            if not failures:
                return None
            cause = failures[0]
            others = [f for f in failures[1:] if f.rank != cause.rank]
            lines = [f"rank {cause.rank} of {self._num_workers} {cause.text.rstrip()}"]
            lines += [f"  then rank {f.rank} {f.text.splitlines()[0]}" for f in others]
            log = self._logs.get(cause.rank)
            if log:
                lines.append(f"log of rank {cause.rank}: {log}")
        return TrainingError("\n".join(lines), cause.lost)
