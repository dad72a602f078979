"""Turns: one process at a time does what would be wrong if two did it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foundation import stores
from foundation.settings import UserError

_FILE = ".turn"


class TurnError(UserError):
    """Another process is at it."""


@contextmanager
def one_at_a_time(folder: stores.Place, what: str) -> Iterator[None]:
    """Hold a folder's turn; it is free again when the process ends, however it does.

    On local and mounted disks alone: an object store knows no such locks, and there nothing is held.

    Args:
        folder: Made where it is not there.
        what: Is done, for the message.

    Raises:
        TurnError: Another process holds it.
    """
    if not stores.is_local(folder):
        yield
        return
    place = Path(stores.normalised(folder))
    place.mkdir(parents=True, exist_ok=True)
    with (place / _FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise TurnError(f"{place}: {what} is under way (process {holder}); wait for its end") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
