"""Turns: one process at a time does what would be wrong if two did it.

A disk locks a file for the process, and frees it however that ends. An object store knows no locks, so there a turn is
a *claim* (`foundation.claims`).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foundation import stores
from foundation.claims import TURN, TurnError, claimed


@contextmanager
def one_at_a_time(folder: stores.Place, what: str) -> Iterator[None]:
    """Hold a folder's turn; it is free again when the process ends, however it does.

    On an object store a process that is killed holds it a few minutes longer. On a mount without locks nothing is held.

    Args:
        folder: Made where it is not there.
        what: Is done, for the message.

    Raises:
        TurnError: Another process holds it, or took it over from this one.
    """
    if not stores.is_local(folder):
        with claimed(folder, what):
            yield
        return
    place = Path(stores.normalised(folder))
    try:
        place.mkdir(parents=True, exist_ok=True)
        file = (place / TURN).open("a+")
    except OSError:  # a mount that cannot append; where nothing can be written, the work itself will say so
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise TurnError(f"{place}: {what} is under way (process {holder}); wait for its end") from None
        except OSError:  # a mount without locks
            yield
            return
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
