"""Audit: every decision about a model in a Delta table, and the one place where promoters meet.

Each record is one commit, so nothing is lost or rewritten. Before an alias moves, a promoter *claims* the model: it
commits a record under the model's transaction number, which Delta lets one writer have. Whoever comes at the same
moment is told so, and so is whoever finds a claim that is still open. The table is written by delta-rs: no Spark,
any store that it can write to.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from foundation import access, places
from foundation.settings import UserError

CLAIM_SECONDS = 600
"""Age at which an open claim is taken for one whose promoter died."""

_MOVES = ("claimed", "done", "failed")
_SCHEMA = pa.schema(
    [
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("who", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("version", pa.string()),
        pa.field("action", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("champion_before", pa.string()),
        pa.field("champion_after", pa.string()),
        pa.field("reasons", pa.list_(pa.string())),
        pa.field("policy", pa.string()),
        pa.field("evaluation", pa.string()),
    ]
)


class ClaimedError(UserError):
    """Another promoter is at work on the same model."""

    code = "PROMOTION_UNDER_WAY"


@dataclass(frozen=True)
class Record:
    """One decision.

    Attributes:
        model, version: What it was about; no version for a rollback that found nothing.
        action: ``promote``, ``rollback`` or ``approve``.
        outcome: ``claimed`` (an alias is about to move), then ``done`` or ``failed``; or, without a claim, ``refused``,
            ``approved``.
        champion_before, champion_after: Versions; ``None`` without a champion.
        reasons: As the gate gave them.
        policy: The rules in force, as JSON.
        evaluation: What was decided by: when it was made, on which rows, as JSON.
    """

    model: str
    version: str | None
    action: str
    outcome: str
    champion_before: str | None = None
    champion_after: str | None = None
    reasons: tuple[str, ...] = ()
    policy: str | None = None
    evaluation: str | None = None


class Audit:
    """The audit table of a warehouse.

    Args:
        table: Path or URI of the table (:func:`beside`); made with the first record.
        who: Who decides; the user of this process if not given.
    """

    def __init__(self, table: str, who: str | None = None) -> None:
        self.table, self._who = table, who or getpass.getuser()

    def write(self, record: Record) -> None:
        """Append a record."""
        self._append(self._open(), record)

    def records(self, model: str | None = None) -> list[dict[str, Any]]:
        """All records, of one model if one is named, in the order in which they were made."""
        return _records(self._open(), model)

    @contextmanager
    def claim(self, record: Record) -> Iterator[None]:
        """Hold a model while its aliases move; the outcome is recorded when the block is left.

        Args:
            record: What is about to happen; its outcome is filled in.

        Raises:
            ClaimedError: Somebody else is at it.
        """
        # One view of the table for both: a claim that it does not show makes this commit fail.
        table = self._open()
        _refuse_open_claim(table, record.model)
        number = (table.transaction_version(_transaction(record.model)) or 0) + 1
        try:
            self._append(table, record, outcome="claimed", transaction=number)
        except CommitFailedError as error:
            raise ClaimedError(
                f"model '{record.model}': another promotion was begun at this very moment; look at its "
                "outcome, evaluate again if need be"
            ) from error
        try:
            yield
        except BaseException as error:
            why = (*record.reasons, str(error).partition("\n")[0])
            # How far it came is not known here.
            self._append(self._open(), replace(record, champion_after=None), outcome="failed", reasons=why)
            raise
        self._append(self._open(), record, outcome="done")

    def _open(self) -> DeltaTable:
        """The table as it is now, made if there is none."""
        address, options = access.for_delta_rs(self.table)
        try:
            return DeltaTable(address, storage_options=options)
        except TableNotFoundError:
            with suppress(DeltaError):  # another process may have made it meanwhile
                DeltaTable.create(address, _SCHEMA, mode="ignore", name="promotions", storage_options=options)
            return DeltaTable(address, storage_options=options)

    def _append(
        self, table: DeltaTable, record: Record, *, outcome: str | None = None,
        reasons: tuple[str, ...] | None = None, transaction: int | None = None,
    ) -> None:  # fmt: skip
        content: Mapping[str, Any] = {
            **asdict(record),
            "at": datetime.now(UTC),
            "who": self._who,
            "outcome": outcome or record.outcome,
            "reasons": list(reasons if reasons is not None else record.reasons),
        }
        rows = pa.Table.from_pylist([content], schema=_SCHEMA)
        claimed = None
        if transaction is not None:
            claimed = CommitProperties(
                app_transactions=[Transaction(_transaction(record.model), transaction)]
            )
        write_deltalake(table, rows, mode="append", commit_properties=claimed)


def _records(table: DeltaTable, model: str | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.table(table.to_pyarrow_table()).to_pylist()
    return sorted((row for row in rows if model is None or row["model"] == model), key=lambda row: row["at"])


def _refuse_open_claim(table: DeltaTable, model: str) -> None:
    moving = [row for row in _records(table, model) if row["outcome"] in _MOVES]
    if not moving or moving[-1]["outcome"] != "claimed":
        return
    last = moving[-1]
    if datetime.now(UTC) - last["at"] < timedelta(seconds=CLAIM_SECONDS):
        raise ClaimedError(
            f"model '{model}': {last['action']} of version {last['version']} by {last['who']} is under way since "
            f"{last['at']:%Y-%m-%d %H:%M:%S} UTC; wait for it, then evaluate again"
        )


def beside(training_table: str) -> str:
    """The audit table of a warehouse: ``promotions``, beside the training table."""
    return places.join(places.parent(training_table), "promotions")


def _transaction(model: str) -> str:
    return f"promotion:{model}"


def as_json(content: Mapping[str, Any]) -> str:
    """One line of JSON for a record."""
    return json.dumps(content, sort_keys=True, default=str)
