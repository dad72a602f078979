"""Accounts: how many rows a build took in, kept and rejected, and why, as its tables have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng import delta
from feature_eng.contract import RELATED_EVENTS
from feature_eng.origin import origin_of
from foundation import stores


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


def accounts_of(spark: SparkSession, training: str, version: int, main_table: str) -> list[Account]:
    """The account of every raw table that a version of a training table was made of.

    Raises:
        SnapshotError: It does not say which tables those are, or they are gone.
    """
    origin = origin_of(training, delta.properties(training, version))
    return accounts(spark, origin.root, main_table, origin.tables)


def accounts(spark: SparkSession, root: str, main_table: str, versions: Mapping[str, int]) -> list[Account]:
    """The account of every raw table of one build.

    Args:
        spark: The session.
        root: Folder of the build's tables.
        main_table: Name of the raw table that examples are made of; other tables' rows bear their own.
        versions: Table of events, and ``rejects`` -> the version that the build made.

    Raises:
        SnapshotError: A table or version is not there.
    """

    def rows(table: str) -> DataFrame:
        return delta.read(spark, stores.join(root, table), versions[table])

    rejected: dict[str, dict[str, int]] = {}
    counted = rows("rejects").groupBy("table", "reason").agg(F.count("*"))
    for table, reason, count in counted.orderBy("table", "reason").collect():
        rejected.setdefault(table, {})[reason] = count
    places = {main_table: "events"}
    places |= {
        name.removeprefix(RELATED_EVENTS): name
        for name in sorted(versions)
        if name.startswith(RELATED_EVENTS)
    }
    return [Account(name, rows(place).count(), rejected.get(name, {})) for name, place in places.items()]
