"""Store check: do the driver and all workers see the same place of checkpoints? Asked before an epoch is paid for.

The driver writes a token that nobody can guess, each worker reads it back and writes its answer beside it. A path
that every host has on a disk of its own, credentials that a host lacks, a bucket that may only be read: each ends
the run in its first seconds, where the first checkpoint would have ended it after an epoch.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from foundation import stores
from foundation.settings import UserError

_FOLDER = ".store-check"


class StoreCheckError(UserError):
    """A worker does not see what the driver sees, or may not write there."""


@contextmanager
def token_at(folder: str) -> Iterator[str]:
    """Write a token to a run's place of checkpoints, for as long as the workers may ask for it.

    Args:
        folder: Place of the run's checkpoints.

    Raises:
        StoreCheckError: The driver itself cannot write there.
    """
    token = secrets.token_hex(16)
    place = stores.join(folder, _FOLDER, token)
    try:
        stores.write_text(stores.join(place, "driver"), token)
    except (OSError, UserError) as error:
        raise StoreCheckError(f"checkpoint.folder: the driver cannot write to {folder}: {error}") from error
    try:
        yield token
    finally:
        # A store that takes nothing any more has ended the run: that is told, and not what is left lying there.
        with contextlib.suppress(OSError, UserError):
            stores.delete(stores.join(folder, _FOLDER))


def answer(folder: str, token: str, rank: int) -> None:
    """Read the driver's token back, and write this worker's answer.

    Args:
        folder: Place of the run's checkpoints.
        token: From `token_at`.
        rank: Of this worker.

    Raises:
        StoreCheckError: It is not there, or nothing can be written.
    """
    where = f"rank {rank} on {socket.gethostname()}"
    place = stores.join(folder, _FOLDER, token)
    try:
        found = stores.read_text(stores.join(place, "driver"))
    except FileNotFoundError:
        raise StoreCheckError(
            f"checkpoint.folder: {where} does not see in {folder} what the driver wrote there; expected a path on "
            "storage that all hosts share, or the URI of an object store"
        ) from None
    except (OSError, UserError) as error:
        raise StoreCheckError(f"checkpoint.folder: {where} cannot read {folder}: {error}") from error
    if found != token:
        raise StoreCheckError(
            f"checkpoint.folder: {where} reads another token in {folder} than the driver wrote"
        )
    try:
        stores.write_text(stores.join(place, f"rank-{rank}"), token)
    except (OSError, UserError) as error:
        raise StoreCheckError(f"checkpoint.folder: {where} cannot write to {folder}: {error}") from error
