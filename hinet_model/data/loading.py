"""Loading: the epoch plan's batches, read from one snapshot's files through Petastorm.

Petastorm reads row groups; which ones, and in which order, is the plan's decision (`hinet_model.data.plan`). This
is the only module that imports it, and what it relies on is pinned by contract tests:

- ``Reader`` asks ``_create_ventilator`` for the object that feeds its pool. Ours feeds the row groups it is told
  to, one call at a time and from the calling thread, so that there is no second thread to race with and no
  end of an epoch to be mistaken about: Petastorm's own ventilator can lose row groups at the end of a pass.
- One worker thread, because with two the results come out of order.
- ``convert_early_to_numpy`` moves the conversion to that thread.

Memory: a rank holds, for each of its lanes, one shuffled window and, while the next one fills, up to another
window and a row group; besides, `LOOKAHEAD` row groups being read and ``prefetch`` + 1 finished batches.
"""

from __future__ import annotations

import re
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import numpy as np
from petastorm.arrow_reader_worker import ArrowReaderWorker
from petastorm.fs_utils import FilesystemResolver
from petastorm.reader import Reader
from petastorm.workers_pool import thread_pool
from petastorm.workers_pool.ventilator import Ventilator

from feature_eng.snapshot import SnapshotRef
from foundation import stores
from foundation.settings import UserError
from hinet_model.data.batch import Batch, BatchLayout
from hinet_model.data.plan import EpochPlan, Piece
from hinet_model.data.prefetch import Prefetch
from hinet_model.data.store_files import StoreFiles
from hinet_model.data.windows import Columns, LaneWindow, joined

LOOKAHEAD = 3
"""Row groups that are being read, or wait to be taken, beyond the one that is needed now."""

# Petastorm's worker looks for a stop this often. New work wakes it at once either way, and its default of 1 ms
# costs a thousand wake-ups a second while training has the core.
_POLL_SECONDS = 0.05

# Arrow spells its own names of the types; the encoder's are numpy's.
_ARROW_NAMES = {"float": "float32", "double": "float64"}


class LoadingError(UserError):
    """The files do not hold what the snapshot, the plan or the layout says; names the file and both sides."""


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
        _check_columns(snapshot, layout)
        self.layout = layout
        self.row_groups: tuple[int, ...] = tuple(
            rows for file in snapshot.files_of(split) for rows in file.row_groups
        )
        """Rows of each row group of the split: what `plan_epoch` plans over."""
        self._source = _RowGroupSource(snapshot, split, layout)
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


class _RowGroupSource:
    """Row groups of a split by number, in the order asked for, through one Petastorm reader."""

    def __init__(self, snapshot: SnapshotRef, split: str, layout: BatchLayout) -> None:
        self._snapshot = snapshot
        self._split = split
        self._dtypes = layout.columns
        self._groups = [
            (file.path, position, rows)
            for file in snapshot.files_of(split)
            for position, rows in enumerate(file.row_groups)
        ]
        self._asked: deque[int] = deque()
        self._reader: _PlannedReader | None = None

    def check_files(self) -> None:
        """Refuse files that are gone or have changed."""
        self._snapshot.check_files(self._split)

    def ask(self, group: int) -> None:
        """Have a row group read; `take` gives it out after those asked for before."""
        if self._reader is None:
            self._reader = self._open()
        path, position, _ = self._groups[group]
        self._reader.ventilator.feed(path, position)
        self._asked.append(group)

    def take(self) -> Columns:
        """Wait for the row group that was asked for first, and check it against the snapshot."""
        assert self._reader is not None, "ask before you take"
        path, position, rows = self._groups[self._asked[0]]
        where = f"{path}, row group {position}"
        try:
            columns: Columns = next(self._reader)._asdict()
        # Anything, StopIteration included: what was asked for is outstanding, so there is no end to come to.
        except Exception as error:
            self.close()
            self._name_changed_file(error)
            raise LoadingError(f"{where}: cannot be read: {type(error).__name__}: {error}") from error
        self._asked.popleft()
        _check_row_group(where, rows, columns, self._dtypes)
        return columns

    def drain(self) -> None:
        """Throw away what an abandoned pass has asked for."""
        while self._asked:
            self.take()

    def close(self) -> None:
        """Stop, join and forget the reader (its ``__exit__`` would print to stdout)."""
        reader, self._reader = self._reader, None
        self._asked.clear()
        if reader is not None:
            reader.stop()
            reader.join()

    def _open(self) -> _PlannedReader:
        # Petastorm calls what Arrow 14 calls deprecated, on every read and in several threads. A filter for its
        # modules alone is the narrowest there is: `catch_warnings` does not hold across threads.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"petastorm\.")
        thread_pool.IO_TIMEOUT_INTERVAL_S = _POLL_SECONDS
        paths = [file.path for file in self._snapshot.files_of(self._split)]
        on_store = not all(map(stores.is_local, paths))
        try:
            reader = _PlannedReader(
                # Paths and a file system instead of URLs: a URL would have to be quoted and Petastorm
                # unquotes none.
                StoreFiles(paths) if on_store else FilesystemResolver("file:///").filesystem(),
                paths,
                # Patterns; anchored, since Petastorm warns where one matches only the beginning of a name.
                schema_fields=[re.escape(name) + r"\Z" for name in self._dtypes],
                worker_class=ArrowReaderWorker,
                reader_pool=thread_pool.ThreadPool(1),
                is_batched_reader=True,
                shuffle_row_groups=False,
                num_epochs=None,
                convert_early_to_numpy=True,
            )
        except Exception as error:
            self._name_changed_file(error)
            raise LoadingError(
                f"split '{self._split}' of {self._snapshot.table}: cannot be opened: "
                f"{type(error).__name__}: {error}"
            ) from error
        found = set(reader.ventilator.row_groups)
        if found != {(path, position) for path, position, _ in self._groups}:
            reader.stop()
            reader.join()
            raise LoadingError(
                f"split '{self._split}' of {self._snapshot.table}: the files have "
                f"{len(found)} row groups, the snapshot {len(self._groups)}"
            )
        return reader

    def _name_changed_file(self, error: Exception) -> None:
        """Raise SnapshotError, caused by ``error``, if a file is gone or has changed."""
        try:
            self.check_files()
        except UserError as gone:
            raise gone from error


class _PlannedReader(Reader):  # type: ignore[misc]
    """Petastorm's reader, which reads what its ventilator is fed instead of going over the data set."""

    def _filter_row_groups(self, dataset: Any, row_groups: list[Any], *others: Any) -> Any:
        self._found = {(piece.path, piece.row_group): place for place, piece in enumerate(row_groups)}
        return super()._filter_row_groups(dataset, row_groups, *others)

    def _create_ventilator(self, *_: Any) -> _PlannedVentilator:
        return _PlannedVentilator(self._workers_pool.ventilate, self._found)


class _PlannedVentilator(Ventilator):  # type: ignore[misc]
    """Feeds row groups to Petastorm's pool as they are asked for, in the caller's thread.

    Args:
        ventilate: The pool's way in.
        row_groups: Petastorm's number of each row group it found, by path and position in the file: its
            order of files is its own.
    """

    def __init__(self, ventilate: Any, row_groups: Mapping[tuple[str, int], int]) -> None:
        super().__init__(ventilate)
        self.row_groups = row_groups
        self._stopped = False

    def feed(self, path: str, position: int) -> None:
        """Have one row group read, as a whole."""
        self._ventilate_fn(
            piece_index=self.row_groups[path, position],
            worker_predicate=None,
            shuffle_row_drop_partition=(0, 1),
        )

    def start(self) -> None:
        """Nothing to start: there is no thread."""

    def processed_item(self) -> None:
        """Nothing to count: who feeds also takes."""

    def completed(self) -> bool:
        """Never before the stop: more may always be fed."""
        return self._stopped

    def stop(self) -> None:
        """End the reader's wait for results."""
        self._stopped = True


def _check_columns(snapshot: SnapshotRef, layout: BatchLayout) -> None:
    """Refuse a snapshot whose columns are not those that the layout reads."""
    found = {name: _ARROW_NAMES.get(dtype, dtype) for name, dtype in snapshot.columns}
    for name, dtype in layout.columns.items():
        if found.get(name) != dtype:
            has = f"has it as {found[name]}" if name in found else "does not have it"
            raise LoadingError(
                f"column '{name}' is needed as {dtype}, "
                f"but version {snapshot.version} of {snapshot.table} {has}"
            )


def _check_row_group(where: str, rows: int, columns: Columns, dtypes: Mapping[str, str]) -> None:
    """Refuse a row group that is not what the snapshot says; Petastorm itself would let it pass."""
    for name, dtype in dtypes.items():
        if name not in columns:
            raise LoadingError(f"{where}: column '{name}' is missing; expected {dtype}")
        values = columns[name]
        if len(values) != rows:
            raise LoadingError(f"{where}: planned {rows} rows, read {len(values)} (column '{name}')")
        if values.dtype != dtype:
            # A null turns an integer column into float64, and the large ids in it into other ids.
            raise LoadingError(
                f"{where}: column '{name}' came as {values.dtype}; expected {dtype} without nulls"
            )
        if dtype == "float32" and np.isnan(values).any():
            raise LoadingError(f"{where}: column '{name}' holds a null or NaN; expected numbers")
