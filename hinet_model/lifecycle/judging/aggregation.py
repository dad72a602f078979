"""Aggregation: the sums of every cell over any number of rows, on Spark; the driver gets cells, never rows.

    scored rows ─► entries (one per row and cell) ─► counts by score bin ─► rankings: blocks, and what lies below each
                      └─► by block of the first model's scores ─► by block of the second's … ─► by user ─► sums of cells

Each arrow to the right of `entries` moves the entries once; what happens to them there is numpy
(`hinet_model.lifecycle.judging.ranks` and `.sums`). No task sorts a whole cell: it holds a few blocks, or a few users.
They travel packed: a row that Spark moves is an Arrow table of all entries that one task sends to one address, so
that the Java side handles a few hundred large values and not every entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hinet_model.lifecycle.judging.counting import ENTRIES_A_TASK, Columns, rankings_of, to_entries
from hinet_model.lifecycle.judging.measures import CellSums
from hinet_model.lifecycle.judging.packing import booleans, one_row, packed, runs, unpacked
from hinet_model.lifecycle.judging.ranks import Ints, Ranking, places_of, score_bins
from hinet_model.lifecycle.judging.sums import Entries, Shape, Sums, add_up

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

BLOCK_ROWS = 100_000
# Addresses are dealt to tasks by a hash: several for each even that out.
_ADDRESSES_A_TASK = 8
# Partial sums are large, and a task of the last reduction holds those of one cell: they go through so many lanes first.
_LANES = 32


_MOVED = "address int, entries binary"
_SUMS = "cell int, lane int, fixed binary, weighed binary"
_CELLS = "cell int, fixed binary, plain binary, samples binary"


@dataclass(frozen=True)
class Totals:
    """What all rows came to.

    Args:
        cells: By number, those that have rows.
        rankings: By cell and contestant.
    """

    cells: Mapping[int, CellSums]
    rankings: Mapping[tuple[int, int], Ranking]


def aggregate(
    scored: DataFrame, columns: Columns, shape: Shape, *, block_rows: int = BLOCK_ROWS,
    entries_a_task: int = ENTRIES_A_TASK,
) -> Totals:  # fmt: skip
    """Sum up every cell.

    Args:
        scored: Rows with the columns named; read once.
        columns: Their roles.
        shape: What is summed.
        block_rows: Rows that are sorted together, about.
        entries_a_task: Entries that one task holds, about.

    Raises:
        JudgingError: By way of Spark: a score is no probability, a label is neither 0, 1 nor null, or a weight is not
            above 0 (`user_message` of `hinet_model.serving.on_spark` finds it).
    """
    from pyspark import StorageLevel

    entries = to_entries(scored, columns).persist(StorageLevel.DISK_ONLY)
    try:
        rankings, num_entries = rankings_of(entries, shape, block_rows)
        if not rankings:
            return Totals({}, {})
        tasks = max(1, math.ceil(num_entries / entries_a_task))
        addresses = tasks * _ADDRESSES_A_TASK
        moved = entries.mapInArrow(_Move(None, _Block(0, rankings), addresses), _MOVED)
        for c in range(shape.contestants):
            to = _Block(c + 1, rankings) if c + 1 < shape.contestants else _user
            place = partial(_placed, c, rankings, shape.bins)
            moved = moved.repartition(tasks, "address").mapInArrow(_Move(place, to, addresses), _MOVED)
        summed = moved.repartition(tasks, "address").mapInArrow(_Sums(shape), _SUMS)
        if tasks > 2 * _LANES:
            summed = summed.groupBy("cell", "lane").applyInArrow(_reduce(shape, finish=False), _SUMS)
        found = summed.groupBy("cell").applyInArrow(_reduce(shape, finish=True), _CELLS).toArrow()
        return Totals({row["cell"]: _cell_sums(row, shape) for row in found.to_pylist()}, rankings)
    finally:
        entries.unpersist()


# -- places ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Move:
    """Packed entries -> the same ones, changed, packed by the address that they go to next.

    Args:
        change: What happens to all entries of this task, if anything.
        to: Gives each entry a number; entries with equal numbers must meet.
        addresses: Numbers are taken modulo this.
    """

    change: Callable[[pa.Table], pa.Table] | None
    to: Callable[[pa.Table], Ints]
    addresses: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        tables: Iterator[pa.Table] = unpacked(batches)
        if self.change is not None:
            whole = list(tables)
            tables = iter([self.change(pa.concat_tables(whole))] if whole else [])
        for table in tables:
            address = self.to(table) % self.addresses
            order = np.argsort(address, kind="stable")
            ordered = table.take(pa.array(order)).combine_chunks()
            parts_at = runs(address[order])
            parts = [ordered.slice(run.start, run.stop - run.start) for run in parts_at]
            numbers = pa.array([int(address[order[run.start]]) for run in parts_at], pa.int32())
            yield pa.RecordBatch.from_arrays([numbers, packed(parts).column(0)], names=["address", "entries"])


@dataclass(frozen=True)
class _Block:
    """Number of the block of one contestant's scores that an entry belongs to; no two cells share one."""

    contestant: int
    rankings: Mapping[tuple[int, int], Ranking]

    def __call__(self, table: pa.Table) -> Ints:
        cell = table["cell"].to_numpy()
        bins = score_bins(table[f"score_{self.contestant}"].to_numpy())
        number = np.empty(len(cell), dtype=np.int64)
        first = 0
        for (name, contestant), ranking in self.rankings.items():
            if contestant == self.contestant:
                chosen = np.flatnonzero(cell == name)
                number[chosen] = first + np.searchsorted(ranking.starts, bins[chosen], side="right") - 1
                first += len(ranking.starts)
        return number


def _user(table: pa.Table) -> Ints:
    """Number of the user: bits of the hash that the resamples do not begin with."""
    number: Ints = table["user"].to_numpy() >> 16
    return number


def _placed(c: int, rankings: Mapping[tuple[int, int], Ranking], bins: int, table: pa.Table) -> pa.Table:
    """Entries of whole blocks of one contestant's scores, with their places."""
    score, weight = table[f"score_{c}"].to_numpy(), table["weight"].to_numpy()
    positive, cell = booleans(table, "positive"), table["cell"].to_numpy()
    placement, precision = np.empty(len(cell)), np.empty(len(cell))
    bin_of, step = np.empty(len(cell), dtype=np.int16), np.empty(len(cell), dtype=np.int16)
    order = np.argsort(cell, kind="stable")
    for run in runs(cell[order]):
        chosen = order[run]
        places = places_of(score[chosen], positive[chosen], weight[chosen], rankings[int(cell[chosen[0]]), c])
        placement[chosen], precision[chosen] = places.placement, places.precision
        bin_of[chosen], step[chosen] = places.bins(bins), places.step
    named = {"placement": placement, "precision": precision, "bin": bin_of, "step": step}
    for name, values in named.items():
        table = table.append_column(f"{name}_{c}", pa.array(values))
    return table


# -- sums ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sums:
    """All entries of some users -> the sums of each cell."""

    shape: Shape

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        found = list(unpacked(batches))
        if not found:
            return
        table = pa.concat_tables(found)

        def each(name: str) -> npt.NDArray[Any]:
            return np.stack([table[f"{name}_{c}"].to_numpy() for c in range(self.shape.contestants)])

        entries = Entries(
            **{name: table[name].to_numpy() for name in ("cell", "user", "listed", "weight")},
            **{name: each(name) for name in ("score", "placement", "precision", "bin", "step")},
            positive=booleans(table, "positive"),
        )
        lane = int(entries.user[0]) % _LANES
        for cell, sums in add_up(entries, self.shape).items():
            yield one_row(_SUMS, [cell, lane, sums.fixed.tobytes(), sums.weighed.tobytes()])


def _reduce(shape: Shape, *, finish: bool) -> Callable[[pa.Table], pa.Table]:
    """Sums of one cell -> their total, or, to finish, its metrics."""

    def reduce(table: pa.Table) -> pa.Table:
        fixed = np.zeros(len(shape.fixed))
        weighed = np.zeros((shape.rows, 1 + shape.replicates))
        for one, other in zip(table["fixed"], table["weighed"], strict=True):
            fixed += np.frombuffer(one.as_buffer())
            weighed += np.frombuffer(other.as_buffer()).reshape(weighed.shape)
        cell = table["cell"][0].as_py()
        if not finish:
            row = one_row(_SUMS, [cell, table["lane"][0].as_py(), fixed.tobytes(), weighed.tobytes()])
        else:
            sums = CellSums.of(Sums(fixed, weighed), shape)
            row = one_row(_CELLS, [cell, sums.fixed.tobytes(), sums.plain.tobytes(), sums.samples.tobytes()])
        return pa.Table.from_batches([row])

    return reduce


def _cell_sums(row: Mapping[str, Any], shape: Shape) -> CellSums:
    samples = np.frombuffer(row["samples"]).reshape(shape.contestants, -1, 1 + shape.replicates)
    return CellSums(np.frombuffer(row["fixed"]), np.frombuffer(row["plain"]), samples)
