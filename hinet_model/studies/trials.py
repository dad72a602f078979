"""Trials of a study: which there are, in which order, and what makes two of them the same.

A trial is keyed by the code that decides its numbers, the version of its data and its settings. What was run is kept as
a file per key, so that a study that was stopped goes on where it was, and studies share the trials they have in common.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from feature_eng.snapshot import SnapshotRef
from foundation import stores
from foundation.settings import SettingsByPath
from hinet_model.studies.settings import StudySettings, overrides_of, run_settings

_PACKAGE = Path(__file__).resolve().parent.parent
_DECIDING = ("config.py", "settings.py", "data", "models", "nn", "objective", "training", "studies/trial.py")
"""What decides the numbers of a trial, below `hinet_model/`; the data are known by their own version."""

_ONE_CORE: SettingsByPath = {"training.threads_per_worker": 1, "training.workers": 1, "checkpoint.keep": 1}
_PACE = {"workers", "threads_per_worker", "device", "log_every_steps", "profile_steps", "table"}
"""Settings of the section `training` that do not decide the numbers of a trial."""


@cache
def code_digest() -> str:
    """Digest of the code that decides the numbers of a trial, whatever commit it is of."""
    files = sorted(
        file
        for part in _DECIDING
        for file in ((_PACKAGE / part).rglob("*") if (_PACKAGE / part).is_dir() else [_PACKAGE / part])
        if file.suffix in (".py", ".cpp")
    )
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(_PACKAGE).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def data_version(snapshot: SnapshotRef, digest: str) -> str:
    """Version of a table's rows and of how they lie: equal for equal data, made wherever and whenever.

    Args:
        snapshot: The pinned table.
        digest: Of its rows, as `jobs/build_features.py` recorded it.
    """
    layout = [(file.split, file.row_groups) for file in snapshot.files]
    known = json.dumps([digest, snapshot.encoder_digest, snapshot.schema_hash, layout])
    return hashlib.sha256(known.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Trial:
    """One training.

    Args:
        variant: What is compared.
        candidate: Name of its settings among those that are tried.
        seed: Of weights, order of rows and dropout.
        stage: ``search``: validated alone; ``final``: scored on the test rows too.
        overrides: All settings over those of the study's file, as ``--set`` takes them.
        key: What makes it the same as another.
    """

    variant: str
    candidate: str
    seed: int
    stage: str
    overrides: tuple[str, ...]
    key: str


class Record:
    """What trials gave, a file each; and the scores of those that were tested.

    Args:
        folder: Where studies keep what they have run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, trial: Trial) -> Path:
        """The trial's file."""
        return self.folder / "trials" / f"{trial.key}.json"

    def scores(self, key: str) -> Path:
        """Scores of the test rows, in the order of their ids. ``(R, N)``"""
        return self.folder / "scores" / f"{key}.npy"

    def of(self, trial: Trial) -> dict[str, Any] | None:
        """What a trial gave, ``None`` if it was not run to its end."""
        place = self.place(trial)
        if not place.exists() or (trial.stage == "final" and not self.scores(trial.key).exists()):
            return None
        found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        return found

    def keep(self, trial: Trial, outcome: Mapping[str, Any]) -> None:
        """Write down what a trial gave: whole, or not at all."""
        stores.write_text(str(self.place(trial)), json.dumps(outcome, indent=1))


def _best(validation: Iterable[float | None]) -> float:
    """The best of a trial's epochs, of those that were validated."""
    return max((value for value in validation if value is not None), default=-math.inf)


class Schedule:
    """The trials of a study.

    Args:
        study: The study.
        data: Version of its data.
        record: What was run.
    """

    def __init__(self, study: StudySettings, data: str, record: Record) -> None:
        self.study, self.data, self.record = study, data, record

    def searches(self, variant: str) -> list[Trial]:
        """The trials that choose a variant's settings; none where there is no choice."""
        candidates = self.study.candidates(variant)
        if len(candidates) < 2:
            return []
        search = self.study.search
        return [self._trial(variant, name, search.seed, "search", search.settings) for name in candidates]

    def chosen(self, variant: str) -> str | None:
        """The candidate with the best validation; ``None`` while some of its trials are missing."""
        trials = self.searches(variant)
        if not trials:
            return next(iter(self.study.candidates(variant)))
        outcomes = {trial.candidate: self.record.of(trial) for trial in trials}
        if None in outcomes.values():
            return None
        return max(outcomes, key=lambda name: _best((outcomes[name] or {})["validation"]))

    def finals(self, variant: str) -> list[Trial]:
        """The trials that are compared; none while the variant's settings are not chosen."""
        candidate = self.chosen(variant)
        if candidate is None:
            return []
        final = self.study.final
        return [self._trial(variant, candidate, seed, "final", final.settings) for seed in final.seeds]

    def waiting(self) -> Iterator[Trial]:
        """Trials that can be run now, in the order of the variants."""
        for variant in self.study.variants:
            for trial in (*self.searches(variant), *self.finals(variant)):
                if self.record.of(trial) is None:
                    yield trial

    def on_record(self) -> Iterator[tuple[Trial, Mapping[str, Any]]]:
        """Trials that were run, with what they gave."""
        for variant in self.study.variants:
            for trial in (*self.searches(variant), *self.finals(variant)):
                outcome = self.record.of(trial)
                if outcome is not None:
                    yield trial, outcome

    def count(self) -> tuple[int, int]:
        """How many trials there are in all, and how many were run."""
        searches = [trial for variant in self.study.variants for trial in self.searches(variant)]
        finals = [trial for variant in self.study.variants for trial in self.finals(variant)]
        total = len(searches) + len(self.study.variants) * len(self.study.final.seeds)
        return total, sum(self.record.of(trial) is not None for trial in (*searches, *finals))

    def _trial(self, variant: str, candidate: str, seed: int, stage: str, of_stage: SettingsByPath) -> Trial:
        study = self.study
        groups = (
            study.settings,
            study.variants[variant],
            study.candidates(variant)[candidate],
            of_stage,
            {"training.seed": seed, **_ONE_CORE},
        )
        settings = run_settings(study.config, *groups)
        training = {
            key: value for key, value in settings.training.model_dump(mode="json").items() if key not in _PACE
        }
        deciding = {
            "code": code_digest(),
            "data": self.data,
            "model": settings.model.model_dump(mode="json"),
            "loss": settings.loss.model_dump(mode="json"),
            "optimiser": settings.optimiser.model_dump(mode="json"),
            "training": training,
        }
        key = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]
        # Where runs are recorded is no trial's affair, and may hold a password.
        told = tuple(one for one in overrides_of(*groups) if not one.startswith("mlflow"))
        return Trial(variant, candidate, seed, stage, told, key)
