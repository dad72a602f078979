"""Findings: what a study has found, in numbers: of each variant, of each of its cells, of the study as a whole."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from foundation.settings import UserError
from hinet_model.studies.comparing import (
    Estimate,
    Mask,
    Standing,
    TestRows,
    difference,
    estimate,
    every_cell,
    holm,
    verdict,
)
from hinet_model.studies.running import read_scores
from hinet_model.studies.settings import StudySettings
from hinet_model.studies.trials import Schedule, Trial

ORACLE = "oracle"
_AGREE = 1e-9


@dataclass(frozen=True)
class Facts:
    """What was studied, on what, where.

    Args:
        name: Of the study's file.
        command: That makes the page again.
        contract: Of the data.
        rows: Split -> rows.
        scenarios: Names.
        tasks: Names.
        made_at: ISO 8601.
        machine: In words.
        planted: Planted similarity of scenarios, of data that are made. ``(M, M)``
    """

    name: str
    command: str
    contract: str
    rows: Mapping[str, int]
    scenarios: Sequence[str]
    tasks: Sequence[str]
    made_at: str
    machine: str
    planted: npt.NDArray[np.float64] | None = None

    @property
    def cells(self) -> tuple[tuple[str, str], ...]:
        """Scenario and task of each cell."""
        return tuple((scenario, task) for scenario in self.scenarios for task in self.tasks)


@dataclass(frozen=True)
class Compared:
    """A variant on some cells.

    Args:
        auc: Its mean AUC.
        change: Less that of the reference, paired; ``None`` for the reference itself.
        adjusted: The change's p-value by Holm's correction.
        way: Share of the way from the study's start to the oracle; NaN without, or where there is hardly any way.
    """

    auc: Estimate
    change: Estimate | None
    adjusted: float
    way: float

    @property
    def verdict(self) -> str:
        """``ahead``, ``behind``, ``tie``; empty for the reference."""
        return "" if self.change is None else verdict(self.change.value, self.adjusted)


@dataclass(frozen=True)
class VariantRow:
    """One variant as the study's tables have it.

    Args:
        variant: Its name.
        candidate: The settings that were chosen.
        overall: On all cells.
        cells: On each, in order.
        outcomes: What its final trials gave, seed by seed.
        searched: CPU-seconds of its search.
    """

    variant: str
    candidate: str
    overall: Compared
    cells: tuple[Compared, ...]
    outcomes: Sequence[Mapping[str, Any]]
    searched: float

    @property
    def rows_per_cpu_second(self) -> float:
        """Training rows for each second of a core, validation included; median over seeds."""
        return float(statistics.median(one["rows"] / max(one["cpu_seconds"], 0.1) for one in self.outcomes))

    @property
    def cpu_seconds(self) -> float:
        """Of all its trials, whole processes."""
        return self.searched + sum(float(one["process_seconds"]) for one in self.outcomes)


class Findings:
    """What a study has found so far: the variants whose final trials are all done.

    Args:
        schedule: The study's trials.
        facts: What else there is to say.
        rows: The test rows.

    Raises:
        UserError: The reference is not done, or scores are not of these rows.
    """

    def __init__(self, schedule: Schedule, facts: Facts, rows: TestRows) -> None:
        self.facts, self.test_rows = facts, rows
        self.schedule = schedule
        self.trials: list[tuple[Trial, Mapping[str, Any]]] = []
        self.standings: dict[str, Standing] = {}
        for variant in self.study.variants:
            searches = [(trial, schedule.record.of(trial)) for trial in schedule.searches(variant)]
            finals = [(trial, schedule.record.of(trial)) for trial in schedule.finals(variant)]
            self.trials += [(trial, found) for trial, found in (*searches, *finals) if found is not None]
            if finals and all(found is not None for _, found in finals):
                self.standings[variant] = self._standing([trial for trial, _ in finals])
        if self.study.reference not in self.standings:
            raise UserError(
                f"reference: the trials of '{self.study.reference}' are not done; run the study to its end"
            )
        if rows.truth is not None:
            self.standings[ORACLE] = Standing.of(rows, [rows.truth], len(facts.scenarios))

    @property
    def study(self) -> StudySettings:
        """The study's settings."""
        return self.schedule.study

    @cached_property
    def defined(self) -> Mask:
        """Cells in which every standing has an AUC. ``(M, N)``"""
        found = [every_cell(standing) for standing in self.standings.values()]
        defined: Mask = np.stack(found).all(axis=0)
        return defined

    @cached_property
    def variants(self) -> tuple[VariantRow, ...]:
        """The variants, best first, each comparison corrected for all the others of its kind."""
        names = [name for name in self.standings if name != ORACLE]
        masks = [self._one(place) for place in range(len(self.facts.cells))]
        overall = self._corrected({(name, -1): self._compared(name, self.defined) for name in names})
        cells = self._corrected(
            {(name, place): self._compared(name, mask) for name in names for place, mask in enumerate(masks)}
        )
        rows = [
            VariantRow(
                variant=name,
                candidate=self.schedule.chosen(name) or "",
                overall=overall[name, -1],
                cells=tuple(cells[name, place] for place in range(len(masks))),
                outcomes=[
                    found for trial, found in self.trials if trial.variant == name and trial.stage == "final"
                ],
                searched=sum(
                    found["process_seconds"]
                    for trial, found in self.trials
                    if trial.variant == name and trial.stage == "search"
                ),
            )
            for name in names
        ]
        return tuple(sorted(rows, key=lambda row: -row.overall.auc.value))

    @cached_property
    def oracle(self) -> tuple[Compared, tuple[Compared, ...]] | None:
        """The oracle on all cells, and on each."""
        if ORACLE not in self.standings:
            return None
        masks = [self._one(place) for place in range(len(self.facts.cells))]
        return self._compared(ORACLE, self.defined), tuple(self._compared(ORACLE, mask) for mask in masks)

    def row(self, variant: str) -> VariantRow:
        """One variant's row."""
        return next(row for row in self.variants if row.variant == variant)

    @property
    def commits(self) -> list[str]:
        """Commits that the trials were run on."""
        return sorted({str(found["commit"]) for _, found in self.trials})

    @property
    def days(self) -> tuple[str, str]:
        """When the first and the last trial were finished."""
        times = sorted(str(found["finished_at"])[:10] for _, found in self.trials)
        return times[0], times[-1]

    @property
    def cpu_hours(self) -> float:
        """Of all trials; those that another study has run too are counted here as well."""
        return sum(float(found["process_seconds"]) for _, found in self.trials) / 3600

    def _standing(self, trials: list[Trial]) -> Standing:
        scores = read_scores(self.schedule.record, trials)
        standing = Standing.of(self.test_rows, scores, len(self.facts.scenarios))
        for trial, aucs in zip(trials, standing.auc, strict=True):
            found = self.schedule.record.of(trial) or {}
            recorded = [cell["auc"] for cell in found["test"]]
            again = [None if math.isnan(auc) else auc for auc in aucs.reshape(-1).tolist()]
            if any(
                (one is None) != (other is None) or (one is not None and abs(one - other) > _AGREE)
                for one, other in zip(recorded, again, strict=True)
            ):
                raise UserError(
                    f"scores of trial {trial.key} ({trial.variant}, seed {trial.seed}) are not of these test rows: its "
                    "AUCs come out otherwise than when it was run; remove its file and run the study again"
                )
        return standing

    def _one(self, place: int) -> Mask:
        mask = np.zeros_like(self.defined)
        mask.reshape(-1)[place] = self.defined.reshape(-1)[place]
        return mask

    def _compared(self, name: str, cells: Mask) -> Compared:
        rows, reference = self.test_rows, self.study.reference
        auc = estimate(rows, self.standings[name], cells)
        change = None
        if name != reference:
            change = difference(rows, self.standings[name], self.standings[reference], cells)
        return Compared(auc, change, math.nan, self._way(name, cells))

    def _way(self, name: str, cells: Mask) -> float:
        start = self.study.start
        if ORACLE not in self.standings or start is None or start not in self.standings:
            return math.nan
        oracle, first = self.standings[ORACLE], self.standings[start]
        whole = difference(self.test_rows, oracle, first, cells)
        if not whole.value > whole.half_rows:
            return math.nan
        gained = difference(self.test_rows, self.standings[name], first, cells)
        return gained.value / whole.value

    @staticmethod
    def _corrected(found: Mapping[tuple[str, int], Compared]) -> dict[tuple[str, int], Compared]:
        changes = {key: one.change.p_value for key, one in found.items() if one.change is not None}
        adjusted = dict(zip(changes, holm(list(changes.values())), strict=True))
        return {key: replace(one, adjusted=adjusted.get(key, math.nan)) for key, one in found.items()}
