"""Disks that fill up or turn read-only: a small one of memory, where the system lets us mount it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_SIZE = "64m"


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A disk of its own, of 64 MiB.

    Raises:
        OSError: The system does not let us mount: not root, or a container without the right to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def full(disk: Path) -> Callable[[], None]:
    """Fill a disk to its last byte; what makes room again."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 12)):
            pass
    return filler.unlink


def read_only(disk: Path) -> Callable[[], None]:
    """Let a disk take nothing any more; what lets it again."""
    deadline = time.monotonic() + 30
    while True:
        try:
            _mount("-o", "remount,ro", str(disk))
        except OSError:  # a file is being written
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return lambda: _mount("-o", "remount,rw", str(disk))


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.returncode, f"mount: {done.stderr.strip() or os.strerror(done.returncode)}")
