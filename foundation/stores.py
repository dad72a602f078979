"""Stores: files and folders by place, on paths and on object stores, behind one small set of operations.

Object stores know no rename and no folders. So a file is there whole or not at all, and where several belong
together the one that is written last makes the others count.

What a place is: `foundation.places`; how its store is reached: `foundation.access`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import pyarrow as pa
from pyarrow import fs

from foundation.access import filesystem
from foundation.places import Place as Place
from foundation.places import StoreError as StoreError
from foundation.places import beside as beside
from foundation.places import has_scheme as has_scheme
from foundation.places import is_local as is_local
from foundation.places import join as join
from foundation.places import name_of as name_of
from foundation.places import normalised as normalised
from foundation.places import parent as parent
from foundation.places import scheme_of as scheme_of

T = TypeVar("T")

_CALLS_AT_ONCE = 16
_MISSING = fs.FileType.NotFound


def exists(place: Place) -> bool:
    """Whether there is a file, or a folder with something in it."""
    return bool(_info(place).type != _MISSING)


def is_file(place: Place) -> bool:
    """Whether there is a file."""
    return bool(_info(place).type == fs.FileType.File)


def size(place: Place) -> int:
    """Bytes of a file.

    Raises:
        FileNotFoundError: There is none.
    """
    found = sizes([place])[0]
    if found is None:
        raise FileNotFoundError(f"{normalised(place)}: there is no such file")
    return found


def sizes(places: Sequence[Place]) -> list[int | None]:
    """Bytes of files, several asked for at a time; None for one that is not there."""

    return [int(info.size) if info.type == fs.FileType.File else None for info in _infos(places)]


def times(places: Sequence[Place]) -> list[float | None]:
    """When files were last written, in seconds since the epoch; None for one that is not there."""
    return [info.mtime_ns / 1e9 if info.type == fs.FileType.File else None for info in _infos(places)]


def names(place: Place) -> list[str]:
    """Names of the files and folders in a folder, sorted; none where there is no such folder."""
    system, path = filesystem(place)
    found = _asked(place, lambda: system.get_file_info(fs.FileSelector(path, allow_not_found=True)))
    return sorted(info.base_name for info in found)


def bytes_below(place: Place) -> int:
    """Bytes of a file, of all files below a folder, or below that of a glob; 0 where nobody can look."""
    base, star, _ = str(place).partition("*")
    place = (base.rpartition("/")[0] or ".") if star else place
    try:
        system, path = filesystem(place)
        info = system.get_file_info(path)
        if info.type == fs.FileType.File:
            return int(info.size)
        found = system.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
    except (OSError, ValueError, StoreError):
        return 0
    return sum(int(one.size) for one in found if one.type == fs.FileType.File)


def read_bytes(place: Place) -> bytes:
    """Content of a file.

    Raises:
        FileNotFoundError: There is none.
    """
    with open_input(place) as stream:
        return bytes(stream.read())


def read_text(place: Place) -> str:
    """Content of a file of UTF-8."""
    return read_bytes(place).decode("utf-8")


def open_input(place: Place) -> pa.NativeFile:
    """A file to read anywhere in, for Parquet and the like; close it.

    Raises:
        FileNotFoundError: There is none.
    """
    system, path = filesystem(place)
    return _asked(place, lambda: system.open_input_file(path))


def write_bytes(place: Place, content: bytes) -> None:
    """Write a file, replacing one that is there: whole on storage when this returns, or not there at all."""
    if is_local(place):
        with writing(place) as draft:
            draft.write_bytes(content)
        return
    system, path = filesystem(place)

    def put() -> None:
        # An object appears when its stream is closed, never in part.
        with system.open_output_stream(path) as stream:
            stream.write(content)

    _asked(place, put)


def write_text(place: Place, text: str) -> None:
    """Write a file of UTF-8; as `write_bytes`."""
    write_bytes(place, text.encode("utf-8"))


@contextlib.contextmanager
def writing(place: Place) -> Iterator[Path]:
    """A local file to write, which is at the place when the block ends without an error; as `write_bytes`."""
    if not is_local(place):
        with tempfile.TemporaryDirectory(prefix="hinet-upload-") as folder:
            draft = Path(folder, name_of(place))
            yield draft
            upload(draft, place)
        return
    target = Path(normalised(place))
    _make_folder(target.parent)
    draft = target.with_name(f".{target.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        yield draft
        with draft.open("rb") as stream:
            os.fsync(stream.fileno())
        draft.replace(target)
        _sync_folder(target.parent)
    finally:
        draft.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Make a folder and what lacks above it, so that they are there after a loss of power too."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk: a file that is on the disk under no name is lost."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems know no such call for folders.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_output(place: Place) -> Iterator[BinaryIO]:
    """A file to write from front to back, in parts; it is at the place when the block ends without an error.

    On an object store a block that fails may leave an object that is cut: where that matters, a file that is
    written afterwards says what is whole.
    """
    if is_local(place):
        with writing(place) as draft, draft.open("wb") as stream:
            yield stream
        return
    system, path = filesystem(place)
    with _asked(place, lambda: system.open_output_stream(path)) as stream:
        yield stream


@contextlib.contextmanager
def reading(place: Place) -> Iterator[Path]:
    """A local file with the content of a place: that very file, or a copy for as long as the block runs.

    Raises:
        FileNotFoundError: There is none.
    """
    if is_local(place):
        if not is_file(place):
            raise FileNotFoundError(f"{normalised(place)}: there is no such file")
        yield Path(normalised(place))
        return
    with tempfile.TemporaryDirectory(prefix="hinet-download-") as folder:
        copy = Path(folder, name_of(place))
        download(place, copy)
        yield copy


def upload(file: Path, place: Place) -> None:
    """Copy a local file to a place; as `write_bytes`."""
    if is_local(place):
        with writing(place) as draft:
            shutil.copyfile(file, draft)
        return
    _copied((fs.LocalFileSystem(), str(file.absolute())), filesystem(place), place)


def download(place: Place, file: Path) -> None:
    """Copy a file from a place to a local path; it appears there whole or not at all.

    Raises:
        FileNotFoundError: There is none.
    """
    if not is_file(place):
        raise FileNotFoundError(f"{normalised(place)}: there is no such file")
    with writing(file) as draft:
        _copied(filesystem(place), (fs.LocalFileSystem(), str(draft)), place)


def delete(place: Place) -> None:
    """Remove a file, or a folder with all that is in it; what is not there is none to remove."""
    system, path = filesystem(place)
    found = _info(place)
    if found.type == _MISSING:
        return
    remove = system.delete_dir if found.type == fs.FileType.Directory else system.delete_file
    with contextlib.suppress(FileNotFoundError):  # another process was as quick
        _asked(place, lambda: remove(path))


def _info(place: Place) -> fs.FileInfo:
    system, path = filesystem(place)
    return _asked(place, lambda: system.get_file_info(path))


def _infos(places: Sequence[Place]) -> list[fs.FileInfo]:
    """Several files are asked for at a time, where each is a request."""
    if all(is_local(place) for place in places):
        return [_info(place) for place in places]
    with ThreadPoolExecutor(_CALLS_AT_ONCE) as pool:
        return list(pool.map(_info, places))


def _asked(place: Place, call: Callable[[], T]) -> T:
    """Ask a store; what it answers other than "not there" names the place."""
    try:
        return call()
    except FileNotFoundError:
        raise
    except OSError as error:
        if is_local(place):
            raise
        raise StoreError(f"{normalised(place)}: the store refuses or does not answer: {error}") from error


def _copied(source: tuple[fs.FileSystem, str], target: tuple[fs.FileSystem, str], place: Place) -> None:
    """Copy one file, in parts; never held whole."""
    (system, path), (to_system, to_path) = source, target
    _asked(
        place,
        lambda: fs.copy_files(path, to_path, source_filesystem=system, destination_filesystem=to_system),
    )
