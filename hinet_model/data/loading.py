"""Loading: the epoch plan's batches, read from one snapshot's files through Petastorm.

Petastorm reads row groups (`hinet_model.data.row_groups`); which ones, and in which order, is the plan's decision
(`hinet_model.data.plan`).

Memory: a rank holds, for each of its lanes, one shuffled window and, while the next one fills, up to another
window and a row group; besides, `LOOKAHEAD` row groups being read and ``prefetch`` + 1 finished batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import TracebackType

from feature_eng.snapshot import SnapshotRef
from hinet_model.data.batch import Batch, BatchLayout
from hinet_model.data.plan import EpochPlan, Piece
from hinet_model.data.prefetch import Prefetch
from hinet_model.data.row_groups import LoadingError, RowGroupSource, check_columns
from hinet_model.data.windows import Columns, LaneWindow, joined

LOOKAHEAD = 3
"""Row groups that are being read, or wait to be taken, beyond the one that is needed now."""


class SnapshotReader:
    """Reads one split of a snapshot as the batches of epoch plans.

    Use it as a context manager: threads and files of a reader that is not closed can abort the process at
    exit. One Petastorm reader serves all passes; a pass that begins ends the one before it.

    Args:
        snapshot: The pinned table version.
        split: Which of its splits.
        layout: Which columns to read, with their dtypes, and how they become a batch.
        prefetch: Finished batches that may wait for the trainer.
        pin_memory: Hand out batches in page-locked memory, for asynchronous copies to a GPU.

    Raises:
        LoadingError: The snapshot has not the layout's columns, or has them in another dtype.
    """

    def __init__(
        self,
        snapshot: SnapshotRef,
        split: str,
        layout: BatchLayout,
        *,
        prefetch: int = 4,
        pin_memory: bool = False,
    ) -> None:
        check_columns(snapshot, layout)
        self.layout = layout
        self.row_groups: tuple[int, ...] = tuple(
            rows for file in snapshot.files_of(split) for rows in file.row_groups
        )
        """Rows of each row group of the split: what `plan_epoch` plans over."""
        self._source = RowGroupSource(snapshot, split, layout)
        self._prefetch = prefetch
        self._pin_memory = pin_memory
        self._pass: Prefetch[Batch] | None = None
        self._wait_before = 0.0

    @property
    def wait_seconds(self) -> float:
        """Seconds that consumers have waited for batches, over all passes."""
        return self._wait_before + (self._pass.wait_seconds if self._pass else 0.0)

    def batches(self, plan: EpochPlan, rank: int, world_size: int, start_step: int = 0) -> Iterator[Batch]:
        """A rank's part of the plan's global batches, one `Batch` per step from ``start_step`` to the last.

        Exactly ``plan.num_steps - start_step`` batches come, some of them with few or no rows, or an error.
        Entering at a step gives the same batches as the tail of a whole pass.

        Args:
            plan: Made over this reader's ``row_groups``.
            rank: Rank of this worker.
            world_size: Number of workers; it must divide the plan's lanes.
            start_step: First step wanted.

        Raises:
            LoadingError: The plan is another split's, or a file does not hold what was planned.
            feature_eng.snapshot.SnapshotError: A file is gone or has changed; before the pass or during it.
            hinet_model.data.plan.PlanError: The world size does not divide the lanes, or there is no such step.
        """
        if plan.row_groups != self.row_groups:
            raise LoadingError(
                f"the plan is for {len(plan.row_groups)} row groups with {plan.num_rows} rows, but the split "
                f"has {len(self.row_groups)} with {sum(self.row_groups)}; plan over the reader's row_groups"
            )
        plan.lanes_of(rank, world_size)
        if not 0 <= start_step <= plan.num_steps:
            plan.global_rows(start_step)  # raises, naming the steps there are
        self._end_pass()
        self._source.check_files()
        self._pass = Prefetch(self._read(plan, rank, world_size, start_step), self._prefetch)
        return self._pass

    def close(self) -> None:
        """End the pass under way and Petastorm's reader; doing it again is harmless."""
        self._end_pass()
        self._source.close()

    def __enter__(self) -> SnapshotReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end_pass(self) -> None:
        if self._pass is not None:
            self._pass.close()
            self._wait_before += self._pass.wait_seconds
            self._pass = None

    def _read(self, plan: EpochPlan, rank: int, world_size: int, start_step: int) -> Iterator[Batch]:
        """What the background thread does: read row groups, fill windows, cut slices, make batches."""
        self._source.drain()
        reads = plan.reads_of(rank, world_size, start_step)
        asked: deque[tuple[int, Piece]] = deque()
        lanes = {
            lane: LaneWindow(
                plan, lane, plan.window_start(lane, start_step) if start_step < plan.num_steps else 0
            )
            for lane in plan.lanes_of(rank, world_size)
        }
        dtypes = self.layout.columns
        for step in range(start_step, plan.num_steps):
            parts: list[Columns] = []
            for lane, window in lanes.items():
                start, stop = plan.slice_of(lane, step)
                while start < stop and window.is_short_of(stop):
                    for read in reads:
                        asked.append(read)
                        self._source.ask(read[1].row_group)
                        if len(asked) > LOOKAHEAD:
                            break
                    to_lane, piece = asked.popleft()
                    assert to_lane == lane, "reads come in the order in which the lanes need them"
                    window.add(self._source.take(), piece)
                parts.extend(window.cut(start, stop))
            batch, _ = self.layout.to_batch(joined(parts, dtypes), plan.global_rows(step))
            planned = plan.rows_of(rank, world_size, step)
            if batch.num_rows != planned:
                raise LoadingError(
                    f"step {step} of epoch {plan.epoch}: planned {planned} rows, read {batch.num_rows}"
                )
            yield batch.pin_memory() if self._pin_memory else batch
