"""Cell statistics: what is kept of scored rows to judge them by, in parts that add up to the whole.

Each worker adds its rows batch by batch; parts merge, in any order and grouping, to what one worker with all rows has
(sums up to rounding). A cell, one scenario and task, keeps sums and how many positives and negatives have each
distinct score: the AUC of that is exact. Beyond ``max_scores`` distinct scores, scores are counted in bins instead,
equally wide in the logit, half as many as often as needed: at least ``max_scores / 2`` of them are then in use, and lie
where the scores lie. Within a bin positives and negatives count as ties, so that the AUC is off by half the share of
pairs that share a bin at most: `CellMetrics.auc_error`.

A cell so takes up to 24 bytes times ``max_scores``, however many rows there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hinet_model.objective.metrics import SMALLEST_PROB, CellMetrics

Counts = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

MAX_SCORES = 1 << 17
"""Distinct scores of a cell up to which its AUC is exact; beyond, more than half as many bins."""

_FINEST = 20
_LOGIT_RANGE = (-110.0, 20.0)  # what float32 probabilities can have; 0 and 1 lie beyond all others
_BUFFERED_ROWS = 1 << 17


@dataclass
class CellStatistics:
    """Of the rows of one scenario and task.

    Args:
        max_scores: Distinct scores, or bins, that are kept.
        rows: Rows.
        positives: Rows whose label is 1.
        log_loss_sum: Sum of cross-entropies in nats.
        prob_sum: Sum of probabilities.
        resolution: Bins are ``2 ** -resolution`` wide in the logit; None: a bin is one score.
        keys: The bins in use, ascending. ``(K,)``
        counts: Negatives and positives in each. ``(2, K)``
    """

    max_scores: int = MAX_SCORES
    rows: int = 0
    positives: int = 0
    log_loss_sum: float = 0.0
    prob_sum: float = 0.0
    resolution: int | None = None
    keys: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: Counts = field(default_factory=lambda: np.zeros((2, 0), np.int64))

    def add(self, labels: Array, probs: Array) -> None:
        """Take in rows.

        Args:
            labels: 0 or 1. ``(R,)``
            probs: Predicted probabilities, compared as float32. ``(R,)``

        Raises:
            ValueError: A probability is not finite.
        """
        if not np.isfinite(probs).all():
            raise ValueError("a score is not finite; a model that gives NaN or infinity has no AUC")
        positive = np.asarray(labels) > 0.5
        exact = np.asarray(probs, dtype=np.float64)
        clipped = np.clip(exact, SMALLEST_PROB, 1 - SMALLEST_PROB)
        self.rows += len(positive)
        self.positives += int(positive.sum())
        self.log_loss_sum -= float(np.log(np.where(positive, clipped, 1 - clipped)).sum())
        self.prob_sum += float(exact.sum())
        # Bits of positive floats are ordered as they are.
        keys = np.asarray(probs, dtype=np.float32).view(np.int32).astype(np.int64)
        if self.resolution is not None:
            keys = _bins(keys, self.resolution)
        self._count(keys, np.stack([~positive, positive]).astype(np.int64))

    def merge(self, other: CellStatistics) -> None:
        """Take in what another part of the rows gave."""
        self.rows += other.rows
        self.positives += other.positives
        self.log_loss_sum += other.log_loss_sum
        self.prob_sum += other.prob_sum
        keys = other.keys
        if self.resolution is None and other.resolution is not None:
            self.resolution, self.keys = other.resolution, _bins(self.keys, other.resolution)
        elif self.resolution is not None and other.resolution is None:
            keys = _bins(keys, self.resolution)
        elif self.resolution is not None and other.resolution is not None:
            common = min(self.resolution, other.resolution)
            self.keys, keys = self.keys >> (self.resolution - common), keys >> (other.resolution - common)
            self.resolution = common
        self._count(keys, other.counts)

    def _count(self, keys: Counts, counts: Counts) -> None:
        keys, counts = np.concatenate([self.keys, keys]), np.concatenate([self.counts, counts], axis=1)
        self.keys, self.counts = _added_up(keys, counts)
        while len(self.keys) > self.max_scores:
            if self.resolution is None:
                self.resolution, keys = _FINEST, _bins(self.keys, _FINEST)
            else:
                self.resolution, keys = self.resolution - 1, self.keys >> 1
            self.keys, self.counts = _added_up(keys, self.counts)

    def metrics(self, scenario_index: int, task: int) -> CellMetrics:
        """What the rows say; None where it is not defined."""
        negative, positive = self.counts
        pairs = self.positives * (self.rows - self.positives)
        # Sums of whole numbers, exact as long as they fit.
        dtype = np.int64 if pairs < 1 << 61 else np.float64
        below = (np.cumsum(negative) - negative).astype(dtype)
        double_above = float((positive * (2 * below + negative)).sum())
        ties = 0.0 if self.resolution is None else float((positive.astype(dtype) * negative).sum())
        return CellMetrics(
            scenario_index=scenario_index,
            task=task,
            rows=self.rows,
            positives=self.positives,
            auc=double_above / (2 * pairs) if pairs else None,
            log_loss=self.log_loss_sum / self.rows if self.rows else None,
            pcoc=self.prob_sum / self.positives if self.positives else None,
            auc_error=ties / (2 * pairs) if pairs else 0.0,
        )


def _bins(keys: Counts, resolution: int) -> Counts:
    """The bins of scores that were counted one by one."""
    prob = keys.astype(np.int32).view(np.float32).astype(np.float64)
    with np.errstate(divide="ignore"):
        logit = np.clip(np.log(prob) - np.log1p(-prob), *_LOGIT_RANGE)
    bins: Counts = np.floor(logit * 2**resolution).astype(np.int64)
    return bins


def _added_up(keys: Counts, counts: Counts) -> tuple[Counts, Counts]:
    """Distinct keys, ascending, and the sums of their counts."""
    if not len(keys):
        return keys, counts
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    return keys[first], np.add.reduceat(counts[:, order], first, axis=1)


class SplitStatistics:
    """Of the rows of a split, by scenario and task.

    Args:
        num_scenarios: Scenarios.
        num_tasks: Tasks.
        max_scores: As for `CellStatistics`.
    """

    def __init__(self, num_scenarios: int, num_tasks: int, max_scores: int = MAX_SCORES) -> None:
        self._cells = [[CellStatistics(max_scores) for _ in range(num_tasks)] for _ in range(num_scenarios)]
        self._buffer: list[tuple[Array, Array, Array]] = []
        self._buffered = 0

    def add(self, scenario_index: Array, labels: Array, probs: Array) -> None:
        """Take in rows.

        Args:
            scenario_index: Scenario of each row. ``(R,)``
            labels: 0 or 1; below 0 where a row has no label, which its cell then passes over. ``(R, N)``
            probs: Predicted probabilities. ``(R, N)``
        """
        self._buffer.append((scenario_index, labels, probs))
        self._buffered += len(labels)
        if self._buffered >= _BUFFERED_ROWS:
            self._empty_buffer()

    def _empty_buffer(self) -> None:
        if not self._buffered:
            return
        scenario_index, labels, probs = (np.concatenate(parts) for parts in zip(*self._buffer, strict=True))
        self._buffer, self._buffered = [], 0
        for scenario, cells in enumerate(self._cells):
            for task, cell in enumerate(cells):
                rows = np.flatnonzero((scenario_index == scenario) & (labels[:, task] >= 0))
                cell.add(labels[rows, task], probs[rows, task])

    def of_scenario(self, scenario: int) -> list[CellStatistics]:
        """The scenario's cells, task by task."""
        self._empty_buffer()
        return self._cells[scenario]


def merged(parts: Sequence[Sequence[CellStatistics]]) -> list[CellStatistics]:
    """The cells of several parts, cell by cell; the parts stay as they are."""
    whole = [CellStatistics(cell.max_scores) for cell in parts[0]]
    for cells in parts:
        for cell, other in zip(whole, cells, strict=True):
            cell.merge(other)
    return whole
