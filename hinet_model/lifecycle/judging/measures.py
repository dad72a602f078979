"""Measures: sums of a cell made into metrics, each with its 95 % interval and the method that it comes by.

What is not defined (an AUC of one class, say) has no value, a reason instead, and is left out of means: never 0 or NaN.

- AUC: DeLong's variance, on the logit scale; a difference of two models on the same rows by their covariance, as it is.
  Weighted rows enter by their influence: with equal weights that is DeLong's variance itself.
- All else, and means over cells: bootstrap by user (`hinet_model.lifecycle.judging.sums`), normal with the resamples'
  standard deviation. For AUC and PR-AUC a resample is judged by the steps of the score distribution.

Source: DeLong, DeLong and Clarke-Pearson (Biometrics 1988); logit scale: Pepe (2003), section 5.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.special

from hinet_model.lifecycle.judging.ranks import Floats
from hinet_model.lifecycle.judging.sums import Shape, Sums

CONFIDENCE = 0.95
METRICS = ("auc", "gauc", "pr_auc", "log_loss", "normalised_entropy", "pcoc", "ece", "ndcg", "mrr")
_BOUNDS = dict.fromkeys(("auc", "gauc", "pr_auc", "ece", "ndcg", "mrr"), (0.0, 1.0))
# Resamples without a positive have no metric; from so few defined ones no deviation is taken.
_LEAST_DEFINED = 0.9


@dataclass(frozen=True)
class Measure:
    """One metric of one model on one cell, or a difference of two models.

    Attributes:
        value: ``None`` where it is not defined.
        low, high: Ends of the 95 % interval; ``None`` where there is none.
        se: Standard error that the interval rests on, on the scale of the value.
        method: ``delong`` or ``bootstrap by user``; empty without an interval.
        why: Why there is no value, or no interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    se: float | None = None
    method: str = ""
    why: str = ""


@dataclass(frozen=True)
class CellSums:
    """What is known of one cell once all its rows are summed; small, whatever the rows.

    Args:
        fixed: By `Shape.fixed`.
        plain: By `Shape.linear`, steps and bins, each user counted once. ``(shape.rows,)``
        samples: Metrics of each contestant, by `METRICS`: of the rows as they are, then of each resample; NaN where not
            defined. ``(C, len(METRICS), 1 + replicates)``
    """

    fixed: Floats
    plain: Floats
    samples: Floats

    def count(self, shape: Shape, name: str) -> int:
        """``rows``, ``positives``, ``users`` or ``lists``."""
        return round(float(self.fixed[shape.fixed[name]]))

    @classmethod
    def of(cls, sums: Sums, shape: Shape) -> CellSums:
        """Work out every metric of every resample."""
        samples = np.stack([_samples(sums, shape, c) for c in range(shape.contestants)])
        return cls(sums.fixed, sums.weighed[:, 0].copy(), samples)

    @classmethod
    def empty(cls, shape: Shape) -> CellSums:
        """A cell without rows."""
        return cls.of(Sums(np.zeros(len(shape.fixed)), np.zeros((shape.rows, 1 + shape.replicates))), shape)


def _samples(sums: Sums, shape: Shape, c: int) -> Floats:
    """The metrics of one contestant, of each resample. ``(len(METRICS), 1 + replicates)``"""
    where, weighed = shape.linear, sums.weighed
    weight, positive = weighed[where["weight"]], weighed[where["positive_weight"]]
    steps = weighed[shape.steps_at(c) :][: 2 * shape.steps].reshape(2, shape.steps, -1)
    bins = weighed[shape.bins_at(c) :][: 3 * shape.bins].reshape(3, shape.bins, -1)
    _, positive_in_bin, prob_in_bin = bins
    with np.errstate(invalid="ignore", divide="ignore"):
        log_loss = weighed[where[f"log_loss/{c}"]] / weight
        base = positive / weight
        entropy = -(scipy.special.xlogy(base, base) + scipy.special.xlog1py(1 - base, -base))
        named = {
            "auc": _auc_of_steps(*steps),
            "gauc": weighed[where[f"user_auc/{c}"]] / weighed[where["user_weight"]],
            "pr_auc": _pr_auc_of_steps(*steps),
            "log_loss": log_loss,
            "normalised_entropy": log_loss / np.where(entropy > 0, entropy, np.nan),
            "pcoc": weighed[where[f"prob/{c}"]] / np.where(positive > 0, positive, np.nan),
            "ece": np.abs(prob_in_bin - positive_in_bin).sum(axis=0) / weight,
            "ndcg": weighed[where[f"ndcg/{c}"]] / weighed[where["lists_with_positive"]],
            "mrr": weighed[where[f"reciprocal_rank/{c}"]] / weighed[where["lists_with_positive"]],
        }
    samples: Floats = np.stack([np.where(np.isfinite(named[name]), named[name], np.nan) for name in METRICS])
    # Steps are an approximation; the rows as they are have the exact value, and carry the resamples along.
    for name, exact in (("auc", exact_auc(sums.fixed, sums.weighed[:, 0], shape, c)),
                        ("pr_auc", _exact_pr_auc(sums.fixed, sums.weighed[:, 0], shape, c))):  # fmt: skip
        row = METRICS.index(name)
        samples[row] += exact - samples[row, 0]
        samples[row, 0] = exact
    return samples


def _auc_of_steps(negative: Floats, positive: Floats) -> Floats:
    """AUC of each resample where scores of a step are equal. ``(steps, R)`` twice -> ``(R,)``"""
    below = np.cumsum(negative, axis=0) - negative / 2
    result: Floats = (positive * below).sum(axis=0) / (positive.sum(axis=0) * negative.sum(axis=0))
    return result


def _pr_auc_of_steps(negative: Floats, positive: Floats) -> Floats:
    """Average precision of each resample where scores of a step are equal."""
    hits = positive[::-1].cumsum(axis=0)[::-1]
    shown = hits + negative[::-1].cumsum(axis=0)[::-1]
    precision = np.divide(hits, shown, out=np.zeros_like(hits), where=shown > 0)
    result: Floats = (positive * precision).sum(axis=0) / positive.sum(axis=0)
    return result


def _class_weights(plain: Floats, shape: Shape, fixed: Floats) -> tuple[float, float]:
    """Weight of negatives and of positives; exactly zero for a class without rows."""
    positives, rows = fixed[shape.fixed["positives"]], fixed[shape.fixed["rows"]]
    steps = plain[shape.steps_at(0) :][: 2 * shape.steps]
    negative, positive = steps[: shape.steps].sum(), steps[shape.steps :].sum()
    return float(negative) if rows > positives else 0.0, float(positive) if positives else 0.0


def exact_auc(fixed: Floats, plain: Floats, shape: Shape, c: int) -> float:
    """The AUC from placements; NaN with one class."""
    negative, positive = _class_weights(plain, shape, fixed)
    if not negative or not positive:
        return math.nan
    return 0.5 + float(fixed[shape.fixed[f"placement/1/{c}"]]) / positive


def _exact_pr_auc(fixed: Floats, plain: Floats, shape: Shape, c: int) -> float:
    _, positive = _class_weights(plain, shape, fixed)
    return float(fixed[shape.fixed[f"precision/{c}"]]) / positive if positive else math.nan


def delong_covariance(cell: CellSums, shape: Shape) -> Floats | None:
    """Covariance of the contestants' AUCs; ``None`` with fewer than two rows of a class. ``(C, C)``"""
    positives = cell.count(shape, "positives")
    rows_of = (cell.count(shape, "rows") - positives, positives)
    if min(rows_of) < 2:
        return None
    totals = _class_weights(cell.plain, shape, cell.fixed)
    covariance = np.zeros((shape.contestants, shape.contestants))

    def of(name: str) -> float:
        return float(cell.fixed[shape.fixed[name]])

    aucs = [exact_auc(cell.fixed, cell.plain, shape, c) - 0.5 for c in range(shape.contestants)]
    for c in range(shape.contestants):
        for d in range(c, shape.contestants):
            for side in (0, 1):
                product = (
                    of(f"product/{side}/{c}/{d}")
                    - aucs[c] * of(f"square_placement/{side}/{d}")
                    - aucs[d] * of(f"square_placement/{side}/{c}")
                    + aucs[c] * aucs[d] * of(f"squares/{side}")
                )
                covariance[c, d] += product / totals[side] ** 2 * rows_of[side] / (rows_of[side] - 1)
            covariance[d, c] = covariance[c, d]
    return covariance


def measures(cell: CellSums, shape: Shape, c: int) -> dict[str, Measure]:
    """Every metric of one contestant on one cell."""
    found = {name: bootstrapped(name, cell.samples[c, row]) for row, name in enumerate(METRICS)}
    found["auc"] = _delong(cell, shape, c)
    whys = _whys(cell, shape)
    for name, why in whys.items():
        if found[name].value is None:
            found[name] = Measure(None, why=why)
    if not shape.lists_at:
        del found["ndcg"], found["mrr"]
    return found


def differences(cell: CellSums, shape: Shape, c: int, d: int) -> dict[str, Measure]:
    """Every metric of contestant ``c`` less that of ``d``, paired: on the same rows, users and resamples.

    ``auc_by_user`` is the difference in AUC with the bootstrap's interval, for rows of a user that are much alike.
    """
    found = {
        name: bootstrapped(name, cell.samples[c, row] - cell.samples[d, row], difference=True)
        for row, name in enumerate(METRICS)
    }
    found["auc_by_user"] = found["auc"]
    value, covariance = found["auc"].value, delong_covariance(cell, shape)
    if value is not None and covariance is not None:
        variance = covariance[c, c] + covariance[d, d] - 2 * covariance[c, d]
        se = math.sqrt(max(float(variance), 0.0))
        half = _Z * se
        found["auc"] = Measure(value, value - half, value + half, se, "delong")
    elif value is not None:
        found["auc"] = Measure(value, why="fewer than two rows of a class")
    for name, why in _whys(cell, shape).items():
        if found[name].value is None:
            found[name] = Measure(None, why=why)
    if found["auc"].value is None:
        found["auc_by_user"] = found["auc"]
    if not shape.lists_at:
        del found["ndcg"], found["mrr"]
    return found


_Z = float(scipy.special.ndtri((1 + CONFIDENCE) / 2))


def _delong(cell: CellSums, shape: Shape, c: int) -> Measure:
    value = exact_auc(cell.fixed, cell.plain, shape, c)
    if math.isnan(value):
        return Measure(None)
    covariance = delong_covariance(cell, shape)
    if covariance is None:
        return Measure(value, why="fewer than two rows of a class")
    se = math.sqrt(max(float(covariance[c, c]), 0.0))
    if not 0 < value < 1 or se == 0:
        return Measure(value, why="the classes do not overlap, which leaves no variance to go by")
    at, half = scipy.special.logit(value), _Z * se / (value * (1 - value))
    low, high = float(scipy.special.expit(at - half)), float(scipy.special.expit(at + half))
    return Measure(value, low, high, se, "delong")


def bootstrapped(name: str, samples: Floats, *, difference: bool = False) -> Measure:
    """A metric from its value on the rows as they are (first) and on the resamples."""
    value, resampled = float(samples[0]), samples[1:][~np.isnan(samples[1:])]
    if math.isnan(value):
        return Measure(None)
    if len(resampled) < _LEAST_DEFINED * (len(samples) - 1) or len(resampled) < 2:
        return Measure(value, why="too many resamples in which it is not defined")
    se = float(resampled.std(ddof=1))
    half = float(scipy.special.stdtrit(len(resampled) - 1, (1 + CONFIDENCE) / 2)) * se
    least, most = (-math.inf, math.inf) if difference else _BOUNDS.get(name, (0.0, math.inf))
    return Measure(value, max(value - half, least), min(value + half, most), se, "bootstrap by user")


def _whys(cell: CellSums, shape: Shape) -> dict[str, str]:
    """Why a metric has no value on this cell, if it has none."""
    rows, positives = cell.count(shape, "rows"), cell.count(shape, "positives")
    counted = f"{rows:,} rows, {positives:,} positives"
    empty = "no rows" if not rows else ""
    one_class = empty or f"one class only ({counted})"
    no_positive = empty or f"no positives ({counted})"
    return {
        "auc": one_class,
        "gauc": empty or f"no user has both classes ({counted})",
        "pr_auc": no_positive,
        "log_loss": empty,
        "normalised_entropy": one_class,
        "pcoc": no_positive,
        "ece": empty,
        "ndcg": empty or f"no list has a positive ({counted})",
        "mrr": empty or f"no list has a positive ({counted})",
    }


def mean_samples(cells: Sequence[CellSums], c: int) -> Floats:
    """Metrics of one contestant averaged over the cells in which each is defined, resample by resample."""
    stacked = np.stack([cell.samples[c] for cell in cells])
    # A cell counts where its own value is defined; a resample in which it is not is left out as a whole.
    defined = ~np.isnan(stacked[:, :, :1])
    counted = defined.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Floats = np.where(defined, stacked, 0.0).sum(axis=0) / counted
    return result
