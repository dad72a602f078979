"""Running: the trials of a study, one process each, until all are done.

A process that is told to stop, or killed, loses the trials it has begun and no other: what was finished is a file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from feature_eng.snapshot import SnapshotRef
from foundation.settings import UserError
from hinet_model.studies import trial as trial_process
from hinet_model.studies.trial import OUTCOME, SCORES, Order, write_order
from hinet_model.studies.trials import Record, Schedule, Trial, code_digest
from hinet_model.tracking.lineage import git_state
from hinet_model.training.control.launch import MEMORY_KEPT

_POLL_SECONDS = 0.2


class TrialError(RuntimeError):
    """A trial's process ended without an outcome."""


@dataclass
class _Running:
    trial: Trial
    process: subprocess.Popen[bytes]
    folder: Path
    started: float


class Runner:
    """Runs what is missing of a study.

    Args:
        schedule: The study's trials.
        snapshot: The table that they read.
        processes: Trials side by side, a core each.
        on_done: Told of each trial as it ends.
        stream: Where the progress line goes; stderr if not given.
    """

    def __init__(
        self,
        schedule: Schedule,
        snapshot: SnapshotRef,
        processes: int = 1,
        on_done: Callable[[Trial, Mapping[str, Any]], None] = lambda trial, outcome: None,
        stream: TextIO | None = None,
    ) -> None:
        self._schedule, self._snapshot, self._processes = schedule, snapshot, processes
        self._on_done = on_done
        self._stream = sys.stderr if stream is None else stream
        self._running: list[_Running] = []
        self._spent: list[float] = []

    def run(self) -> int:
        """Run every trial that was not run yet.

        Returns:
            How many were run.

        Raises:
            TrialError: A trial failed; those that were finished are kept.
        """
        total, found = self._schedule.count()
        self._say(f"{total} trials, {found} of them on record")
        done = 0
        try:
            while True:
                self._start()
                if not self._running:
                    return done
                time.sleep(_POLL_SECONDS)
                for one in [one for one in self._running if one.process.poll() is not None]:
                    self._running.remove(one)
                    outcome = self._finish(one)
                    done += 1
                    self._tell(one, outcome, total, found + done)
        finally:
            for one in self._running:
                one.process.terminate()
            for one in self._running:
                one.process.wait()

    def _start(self) -> None:
        begun = {one.trial.key for one in self._running}
        # Looked for while there is room alone: what waits is told by the settings of every trial.
        waiting = self._schedule.waiting()
        while len(self._running) < self._processes and (trial := next(waiting, None)) is not None:
            if trial.key in begun:
                continue
            begun.add(trial.key)
            folder = self._schedule.record.folder / "running" / trial.key
            shutil.rmtree(folder, ignore_errors=True)
            order = Order(
                self._snapshot.to_json(),
                self._schedule.study.config,
                trial.overrides,
                trial.stage == "final",
                code_digest(),
            )
            place = write_order(order, folder)
            with (folder / "log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", trial_process.__name__, str(place)],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **MEMORY_KEPT, "OMP_NUM_THREADS": "1"},
                )
            self._running.append(_Running(trial, process, folder, time.monotonic()))

    def _finish(self, one: _Running) -> dict[str, Any]:
        record = self._schedule.record
        if one.process.returncode != 0 or not (one.folder / OUTCOME).exists():
            lines = (one.folder / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise TrialError(
                f"{one.trial.variant}, {one.trial.candidate}, seed {one.trial.seed}: "
                f"{lines[-1] if lines else 'no word'} (exit code {one.process.returncode}); log: {one.folder / 'log'}"
            )
        outcome: dict[str, Any] = json.loads((one.folder / OUTCOME).read_text(encoding="utf-8"))
        commit, dirty = git_state(Path(__file__).resolve().parent)
        outcome |= {
            "commit": commit[:12] + ("+changes" if dirty == "true" else ""),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_seconds": round(time.monotonic() - one.started, 1),
        }
        if (one.folder / SCORES).exists():
            scores = record.scores(one.trial.key)
            scores.parent.mkdir(parents=True, exist_ok=True)
            (one.folder / SCORES).replace(scores)
        record.keep(one.trial, outcome)
        shutil.rmtree(one.folder)
        self._on_done(one.trial, outcome)
        return outcome

    def _tell(self, one: _Running, outcome: Mapping[str, Any], total: int, done: int) -> None:
        self._spent.append(outcome["wall_seconds"])
        mean = sum(self._spent) / len(self._spent)
        left = tqdm.format_interval((total - done) * mean / self._processes)
        best = max((value for value in outcome["validation"] if value is not None), default=float("nan"))
        self._say(
            f"{done}/{total}  {one.trial.variant}, {one.trial.candidate}, seed {one.trial.seed}: validation AUC "
            f"{best:.4f}  {outcome['wall_seconds']:.0f} s  {left} left"
        )

    def _say(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()


def check_settings(schedule: Schedule) -> None:
    """Refuse a study before its first trial, not after a night of them.

    Raises:
        ConfigError: Settings of some variant or candidate are not usable.
        UserError: Variants that cannot be told apart.
    """
    study = schedule.study
    seen: dict[str, str] = {}
    for variant in study.variants:
        searches = schedule.searches(variant)
        one = searches[0] if searches else schedule.finals(variant)[0]
        other = seen.setdefault(one.key, variant)
        if other != variant:
            raise UserError(f"variants.{variant}: has the very settings of '{other}'; expected others")


def read_scores(record: Record, trials: list[Trial]) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Scores of final trials, as they were saved."""
    return [np.load(record.scores(trial.key)) for trial in trials]
