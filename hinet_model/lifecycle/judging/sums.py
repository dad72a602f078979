"""Sums: what the rows of some users add to every metric of every cell, under bootstrap weights too.

All metrics but the AUC's variance are functions of sums over users. So a resample of users is a weight per user, and a
resampled metric is the same function of the weighted sums: the *Poisson bootstrap*, in which every user counts a
Poisson(1) number of times. The numbers are drawn from the user's own hash: wherever a user's rows lie, and in
whichever cell, they are the same, so that differences of models and means over cells can be formed resample by
resample.

Source: Chamandy, Muralidharan, Najmi, Naidu: Estimating Uncertainty for Massive Data Streams (2012).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.special

from hinet_model.lifecycle.judging.lists import list_quality, lists_of
from hinet_model.lifecycle.judging.ranks import Floats, Ints

SMALLEST_PROB = 1e-7
"""Probabilities are held this far from 0 and 1 in the log-loss, as float32 scores can reach both."""
_USERS_AT_ONCE = 16_384
_CENTRE = 0.5


@dataclass(frozen=True)
class Shape:
    """What is summed, and where it stands in the sums.

    Args:
        contestants: Models that are judged side by side.
        bins: Bins of equal weight of the reliability curve and the ECE.
        steps: Steps of the score distribution (`ranks.Ranking`).
        replicates: Resamples of the users.
        lists_at: Length ``k`` at which lists are judged (NDCG@k); 0 where rows form no lists.
    """

    contestants: int
    bins: int = 15
    steps: int = 100
    replicates: int = 200
    lists_at: int = 0

    @cached_property
    def linear(self) -> dict[str, int]:
        """Row of each sum that the resamples re-weigh, but for those of bins and steps."""
        names = ["weight", "positive_weight", "user_weight", "lists_with_positive"]
        each = ("log_loss", "prob", "user_auc", "ndcg", "reciprocal_rank")
        names += [f"{name}/{c}" for c in range(self.contestants) for name in each]
        return {name: place for place, name in enumerate(names)}

    def steps_at(self, contestant: int) -> int:
        """First row of a contestant's steps: negatives, then positives."""
        return len(self.linear) + contestant * 2 * self.steps

    def bins_at(self, contestant: int) -> int:
        """First row of a contestant's bins: weight, positive weight, weighted probability."""
        return self.steps_at(self.contestants) + contestant * 3 * self.bins

    @property
    def rows(self) -> int:
        """Rows of the re-weighed sums."""
        return self.bins_at(self.contestants)

    @cached_property
    def fixed(self) -> dict[str, int]:
        """Place of each sum that is formed once."""
        names = ["rows", "positives", "users", "lists", "squares/1", "squares/0"]
        for c in range(self.contestants):
            names += [f"precision/{c}"]
            for side in (1, 0):
                names += [f"placement/{side}/{c}", f"square_placement/{side}/{c}"]
                names += [f"product/{side}/{c}/{d}" for d in range(c, self.contestants)]
        return {name: place for place, name in enumerate(names)}


@dataclass(frozen=True)
class Entries:
    """Rows of some users, each once per cell that it counts in.

    Args:
        cell, user, listed: Cell, hash of the user, hash of the list. ``(R,)``
        positive: Whether the label is 1. ``(R,)``
        weight: Above 0. ``(R,)``
        score: Probabilities. ``(C, R)``
        placement, precision, bin, step: As `ranks.Places` has them. ``(C, R)``
    """

    cell: Ints
    user: Ints
    listed: Ints
    positive: npt.NDArray[np.bool_]
    weight: Floats
    score: Floats
    placement: Floats
    precision: Floats
    bin: Ints
    step: Ints

    def take(self, order: Ints) -> Entries:
        """The entries in another order."""
        taken = {name: getattr(self, name)[..., order] for name in self.__dataclass_fields__}
        return Entries(**taken)


@dataclass(frozen=True)
class Sums:
    """Of one cell: sums that are formed once, and those that every resample re-weighs.

    Args:
        fixed: By `Shape.fixed`.
        weighed: By `Shape.linear`, steps and bins; the first column counts each user once. ``(rows, 1 + replicates)``
    """

    fixed: Floats
    weighed: Floats


def add_up(entries: Entries, shape: Shape) -> dict[int, Sums]:
    """Sums of each cell over these users, all of whose rows must be here."""
    entries = entries.take(np.lexsort((entries.cell, entries.user)))
    cells, cell = np.unique(entries.cell, return_inverse=True)
    first = np.flatnonzero(
        np.r_[True, (np.diff(entries.user) != 0) | (np.diff(entries.cell) != 0)][: len(cell)]
    )
    # A unit is what one user has in one cell.
    unit = np.repeat(np.arange(len(first)), np.diff(np.r_[first, len(cell)]))
    users, user_of_unit = np.unique(entries.user[first], return_inverse=True)
    dense, lists = _unit_sums(entries, unit, len(first), shape)
    fixed = _fixed_sums(entries, cell, len(cells), shape)
    unit_cell = cell[first]
    fixed[:, shape.fixed["users"]] = np.bincount(unit_cell, minlength=len(cells))
    fixed[:, shape.fixed["lists"]] = np.bincount(unit_cell, weights=lists, minlength=len(cells))

    parts = [(unit_cell * shape.rows + row, user_of_unit, values) for row, values in dense.items()]
    parts += _binned(entries, cell, user_of_unit[unit], shape)
    row, column, value = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
    matrix = scipy.sparse.csc_matrix((value, (row, column)), shape=(len(cells) * shape.rows, len(users)))
    weighed = np.zeros((len(cells) * shape.rows, 1 + shape.replicates))
    for start in range(0, len(users), _USERS_AT_ONCE):
        some = slice(start, start + _USERS_AT_ONCE)
        weighed += matrix[:, some].tocsr() @ resample_weights(users[some], shape.replicates)
    by_cell = weighed.reshape(len(cells), shape.rows, -1)
    return {int(name): Sums(fixed[place], by_cell[place]) for place, name in enumerate(cells)}


def resample_weights(users: Ints, replicates: int) -> Floats:
    """How often each user counts in each resample: 1 in the first column, then Poisson(1) draws.

    Args:
        users: Hashes. ``(U,)``
        replicates: Resamples ``R``.

    Shape:
        ``(U, 1 + R)``
    """
    counters = np.arange(1, -(-replicates // 4) + 1, dtype=np.uint64)
    # splitmix64 (Steele, Lea, Flood 2014), each value giving four draws of sixteen bits.
    z = users.astype(np.uint64)[:, None] + counters * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    draws = _POISSON[z.view(np.uint16)[:, :replicates]]
    return np.concatenate([np.ones((len(users), 1)), draws], axis=1)


# The inverse of the distribution function at the middle of each sixteen-bit step.
_POISSON: Floats = np.searchsorted(
    scipy.special.pdtr(np.arange(20), 1.0), (np.arange(2**16) + 0.5) / 2**16
).astype(np.float64)


def _unit_sums(entries: Entries, unit: Ints, units: int, shape: Shape) -> tuple[dict[int, Floats], Floats]:
    """By row of the re-weighed sums: its value of each unit; and the lists of each unit."""

    def total(values: npt.NDArray[Any]) -> Floats:
        return _totals(unit, values, units)

    weight, positive = entries.weight, entries.positive
    where = shape.linear
    unit_weight, unit_positive = total(weight), total(np.where(positive, weight, 0.0))
    # Summed by itself: a difference of sums need not be zero where there is no negative.
    unit_negative = total(np.where(positive, 0.0, weight))
    both = (unit_positive > 0) & (unit_negative > 0)
    found = {where["weight"]: unit_weight, where["positive_weight"]: unit_positive}
    found[where["user_weight"]] = np.where(both, unit_weight, 0.0)
    lists: Floats = np.zeros(units)
    if shape.lists_at:
        list_unit, list_of = lists_of(entries.listed, unit)
        has_positive = np.bincount(list_of, weights=positive) > 0
        lists = _totals(list_unit, np.ones(len(list_unit)), units)
        found[where["lists_with_positive"]] = _totals(list_unit, has_positive, units)
    for c in range(shape.contestants):
        score = entries.score[c]
        held = np.clip(score, SMALLEST_PROB, 1 - SMALLEST_PROB)
        found[where[f"log_loss/{c}"]] = total(-np.log(np.where(positive, held, 1 - held)) * weight)
        found[where[f"prob/{c}"]] = total(score * weight)
        pairs = _won_pairs(score, positive, weight, unit, units)
        with np.errstate(invalid="ignore", divide="ignore"):
            user_auc = pairs / (unit_positive * unit_negative)
        found[where[f"user_auc/{c}"]] = np.where(both, user_auc * unit_weight, 0.0)
        if shape.lists_at:
            ndcg, reciprocal = list_quality(score, positive, list_of, shape.lists_at)
            found[where[f"ndcg/{c}"]] = _totals(list_unit, ndcg, units)
            found[where[f"reciprocal_rank/{c}"]] = _totals(list_unit, reciprocal, units)
    return found, lists


def _totals(owner: Ints, values: npt.NDArray[Any], owners: int) -> Floats:
    """Sum of the values of each owner. ``(owners,)``"""
    summed: Floats = np.bincount(owner, weights=values, minlength=owners).astype(np.float64)
    return summed


def _won_pairs(
    score: Floats, positive: npt.NDArray[np.bool_], weight: Floats, unit: Ints, units: int
) -> Floats:
    """Weight of the (negative, positive) pairs of each unit in which the positive scores higher, ties half."""
    order = np.lexsort((score, unit))
    ordered, owner = score[order], unit[order]
    first = np.flatnonzero(np.r_[True, (np.diff(ordered) != 0) | (np.diff(owner) != 0)][: len(order)])
    wins = np.where(positive, weight, 0.0)[order]
    won = np.add.reduceat(wins, first)
    lost = np.add.reduceat(weight[order] - wins, first)
    run_owner = owner[first]
    before = np.cumsum(lost) - lost
    begins = np.flatnonzero(np.r_[True, np.diff(run_owner) != 0][: len(first)])
    before -= np.repeat(before[begins], np.diff(np.r_[begins, len(first)]))
    return _totals(run_owner, won * (before + lost / 2), units)


def _binned(entries: Entries, cell: Ints, user: Ints, shape: Shape) -> list[tuple[Ints, Ints, Floats]]:
    """Steps and bins as (row of the sums, user, value)."""
    weight, positive = entries.weight, entries.positive
    base = cell * shape.rows
    found = []
    for c in range(shape.contestants):
        step = base + shape.steps_at(c) + entries.step[c] + np.where(positive, shape.steps, 0)
        in_bin = base + shape.bins_at(c) + entries.bin[c]
        found += [(step, user, weight), (in_bin, user, weight)]
        found += [(in_bin[positive] + shape.bins, user[positive], weight[positive])]
        found += [(in_bin + 2 * shape.bins, user, weight * entries.score[c])]
    return found


def _fixed_sums(entries: Entries, cell: Ints, cells: int, shape: Shape) -> Floats:
    """Counts, and the moments of the placements. ``(cells, len(shape.fixed))``"""
    found = np.zeros((cells, len(shape.fixed)))

    def put(name: str, values: npt.NDArray[Any], chosen: npt.NDArray[np.bool_] | None = None) -> None:
        owner = cell if chosen is None else cell[chosen]
        found[:, shape.fixed[name]] = np.bincount(owner, weights=values, minlength=cells)

    put("rows", np.ones(len(cell)))
    put("positives", entries.positive.astype(np.float64))
    # A cell of one class has no placements.
    placement = np.nan_to_num(entries.placement - _CENTRE)
    for side, chosen in ((1, entries.positive), (0, ~entries.positive)):
        weight = entries.weight[chosen]
        of_side = placement[:, chosen]
        put(f"squares/{side}", weight**2, chosen)
        for c in range(shape.contestants):
            if side:
                put(f"precision/{c}", weight * entries.precision[c][chosen], chosen)
            put(f"placement/{side}/{c}", weight * of_side[c], chosen)
            put(f"square_placement/{side}/{c}", weight**2 * of_side[c], chosen)
            for d in range(c, shape.contestants):
                put(f"product/{side}/{c}/{d}", weight**2 * of_side[c] * of_side[d], chosen)
    return found
