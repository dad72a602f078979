"""Comparing: what trials say of variants, over seeds and over test rows apart, and what is more than noise.

Shape letters in this file:
    R  test rows   M  scenarios   N  tasks   S  seeds

An AUC is a mean over pairs of rows. What one row adds to it, less the mean, is its *influence*: the sum of squared
influences is the variance that DeLong gives, and sums and differences of AUCs have the sums and differences of
influences. Rows of a user are much alike, so that influences are added up by user before they are squared.

Source: DeLong, DeLong and Clarke-Pearson (Biometrics 1988); Holm (Scandinavian Journal of Statistics 1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

CONFIDENCE = 0.95
SIGNIFICANT = 1 - CONFIDENCE


@dataclass(frozen=True)
class TestRows:
    """The rows that all final trials are scored on, by ascending ``row_id``.

    Args:
        scenario: Position of each row's scenario. ``(R,)``
        user: A number per user. ``(R,)``
        labels: 0 or 1; below 0 where there is none. ``(R, N)``
        truth: True probabilities, of data that are made; else ``None``. ``(R, N)``
    """

    __test__ = False  # pytest would take it for a test

    scenario: Ints
    user: Ints
    labels: Array
    truth: Array | None = None

    def save(self, place: Path) -> None:
        """Write them down."""
        place.parent.mkdir(parents=True, exist_ok=True)
        known = {} if self.truth is None else {"truth": self.truth}
        draft = place.with_name(f".{place.name}")
        with draft.open("wb") as file:
            np.savez(file, scenario=self.scenario, user=self.user, labels=self.labels, **known)
        draft.replace(place)

    @classmethod
    def load(cls, place: Path) -> TestRows:
        """Read what :meth:`save` wrote."""
        with np.load(place) as found:
            return cls(**{name: found[name] for name in found.files})


@dataclass(frozen=True)
class Standing:
    """How one variant did on the test rows.

    Args:
        auc: Of each seed, scenario and task; NaN where a cell has one class. ``(S, M, N)``
        influence: Of each row, averaged over seeds; zero where a row has no part. ``(R, N)``
    """

    auc: Array
    influence: Array

    @classmethod
    def of(
        cls, rows: TestRows, scores: Sequence[npt.NDArray[np.floating[Any]]], num_scenarios: int
    ) -> Standing:
        """From the scores of each seed, ``(R, N)`` each."""
        aucs, influence = [], np.zeros(rows.labels.shape)
        for of_seed in scores:
            found, part = influences(rows, np.asarray(of_seed, dtype=np.float64), num_scenarios)
            aucs.append(found)
            influence += part / len(scores)
        return cls(np.stack(aucs), influence)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, with what seeds and test rows leave open, apart.

    Args:
        value: The mean; NaN where it is not defined.
        se_seeds: Standard error by what other seeds would give; NaN with one seed.
        se_rows: Standard error by what other users' test rows would give.
        seeds: How many.
    """

    value: float
    se_seeds: float
    se_rows: float
    seeds: int

    @property
    def half_seeds(self) -> float:
        """Half of the 95 % interval over seeds (Student's t)."""
        if self.seeds < 2:
            return math.nan
        return float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, self.seeds - 1)) * self.se_seeds

    @property
    def half_rows(self) -> float:
        """Half of the 95 % interval over test rows, by user."""
        return float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2)) * self.se_rows

    @property
    def p_value(self) -> float:
        """Chance of a value as far from zero if there were nothing but seeds and rows; NaN where not defined.

        Both variances together; degrees of freedom by Welch and Satterthwaite, those of rows being many.
        """
        of_seeds = 0.0 if self.seeds < 2 else self.se_seeds**2
        variance = of_seeds + self.se_rows**2
        if math.isnan(self.value) or math.isnan(variance):
            return math.nan
        if variance == 0:
            return 1.0 if self.value == 0 else 0.0
        freedom = math.inf if of_seeds == 0 else variance**2 / (of_seeds**2 / (self.seeds - 1))
        return float(2 * scipy.stats.t.sf(abs(self.value) / math.sqrt(variance), freedom))


def influences(rows: TestRows, scores: Array, num_scenarios: int) -> tuple[Array, Array]:
    """AUC of each cell ``(M, N)``, and each row's influence on its cells' ``(R, N)``."""
    num_tasks = rows.labels.shape[1]
    aucs = np.full((num_scenarios, num_tasks), math.nan)
    influence = np.zeros(rows.labels.shape)
    for scenario in range(num_scenarios):
        for task in range(num_tasks):
            chosen = np.flatnonzero((rows.scenario == scenario) & (rows.labels[:, task] >= 0))
            positive = rows.labels[chosen, task] > 0.5
            counts = np.array([(~positive).sum(), positive.sum()])
            if counts.min() == 0:
                continue
            placement = _placements(scores[chosen, task], positive)
            aucs[scenario, task] = placement[positive].mean()
            influence[chosen, task] = (placement - aucs[scenario, task]) / counts[positive.astype(int)]
    return aucs, influence


def _placements(score: Array, positive: Mask) -> Array:
    """For a positive the share of negatives below it, for a negative that of positives above it; ties count half."""
    rank = scipy.stats.rankdata(score)
    placement = np.empty(len(score))
    for own, others in ((positive, ~positive), (~positive, positive)):
        # Of all that are below, those of the other class.
        below = (rank[own] - scipy.stats.rankdata(score[own])) / others.sum()
        placement[own] = below if own is positive else 1 - below
    return placement


def every_cell(standing: Standing) -> Mask:
    """The cells in which the AUC is defined."""
    missing: Mask = np.isnan(standing.auc).any(axis=0)
    return ~missing


def estimate(rows: TestRows, standing: Standing, cells: Mask) -> Estimate:
    """A variant's mean AUC over some cells. ``cells``: ``(M, N)``."""
    return _estimate(rows, standing.auc, standing.influence, cells)


def difference(rows: TestRows, one: Standing, other: Standing, cells: Mask) -> Estimate:
    """Mean AUC of one variant less that of another, seed by seed and row by row.

    A standing of one seed, such as the oracle's, is held against each seed of the other.
    """
    return _estimate(rows, one.auc - other.auc, one.influence - other.influence, cells)


def _estimate(rows: TestRows, auc: Array, influence: Array, cells: Mask) -> Estimate:
    count = int(cells.sum())
    if count == 0:
        return Estimate(math.nan, math.nan, math.nan, len(auc))
    of_seed = auc[:, cells].mean(axis=1)
    seeds = len(of_seed)
    se_seeds = float(of_seed.std(ddof=1)) / math.sqrt(seeds) if seeds > 1 else math.nan
    of_row = np.where(cells[rows.scenario], influence, 0.0).sum(axis=1) / count
    _, user = np.unique(rows.user, return_inverse=True)
    of_user = np.bincount(user, weights=of_row)
    # Users of other scenarios have no part, and must not count as users.
    num_users = np.count_nonzero(np.bincount(user, weights=cells[rows.scenario].any(axis=1)))
    larger = num_users / max(num_users - 1, 1)
    return Estimate(float(of_seed.mean()), se_seeds, math.sqrt(larger * float((of_user**2).sum())), seeds)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: values at which each of several comparisons can be called more than noise; NaN stays."""
    given = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(given), math.nan)
    defined = np.flatnonzero(~np.isnan(given))
    order = defined[np.argsort(given[defined], kind="stable")]
    least = 0.0
    for place, which in enumerate(order):
        least = max(least, min(1.0, (len(order) - place) * given[which]))
        adjusted[which] = least
    return [float(value) for value in adjusted]


def verdict(value: float, adjusted: float) -> str:
    """``ahead``, ``behind`` or ``tie``: whether a difference is more than noise."""
    if math.isnan(adjusted) or adjusted >= SIGNIFICANT:
        return "tie"
    return "ahead" if value > 0 else "behind"


def rank_correlation(learned: Array, planted: Array) -> float:
    """Mean over scenarios of Spearman's correlation between how much it listens to others and how much it should.

    Args:
        learned: Attention table ``(M, M)``.
        planted: Similarity of scenarios ``(M, M)``.

    Returns:
        NaN for fewer than three scenarios, whose others have no order.
    """
    num = len(learned)
    if num < 3:
        return math.nan
    others = ~np.eye(num, dtype=bool)
    found = [
        scipy.stats.spearmanr(learned[m, others[m]], planted[m, others[m]]).statistic for m in range(num)
    ]
    return float(np.nanmean(found)) if not np.isnan(found).all() else math.nan


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval over seeds; the half NaN for fewer than two."""
    found = Estimate(
        float(np.mean(values)),
        float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan,
        0.0,
        len(values),
    )
    return found.value, found.half_seeds
