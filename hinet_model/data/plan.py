"""The epoch plan: which rows make which global batch, decided before a row is read.

The plan knows the rows of each row group and nothing of the number of workers. It puts the row groups in a
seeded order, cuts that sequence of rows into ``V`` near-equal *lanes*, and shuffles each lane in *windows*.
Step ``t`` takes the ``t``-th slice of every lane; rank ``r`` of ``W`` reads the lanes ``v`` with
``v % W == r``. So one, two and four workers see the same global batches, every row comes exactly once an
epoch, and ``(epoch, step)`` is a position that can be entered without reading what lies before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from foundation.settings import UserError

# Streams of the seed: the order of the row groups and the windows' shuffles must not share random numbers.
_GROUP_STREAM = 0
_WINDOW_STREAM = 1


class PlanError(UserError):
    """Settings from which no plan can be made, such as a world size that does not divide the lanes."""


class Piece(NamedTuple):
    """Rows ``start .. stop - 1`` of one row group, in the order in which they lie in the file."""

    row_group: int
    start: int
    stop: int


@dataclass(frozen=True)
class EpochPlan:
    """The global batches of one epoch. Make it with `plan_epoch`.

    Every step but the last has exactly ``batch_size`` rows, whatever the lanes: lane ``v`` has
    ``(N + v) // V`` of the ``N`` rows and gives rows ``(t * B + v) // V`` up to ``((t + 1) * B + v) // V`` at
    step ``t``, and these quotients add up to ``B`` over the lanes.

    Args:
        row_groups: Rows of each row group, in the snapshot's order.
        batch_size: Rows ``B`` of a global batch.
        lanes: Number ``V`` of lanes; every allowed world size divides it.
        seed: Seed of the run.
        epoch: Epoch, 0-based.
        window_rows: Rows of a lane that are shuffled together; what a reader holds per lane.
        shuffle: Whether row groups and rows are shuffled; False keeps the snapshot's order (evaluation).
        group_order: The row groups in the order in which the lanes are cut from them.
    """

    row_groups: tuple[int, ...]
    batch_size: int
    lanes: int
    seed: int
    epoch: int
    window_rows: int
    shuffle: bool
    group_order: tuple[int, ...]

    @cached_property
    def num_rows(self) -> int:
        """Rows ``N`` of the epoch."""
        return sum(self.row_groups)

    @property
    def num_steps(self) -> int:
        """Global batches of the epoch, the same on every rank."""
        return -(-self.num_rows // self.batch_size)

    @cached_property
    def hash(self) -> str:
        """sha256 of everything that decides the batches; equal on all ranks or something is wrong."""
        facts = {
            "row_groups": self.row_groups,
            "batch_size": self.batch_size,
            "lanes": self.lanes,
            "seed": self.seed,
            "epoch": self.epoch,
            "window_rows": self.window_rows,
            "shuffle": self.shuffle,
            "group_order": self.group_order,
            # A numpy that draws other numbers from the same seed shows here (the first window stands for
            # all).
            "first_window": hashlib.sha256(self.window_order(self.lanes - 1, 0).tobytes()).hexdigest(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def global_rows(self, step: int) -> int:
        """Rows of global batch ``step`` over all ranks, known without asking them."""
        self._check_step(step, self.num_steps - 1)
        return min(self.batch_size, self.num_rows - step * self.batch_size)

    def rows_of(self, rank: int, world_size: int, step: int) -> int:
        """Rows that ``rank`` contributes to global batch ``step``; 0 is a normal case."""
        self._check_step(step, self.num_steps - 1)
        slices = (self.slice_of(lane, step) for lane in self.lanes_of(rank, world_size))
        return sum(stop - start for start, stop in slices)

    def lanes_of(self, rank: int, world_size: int) -> tuple[int, ...]:
        """Lanes that ``rank`` reads, ascending.

        Raises:
            PlanError: The world size does not divide the lanes; names the sizes that do.
        """
        if world_size < 1 or self.lanes % world_size:
            allowed = [size for size in range(1, self.lanes + 1) if self.lanes % size == 0]
            raise PlanError(
                f"{world_size} workers cannot share {self.lanes} lanes evenly; "
                f"expected one of {allowed} workers, "
                f"or training.lanes as a multiple of {world_size}"
            )
        if not 0 <= rank < world_size:
            raise PlanError(f"rank {rank} is not one of 0 to {world_size - 1}")
        return tuple(range(rank, self.lanes, world_size))

    def lane_rows(self, lane: int) -> int:
        """Rows of a lane in this epoch; 0 where there are fewer rows than lanes."""
        return (self.num_rows + lane) // self.lanes

    def slice_of(self, lane: int, step: int) -> tuple[int, int]:
        """First row of the lane in global batch ``step``, and the first row after it."""
        start = (step * self.batch_size + lane) // self.lanes
        stop = ((step + 1) * self.batch_size + lane) // self.lanes
        end = self.lane_rows(lane)
        return min(start, end), min(stop, end)

    def window_order(self, lane: int, window: int) -> npt.NDArray[np.int64]:
        """Order in which the rows of a lane's window enter the batches: a permutation of the window's rows.

        Keyed by (seed, epoch, lane, window), so that it can be had without drawing what comes before it.
        """
        first = window * self.window_rows
        rows = max(0, min(self.window_rows, self.lane_rows(lane) - first))
        if not self.shuffle:
            return np.arange(rows)
        return _generator(self.seed, self.epoch, _WINDOW_STREAM, lane, window).permutation(rows)

    def lane_pieces(self, lane: int, start: int = 0) -> Iterator[Piece]:
        """Parts of row groups that make up a lane from its row ``start`` on, in lane order."""
        # Sum of lane_rows over the lanes before this one: they are N // V long but for the last N % V lanes.
        quotient, longer = divmod(self.num_rows, self.lanes)
        lane_start = lane * quotient + max(0, lane - (self.lanes - longer))
        position, end = lane_start + start, lane_start + self.lane_rows(lane)
        at = int(np.searchsorted(self._group_starts, position, side="right")) - 1
        while position < end:
            group_start, group_end = int(self._group_starts[at]), int(self._group_starts[at + 1])
            if group_end > position:
                stop = min(group_end, end)
                yield Piece(self.group_order[at], position - group_start, stop - group_start)
                position = stop
            at += 1

    def reads_of(self, rank: int, world_size: int, start_step: int = 0) -> Iterator[tuple[int, Piece]]:
        """Row-group reads of a rank, each with the lane it is for, in the order in which its steps need them.

        A lane's window must be there as a whole before its first row can be given out, so entering at
        ``start_step`` reads the windows that the step's slices lie in from their beginning.
        """
        self._check_step(start_step, self.num_steps)
        lanes = self.lanes_of(rank, world_size)
        loaded = {lane: self.window_start(lane, start_step) for lane in lanes}
        pieces = {lane: self.lane_pieces(lane, loaded[lane]) for lane in lanes}
        for step in range(start_step, self.num_steps):
            for lane in lanes:
                start, stop = self.slice_of(lane, step)
                if start == stop:
                    continue
                window_end = -(-stop // self.window_rows) * self.window_rows
                needed = min(window_end, self.lane_rows(lane))
                while loaded[lane] < needed:
                    piece = next(pieces[lane])
                    loaded[lane] += piece.stop - piece.start
                    yield lane, piece

    def window_start(self, lane: int, step: int) -> int:
        """First row of the window that a lane's slice of ``step`` begins in."""
        return self.slice_of(lane, step)[0] // self.window_rows * self.window_rows

    @cached_property
    def _group_starts(self) -> npt.NDArray[np.int64]:
        """First row of each group in ``group_order``, and the end of the last."""
        rows = np.array([self.row_groups[group] for group in self.group_order], dtype=np.int64)
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(rows)])

    def _check_step(self, step: int, last: int) -> None:
        if not 0 <= step <= last:
            raise PlanError(f"step {step} is outside of epoch {self.epoch}; expected 0 to {last}")


def plan_epoch(
    row_groups: Sequence[int],
    *,
    batch_size: int,
    lanes: int,
    seed: int,
    epoch: int,
    window_rows: int,
    shuffle: bool = True,
) -> EpochPlan:
    """Plan one epoch over a snapshot's row groups.

    Args:
        row_groups: Rows of each row group, in the snapshot's order; empty groups are fine.
        batch_size: Rows of a global batch, all workers together.
        lanes: Number of lanes, a multiple of every world size to be allowed.
        seed: Seed of the run, 0 or more.
        epoch: Epoch, 0-based; each has its own order.
        window_rows: Rows per lane that are shuffled together. A rank holds about its lanes times (window_rows
            plus one row group) rows.
        shuffle: False keeps the snapshot's order, for evaluation.

    Raises:
        PlanError: A number is out of range.
    """
    limits = {"batch_size": batch_size, "lanes": lanes, "window_rows": window_rows}
    for name, value in limits.items():
        if value < 1:
            raise PlanError(f"{name} is {value}; expected at least 1")
    for name, value in {
        "seed": seed,
        "epoch": epoch,
        "rows of a row group": min(row_groups, default=0),
    }.items():
        if value < 0:
            raise PlanError(f"{name} is {value}; expected at least 0")
    if shuffle:
        order = _generator(seed, epoch, _GROUP_STREAM).permutation(len(row_groups))
    else:
        order = np.arange(len(row_groups))
    return EpochPlan(
        row_groups=tuple(int(rows) for rows in row_groups),
        batch_size=batch_size,
        lanes=lanes,
        seed=seed,
        epoch=epoch,
        window_rows=window_rows,
        shuffle=shuffle,
        group_order=tuple(int(group) for group in order),
    )


def _generator(seed: int, *key: int) -> np.random.Generator:
    """The random numbers of one purpose: independent for different keys, the same on every machine."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
