"""Claims: one process at a time at a place of an object store, which knows no locks.

A claim is a commit to a small Delta table beside what it guards, under a transaction number that Delta lets one writer
have. Its holder renews it, so one that is not renewed is of a process that died, and is free.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from foundation import access, places
from foundation.settings import UserError

TURN = ".turn"
"""Name of what is claimed or locked, in the folder that it guards."""
RENEWED_SECONDS = 30.0
"""How often a holder renews its claim."""
FORGOTTEN_SECONDS = 300.0
"""Age at which a claim is of a process that died."""
_SCHEMA = pa.schema([("token", pa.string()), ("holder", pa.string()), ("at", pa.float64())])


class TurnError(UserError):
    """Another process is at it."""


@contextmanager
def claimed(folder: places.Place, what: str) -> Iterator[None]:
    """Hold a claim on a folder of an object store while a block runs.

    Args:
        folder: Whose.
        what: Is done, for the message.

    Raises:
        TurnError: Another process holds it; or, at the end, another took it over, as this one had not renewed it.
        StoreError: The store refuses.
    """
    claim = _Claim(folder, what)
    claim.take()
    done = threading.Event()
    keeper = threading.Thread(target=claim.keep, args=(done,), name="claim", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        is_own = claim.leave()
    if not is_own:
        raise TurnError(
            f"{claim.folder}: {what} took over, since nothing was heard of this one for {FORGOTTEN_SECONDS:.0f} s; "
            "what both have written may not belong together: run it again"
        )


class _Claim:
    """One process's claim.

    Args:
        folder: As `claimed` has it.
        what: The same.
    """

    def __init__(self, folder: places.Place, what: str) -> None:
        self.folder, self._what = places.normalised(folder), what
        self._token, self._holder = uuid.uuid4().hex, f"process {os.getpid()} on {socket.gethostname()}"

    def take(self) -> None:
        """Make the claim, or say who has it."""
        try:
            # One view of the table for both: a claim that it does not show makes this commit fail.
            table = self._open()
            last = _last(table)
            silent = time.time() - last["at"]
            if last["holder"] and silent < FORGOTTEN_SECONDS:
                raise TurnError(
                    f"{self.folder}: {self._what} is under way ({last['holder']}, heard of {max(silent, 0):.0f} s "
                    f"ago); wait for its end, or for {FORGOTTEN_SECONDS:.0f} s after it was killed"
                )
            self._commit(table, self._holder)
        except CommitFailedError:
            raise TurnError(
                f"{self.folder}: {self._what} was begun at this very moment; wait for its end"
            ) from None
        except (DeltaError, OSError) as error:
            raise places.StoreError(
                f"{self.folder}: the store refuses or does not answer: {error}"
            ) from error

    def keep(self, done: threading.Event) -> None:
        """Renew the claim until it is given up, or another process has it; a store that is away is asked again."""
        while not done.wait(RENEWED_SECONDS):
            with suppress(DeltaError, OSError):
                table = self._open()
                if _last(table)["token"] != self._token:
                    return
                self._commit(table, self._holder)

    def leave(self) -> bool:
        """Give the claim up; whether it still was this process's. One that cannot be given up is forgotten."""
        with suppress(DeltaError, OSError):
            table = self._open()
            if _last(table)["token"] != self._token:
                return False
            self._commit(table, "")
        return True

    def _open(self) -> DeltaTable:
        """The table as it is now, made if there is none."""
        address, options = access.for_delta_rs(places.join(self.folder, TURN))
        try:
            return DeltaTable(address, storage_options=options)
        except TableNotFoundError:
            with suppress(DeltaError):  # another process may have made it meanwhile
                DeltaTable.create(address, _SCHEMA, mode="ignore", storage_options=options)
            return DeltaTable(address, storage_options=options)

    def _commit(self, table: DeltaTable, holder: str) -> None:
        number = (table.transaction_version(TURN) or 0) + 1
        row = {"token": self._token, "holder": holder, "at": time.time()}
        claim = CommitProperties(app_transactions=[Transaction(TURN, number)])
        rows = pa.Table.from_pylist([row], schema=_SCHEMA)
        write_deltalake(table, rows, mode="overwrite", commit_properties=claim)


def _last(table: DeltaTable) -> dict[str, Any]:
    """The claim that was made last; nobody's where there has been none."""
    rows: list[dict[str, Any]] = pa.table(table.to_pyarrow_table()).to_pylist()
    return rows[0] if rows else {"token": "", "holder": "", "at": 0.0}
