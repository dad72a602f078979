"""Counting: rows become entries, one per cell that they count in, and entries are counted by score.

The counts of a cell, on a fixed fine grid of scores, are what blocks, curves and calibrations are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from foundation.settings import UserError
from hinet_model.lifecycle.judging.packing import booleans, chunks, numbers, one_row, packed, runs, unpacked
from hinet_model.lifecycle.judging.ranks import Floats, Ints, Ranking, score_bins
from hinet_model.lifecycle.judging.sums import Shape

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

ENTRIES_A_TASK = 1_000_000


class JudgingError(UserError):
    """Rows or scores that cannot be judged."""


@dataclass(frozen=True)
class Columns:
    """Columns of the scored rows.

    Args:
        strata: Integer columns; with a task, each value of each is a cell (:meth:`cell`). A null counts in none.
        labels: Of each task: 0, 1, or null where the row says nothing of the task.
        scores: Of each task, one column of probabilities per contestant.
        user: Identifies a user; any type. The unit of the bootstrap.
        weight: Weight of a row, above 0; ``None``: 1.
        listed: Identifies, with the user, the list that the row stood in; ``None``: rows form no lists.
    """

    strata: tuple[str, ...]
    labels: tuple[str, ...]
    scores: tuple[tuple[str, ...], ...]
    user: str
    weight: str | None = None
    listed: str | None = None

    def cell(self, stratum: int, task: int) -> int:
        """Number of the cell of a stratum's value and a task; values of all strata are distinct."""
        return stratum * len(self.labels) + task


_PACKED = "entries binary"
_COUNTS = "cell int, contestant int, bins binary, values binary"
_RANKINGS = (
    "cell int, contestant int, rows double, "
    "starts binary, below binary, total binary, edges binary, steps binary"
)


def to_entries(scored: DataFrame, columns: Columns) -> DataFrame:
    """One entry per row, stratum and labelled task, packed."""
    from pyspark.sql import functions as F

    def column(name: str) -> Any:
        return F.col("`" + name.replace("`", "``") + "`")

    wide = [column(name).cast("int").alias(f"stratum_{place}") for place, name in enumerate(columns.strata)]
    listed = F.lit(0).cast("long") if columns.listed is None else F.xxhash64(column(columns.listed))
    weight = F.lit(1.0) if columns.weight is None else column(columns.weight).cast("double")
    wide += [F.xxhash64(column(columns.user)).alias("user"), listed.alias("listed"), weight.alias("weight")]
    for task, label in enumerate(columns.labels):
        wide += [column(label).cast("double").alias(f"label_{task}")]
        scores = enumerate(columns.scores[task])
        wide += [column(name).cast("double").alias(f"score_{task}_{c}") for c, name in scores]
    one_each = _ToEntries(columns.labels, len(columns.strata), len(columns.scores[0]))
    return scored.select(*wide).mapInArrow(one_each, _PACKED)


@dataclass(frozen=True)
class _ToEntries:
    """Rows -> entries: one per stratum and labelled task."""

    labels: tuple[str, ...]
    strata: int
    contestants: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for rows in chunks(batches, ENTRIES_A_TASK // (len(self.labels) * self.strata)):
            yield packed([self._of_rows(rows)])

    def _of_rows(self, rows: pa.Table) -> pa.Table:
        weight = numbers(rows, "weight")
        if not (weight > 0).all():
            raise JudgingError(f"a row weighs {weight[~(weight > 0)][0]:g}; expected more than 0")
        parts = []
        for task, label_name in enumerate(self.labels):
            label = numbers(rows, f"label_{task}")
            labelled = ~np.isnan(label)
            wrong = labelled & (label != 0) & (label != 1)
            if wrong.any():
                raise JudgingError(f"{label_name} is {label[wrong][0]:g} in a row; expected 0, 1 or null")
            scores = [numbers(rows, f"score_{task}_{c}") for c in range(self.contestants)]
            for score in scores:
                off = labelled & ~((score >= 0) & (score <= 1))
                if off.any():
                    raise JudgingError(
                        f"a score for {label_name} is {score[off][0]}; expected a probability: a model that gives NaN "
                        "cannot be judged"
                    )
            for stratum in range(self.strata):
                number = numbers(rows, f"stratum_{stratum}")
                chosen = np.flatnonzero(labelled & ~np.isnan(number))
                entries = {
                    "cell": number[chosen].astype(np.int64) * len(self.labels) + task,
                    "user": rows["user"].to_numpy()[chosen],
                    "listed": rows["listed"].to_numpy()[chosen],
                    "positive": label[chosen] == 1,
                    "weight": weight[chosen],
                }
                entries |= {f"score_{c}": score[chosen] for c, score in enumerate(scores)}
                parts.append(pa.table(entries))
        return pa.concat_tables(parts)


def rankings_of(
    entries: DataFrame, shape: Shape, block_rows: int
) -> tuple[dict[tuple[int, int], Ranking], int]:
    """The ranking of every cell and contestant, and the number of entries."""
    counted = entries.mapInArrow(_Counts(shape.contestants), _COUNTS)
    ranked = counted.groupBy("cell", "contestant").applyInArrow(_rank(block_rows, shape.steps), _RANKINGS)
    rankings: dict[tuple[int, int], Ranking] = {}
    num_entries = 0.0
    for row in ranked.toArrow().to_pylist():
        starts, edges = (np.frombuffer(row[name], dtype=np.int64) for name in ("starts", "edges"))
        below, total, steps = (
            np.frombuffer(row[name]).reshape(-1, 2) for name in ("below", "total", "steps")
        )
        rankings[row["cell"], row["contestant"]] = Ranking(starts, below, total[0], edges, steps)
        num_entries += row["rows"] if row["contestant"] == 0 else 0
    return rankings, int(num_entries)


def score_counts(scored: DataFrame, columns: Columns) -> DataFrame:
    """Counts by cell, contestant and score bin, partly summed: group them by cell and take :func:`summed_counts`.

    Args:
        scored: As for :func:`aggregate`.
        columns: Their roles.
    """
    return to_entries(scored, columns).mapInArrow(_Counts(len(columns.scores[0])), _COUNTS)


def summed_counts(table: pa.Table) -> tuple[Ints, Floats]:
    """Score bins, ascending, and of each: rows, weight of negatives, weight of positives. ``(B,)``, ``(B, 3)``"""
    counted = _Counted()
    for bins, values in zip(table["bins"], table["values"], strict=True):
        numbers = np.frombuffer(bins.as_buffer(), dtype=np.int64)
        counted.add(numbers, np.frombuffer(values.as_buffer()).reshape(-1, 3))
    return counted.keys, counted.values


@dataclass(frozen=True)
class _Counts:
    """Entries -> rows and weights by cell, contestant and score bin, partly summed."""

    contestants: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        counted = [_Counted() for _ in range(self.contestants)]
        for table in unpacked(batches):
            weight, positive = table["weight"].to_numpy(), booleans(table, "positive")
            values = np.stack([np.ones(len(weight)), weight * ~positive, weight * positive], axis=1)
            for c, of_contestant in enumerate(counted):
                bins = score_bins(table[f"score_{c}"].to_numpy())
                of_contestant.add((table["cell"].to_numpy() << 32) | bins, values)
        for c, of_contestant in enumerate(counted):
            cell, bins = of_contestant.keys >> 32, of_contestant.keys & 0xFFFFFFFF
            for chosen in runs(cell):
                values = of_contestant.values[chosen]
                yield one_row(_COUNTS, [int(cell[chosen][0]), c, bins[chosen].tobytes(), values.tobytes()])


class _Counted:
    """Sums by key."""

    def __init__(self) -> None:
        self.keys: Ints = np.zeros(0, dtype=np.int64)
        self.values: Floats = np.zeros((0, 3))

    def add(self, keys: Ints, values: Floats) -> None:
        """Add the values to the sums of their keys."""
        self.keys, owner = np.unique(np.r_[self.keys, keys], return_inverse=True)
        both = np.concatenate([self.values, values])
        summed = [np.bincount(owner, weights=both[:, i], minlength=len(self.keys)) for i in range(3)]
        self.values = np.stack(summed, axis=1)


def _rank(block_rows: int, num_steps: int) -> Callable[[pa.Table], pa.Table]:
    """All counts of one cell and contestant -> its ranking."""

    def rank(table: pa.Table) -> pa.Table:
        bins, values = summed_counts(table)
        ranking = Ranking.of(bins, values, block_rows, num_steps)
        parts = (ranking.starts, ranking.below, ranking.total, ranking.edges, ranking.steps)
        names = [table[name][0].as_py() for name in ("cell", "contestant")]
        rows = float(values[:, 0].sum())
        return pa.Table.from_batches(
            [one_row(_RANKINGS, [*names, rows, *(part.tobytes() for part in parts)])]
        )

    return rank
