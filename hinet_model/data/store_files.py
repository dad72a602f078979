"""Files of object stores for Petastorm, which reads through the interface that Arrow 14 calls legacy, and no other.

A row group is read column by column, and each read of an object store is a request of some tens of milliseconds.
So a file is taken in two requests at most: its end, where the footer is, and on the first look before that the
rest. The training table's files hold one row group each, all of which is wanted then.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from pyarrow import filesystem

from foundation import stores

_END_BYTES = 64 << 10
_WHOLE_BYTES = 64 << 20
"""Larger files are read piece by piece: they hold many row groups, of which one is wanted."""


class StoreFiles(filesystem.FileSystem):  # type: ignore[misc]
    """Of Arrow's legacy interface what reading a list of Parquet files takes.

    Args:
        places: The files. They have been looked at already and are not asked for again.
    """

    def __init__(self, places: Sequence[str]) -> None:
        self._places = frozenset(places)

    def isfile(self, path: str) -> bool:
        """Whether it is one of the files."""
        return path in self._places

    def isdir(self, path: str) -> bool:
        """Nothing is a folder."""
        return False

    def exists(self, path: str) -> bool:
        """Whether it is one of the files."""
        return path in self._places

    def open(self, path: str, mode: str = "rb") -> ObjectFile:
        """A file, to read."""
        assert mode == "rb"
        return ObjectFile(path)


class ObjectFile(io.RawIOBase):
    """One object, read as few times as its reader allows.

    Args:
        place: Of the object.
    """

    def __init__(self, place: str) -> None:
        self._stream = stores.open_input(place)
        self._size = int(self._stream.size())
        self._position = 0
        self._held_from, self._held = self._size, b""

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """The byte that is read next."""
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """The next ``size`` bytes, or all that are left."""
        start = self._position
        stop = self._size if size is None or size < 0 else min(start + size, self._size)
        stop = max(start, stop)
        self._position = stop
        end_from = max(0, self._size - _END_BYTES)
        if start < self._held_from:
            if start < end_from and self._size > _WHOLE_BYTES:
                return self._fetched(start, stop)
            fetch_from = end_from if start >= end_from else 0
            self._held = self._fetched(fetch_from, self._held_from) + self._held
            self._held_from = fetch_from
        return self._held[start - self._held_from : stop - self._held_from]

    def readinto(self, buffer: Any) -> int:
        """The next bytes, into a buffer."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Let go of what is held."""
        if not self.closed:
            self._stream.close()
            self._held = b""
        super().close()

    def _fetched(self, start: int, stop: int) -> bytes:
        return bytes(self._stream.read_at(stop - start, start))
