"""Row groups of a snapshot by number, in the order asked for, through one Petastorm reader.

This is the only module that imports Petastorm, and what it relies on is pinned by contract tests:

- ``Reader`` asks ``_create_ventilator`` for the object that feeds its pool. Ours feeds the row groups it is told
  to, one call at a time and from the calling thread, so that there is no second thread to race with and no
  end of an epoch to be mistaken about: Petastorm's own ventilator can lose row groups at the end of a pass.
- One worker thread, because with two the results come out of order.
- ``convert_early_to_numpy`` moves the conversion to that thread.
"""

from __future__ import annotations

import re
import warnings
from collections import deque
from collections.abc import Mapping
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
from hinet_model.data.batch import BatchLayout
from hinet_model.data.store_files import StoreFiles
from hinet_model.data.windows import Columns

# Petastorm's worker looks for a stop this often. New work wakes it at once either way, and its default of 1 ms
# costs a thousand wake-ups a second while training has the core.
_POLL_SECONDS = 0.05

# Arrow spells its own names of the types; the encoder's are numpy's.
_ARROW_NAMES = {"float": "float32", "double": "float64"}


class LoadingError(UserError):
    """The files do not hold what the snapshot, the plan or the layout says; names the file and both sides."""


class RowGroupSource:
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


def check_columns(snapshot: SnapshotRef, layout: BatchLayout) -> None:
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
