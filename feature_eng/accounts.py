"""Accounts: how many rows a build took in, kept and rejected, and why, as its tables have them."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from feature_eng import delta
from foundation import stores

_RELATED = "events_"


@dataclass(frozen=True)
class Account:
    """One raw table of a build.

    Attributes:
        table: Its name in the contract.
        kept: Rows that went on.
        rejected: Reason -> rows.
    """

    table: str
    kept: int
    rejected: dict[str, int]

    @property
    def taken(self) -> int:
        """Rows that came in."""
        return self.kept + sum(self.rejected.values())


def accounts(spark: SparkSession, root: str, main_table: str) -> list[Account]:
    """The account of every raw table, from the newest versions of events and rejects.

    Args:
        spark: The session.
        root: Folder of the build's tables.
        main_table: Name of the raw table that examples are made of; other tables' rows bear their own.

    Raises:
        SnapshotError: A table is not there.
    """
    counted = delta.read(spark, stores.join(root, "rejects")).groupBy("table", "reason").agg(F.count("*"))
    rejected: dict[str, dict[str, int]] = {}
    for table, reason, rows in counted.orderBy("table", "reason").collect():
        rejected.setdefault(table, {})[reason] = rows
    places = {main_table: "events"}
    places |= {name.removeprefix(_RELATED): name for name in stores.names(root) if name.startswith(_RELATED)}
    return [
        Account(name, delta.read(spark, stores.join(root, place)).count(), rejected.get(name, {}))
        for name, place in places.items()
    ]
