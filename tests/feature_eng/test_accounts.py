"""Every raw row is accounted for: kept, or rejected for a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from feature_eng import delta
from feature_eng.accounts import Account, accounts
from feature_eng.snapshot import SnapshotError

pytestmark = pytest.mark.spark


def test_rows_are_counted_by_table_and_by_reason(spark: SparkSession, tmp_path: Path) -> None:
    rejects = [("views", "no user"), ("views", "no user"), ("views", "no time"), ("orders", "no item")]
    delta.write(spark.createDataFrame(rejects, "`table` string, reason string"), tmp_path / "rejects")
    delta.write(spark.createDataFrame([(1,), (None,)], "item long"), tmp_path / "events")
    delta.write(spark.createDataFrame([(1,)], "item long"), tmp_path / "events_orders")
    versions = {"events": 0, "rejects": 0, "events_orders": 0}
    # What a later build writes is not of this one.
    delta.write(spark.createDataFrame([(1,)] * 9, "item long"), tmp_path / "events")
    found = accounts(spark, str(tmp_path), "views", versions)
    assert found == [
        Account("views", 2, {"no time": 1, "no user": 2}),
        Account("orders", 1, {"no item": 1}),
    ]
    assert [one.taken for one in found] == [5, 2]


def test_tables_that_are_gone_are_named(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="rejects"):
        accounts(spark, str(tmp_path), "views", {"events": 0, "rejects": 0})
