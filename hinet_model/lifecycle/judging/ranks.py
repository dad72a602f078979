"""Ranks: where a row's score stands among the scores of its cell, worked out block by block.

A cell's scores may be too many for one machine. They are first counted in *score bins*, a fixed fine grid. The
counts part the cell into blocks of neighbouring bins, and say how much weight lies below each block. A block is
then sorted by itself, and its rows' places are exact: equal scores always fall into one bin, so ties are never parted.

Everything here is numpy; `hinet_model.lifecycle.judging.aggregation` distributes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Of a float32: sign, exponent and 11 bits of the mantissa; 2,048 bins an octave.
_BIN_SHIFT = 12


def score_bins(scores: npt.ArrayLike) -> Ints:
    """The score bin of each score in [0, 1]: never decreasing in the score."""
    # Plus zero: the bits of -0.0 are those of a negative number.
    exact = np.asarray(scores, dtype=np.float64).astype(np.float32) + np.float32(0)
    return (exact.view(np.int32) >> _BIN_SHIFT).astype(np.int64)


def bin_start(bins: npt.ArrayLike) -> Floats:
    """The least score of each score bin, about: scores are rounded to float32 before they are binned."""
    return (np.asarray(bins, dtype=np.int32) << _BIN_SHIFT).view(np.float32).astype(np.float64)


def bin_middle(bins: npt.ArrayLike) -> Floats:
    """The middle of each score bin, 1 at most."""
    numbers = np.asarray(bins, dtype=np.int64)
    result: Floats = np.minimum((bin_start(numbers) + bin_start(numbers + 1)) / 2, 1.0)
    return result


@dataclass(frozen=True)
class Ranking:
    """How one model's scores of one cell are spread: what a block needs to know of the others.

    Args:
        starts: First score bin of each block. ``(K,)``
        below: Weight of negatives and of positives below each block. ``(K, 2)``
        total: Weight of negatives and of positives of the cell. ``(2,)``
        edges: First score bin of each *step*: steps split a mixture of both classes, half and half, about evenly.
            ``(F,)``
        steps: Weight of negatives and of positives of each step. ``(F, 2)``
    """

    starts: Ints
    below: Floats
    total: Floats
    edges: Ints
    steps: Floats

    @classmethod
    def of(cls, bins: Ints, counts: Floats, block_rows: int, num_steps: int) -> Ranking:
        """From a cell's counts.

        Args:
            bins: Score bins that have rows, ascending. ``(B,)``
            counts: Of each: rows, weight of negatives, weight of positives. ``(B, 3)``
            block_rows: Rows of a block, about; a bin is never parted.
            num_steps: Steps, at most.
        """
        weights = counts[:, 1:]
        before = np.cumsum(weights, axis=0) - weights
        rows_before = np.cumsum(counts[:, 0]) - counts[:, 0]
        total = weights.sum(axis=0)
        first = _firsts(rows_before // block_rows)
        # A class without weight has no share; the other one then decides alone.
        share = np.divide(before, total, out=np.zeros_like(before), where=total > 0).sum(axis=1)
        per_step = max(1, np.count_nonzero(total)) / num_steps
        edge = _firsts(np.minimum(np.floor(share / per_step + 1e-9), num_steps - 1))
        return cls(bins[first], before[first], total, bins[edge], np.add.reduceat(weights, edge, axis=0))


@dataclass(frozen=True)
class Places:
    """Where each row stands in its cell.

    Args:
        placement: For a positive the share of negatives scored below it, for a negative the share of positives scored
            above it, a tie counting one half: the mean of either is the AUC. NaN where the other class is missing.
        precision: Share of positives among all that score as high or higher.
        middle: Share of the cell's weight scored below, and half of what is scored equal: the mid-distribution
            function.
        step: The score's step in the cell's `Ranking`.
    """

    placement: Floats
    precision: Floats
    middle: Floats
    step: Ints

    def bins(self, num_bins: int) -> Ints:
        """Bins of equal weight: the first one holds the lowest scores. Ties are never parted."""
        return np.minimum((self.middle * num_bins).astype(np.int64), num_bins - 1)


def places_of(score: Floats, positive: npt.NDArray[np.bool_], weight: Floats, ranking: Ranking) -> Places:
    """Places of the rows of whole blocks of one cell.

    Args:
        score: In [0, 1]; whole blocks: all rows of a block that has any. ``(R,)``
        positive: Whether the label is 1. ``(R,)``
        weight: Above 0. ``(R,)``
        ranking: Of the whole cell.

    Source: mid-ranks and placements as in DeLong, DeLong and Clarke-Pearson (Biometrics 1988).
    """
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    first = _firsts(ordered)
    by_class = np.stack([np.where(positive, 0.0, weight), np.where(positive, weight, 0.0)], axis=1)[order]
    tied = np.add.reduceat(by_class, first, axis=0)
    block = np.searchsorted(ranking.starts, score_bins(ordered[first]), side="right") - 1
    running = np.cumsum(tied, axis=0) - tied
    block_first = _firsts(block)
    within = running - np.repeat(running[block_first], np.diff(np.r_[block_first, len(block)]), axis=0)
    below = ranking.below[block] + within
    total = ranking.total
    with np.errstate(invalid="ignore", divide="ignore"):
        for_positive = (below[:, 0] + tied[:, 0] / 2) / total[0]
        for_negative = (total[1] - below[:, 1] - tied[:, 1] / 2) / total[1]
    at_least = total - below
    precision = at_least[:, 1] / at_least.sum(axis=1)
    middle = (below.sum(axis=1) + tied.sum(axis=1) / 2) / total.sum()
    step = np.searchsorted(ranking.edges, score_bins(ordered[first]), side="right") - 1

    run = np.repeat(np.arange(len(first)), np.diff(np.r_[first, len(ordered)]))
    back = np.empty_like(run)
    back[order] = run
    return Places(
        placement=np.where(positive, for_positive[back], for_negative[back]),
        precision=precision[back],
        middle=middle[back],
        step=step[back],
    )


def _firsts(values: npt.NDArray[Any]) -> Ints:
    """Where each run of equal neighbours begins; at least one value is there."""
    return np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
