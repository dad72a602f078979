"""Readers of tables by path meet whole versions; what was replaced stays readable for as long as it is promised."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from aged_tables import DAY, aged, vacuum
from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from feature_eng import delta

pytestmark = pytest.mark.spark


def test_vacuum_at_its_defaults_leaves_what_was_replaced_for_thirty_days(
    spark: SparkSession, tmp_path: Path
) -> None:
    table = tmp_path / "examples"
    first = delta.write(spark.range(3).coalesce(1), table, properties=delta.kept_for())
    delta.write(spark.range(5).coalesce(1), table, properties=delta.kept_for())
    old = {Path(file) for file in delta.read(spark, table, first).inputFiles()}
    assert len(old) == 1
    files = {table / file.name for file in old}
    aged(table, 29 * DAY)
    vacuum(spark, table)
    assert all(file.exists() for file in files)
    aged(table, 2 * DAY)
    vacuum(spark, table)
    assert not any(file.exists() for file in files)
    assert delta.num_rows(spark, table, 1) == delta.read(spark, table).count() == 5


def test_who_reads_by_path_during_ten_rebuilds_sees_whole_tables_alone(
    spark: SparkSession, tmp_path: Path
) -> None:
    table = str(tmp_path / "events")
    whole = set(range(100, 111))
    delta.write(spark.range(100).repartition(3), table, properties=delta.kept_for())
    seen: list[int] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.append(spark.read.format("delta").load(table).count())
            seen.append(DeltaTable(table).to_pyarrow_table().num_rows)

    with ThreadPoolExecutor(1) as threads:
        reader = threads.submit(look)
        try:
            for rows in sorted(whole)[1:]:
                delta.write(spark.range(rows).repartition(3), table, properties=delta.kept_for())
        finally:
            done.set()
        reader.result()
    assert set(seen) <= whole
    assert len(seen) > 3
    assert spark.read.format("delta").load(table).count() == max(whole)


def test_days_are_replaced_whole_and_the_other_days_keep_their_files(
    spark: SparkSession, tmp_path: Path
) -> None:
    table = str(tmp_path / "examples")

    def days(first: int, rows: int) -> DataFrame:
        return spark.range(first * 100, first * 100 + rows).select("id", F.lit(first).alias("day"))

    delta.write(days(1, 5).unionByName(days(2, 6)), table, partition_by=["day"], properties=delta.kept_for())
    before = delta.partitions(table, 0, "day")
    version = delta.write(days(2, 9), table, where="day = 2")
    now = delta.partitions(table, version, "day")
    assert (version, delta.num_rows(spark, table, version)) == (1, 14)
    assert now[1] == before[1]
    assert not now[2] & before[2]
    with pytest.raises(Exception, match="DELTA_REPLACE_WHERE_MISMATCH"):
        delta.write(days(1, 9), table, where="day = 2")
    assert delta.newest_version(table) == version
    assert delta.write(days(2, 0), table, where="day = 2") == 2
    assert delta.num_rows(spark, table, 2) == 5
    for _ in range(5):
        another = delta.write(spark.range(1), tmp_path / "another", properties=delta.kept_for())
    # Nothing was there and nothing is to be: no commit of another table is taken for one.
    assert delta.write(days(2, 0), table, where="day = 2") == delta.newest_version(table) < another
    assert delta.properties(table, 2)["delta.deletedFileRetentionDuration"] == delta.RETENTION


def test_days_and_properties_are_replaced_in_one_commit(spark: SparkSession, tmp_path: Path) -> None:
    table = str(tmp_path / "training")

    def write(day: int, rows: int, build: str, where: str | None) -> int:
        made = spark.range(day * 100, day * 100 + rows).select("id", F.lit(day).alias("day"))
        properties = {**delta.kept_for(), "hinet.build": build}
        schema = T.StructType(
            [T.StructField("id", T.LongType(), False), T.StructField("day", T.IntegerType(), False)]
        )
        return delta.write(
            made, table, partition_by=["day"], properties=properties, schema=schema, where=where
        )

    assert write(1, 5, "first", None) == 0
    assert write(2, 6, "second", "day = 2") == 1
    files = delta.partitions(table, 1, "day")
    assert write(2, 0, "third", "day IN (2)") == 2
    assert write(2, 0, "fourth", "false") == 3
    assert [delta.properties(table, version)["hinet.build"] for version in range(4)] == [
        "first", "second", "third", "fourth",
    ]  # fmt: skip
    assert [delta.num_rows(spark, table, version) for version in range(4)] == [5, 11, 5, 5]
    assert delta.partitions(table, 3, "day") == {1: files[1]} == delta.partitions(table, 0, "day")
    with pytest.raises(Exception, match="DELTA_REPLACE_WHERE_MISMATCH"):
        write(1, 5, "fifth", "day = 2")
