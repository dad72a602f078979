"""Every raw row is accounted for: kept, or rejected for a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from small_logs import small_contract

from feature_eng import delta
from feature_eng.accounts import Account, accounts
from feature_eng.contract import Contract, ContractError
from feature_eng.events import tables
from feature_eng.events.keys import Keys
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


def test_a_raw_table_that_changes_while_it_is_read_is_named(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = tmp_path / "shown.csv"
    shown.write_text("row,who,what,at,page,price,clicked\nr1,1,a,100,1,1.0,1\n")
    read_keys = tables.read_keys

    def read_and_changed(frame: DataFrame, contract: Contract, *, times: bool) -> Keys:
        found = read_keys(frame, contract, times=times)
        with shown.open("a") as stream:
            stream.write("r2,1,a,200,1,1.0,0\n")
        return found

    monkeypatch.setattr(tables, "read_keys", read_and_changed)
    with pytest.raises(ContractError, match="source: rows of 'shown' came or went while they were read"):
        tables.write_events(spark, small_contract(), str(tmp_path), str(tmp_path / "built"))
