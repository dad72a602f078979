"""Readers of tables by path meet whole versions; what was replaced stays readable for as long as it is promised."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng import delta

pytestmark = pytest.mark.spark

DAY = 86_400


def aged(table: Path, seconds: int) -> None:
    """Let a table have been written that much earlier: files, commits, and the times that the commits bear."""
    moment = time.time() - seconds
    for commit in (table / "_delta_log").glob("*.json"):
        actions = [json.loads(line) for line in commit.read_text().splitlines()]
        for action in actions:
            if "remove" in action:
                action["remove"]["deletionTimestamp"] -= seconds * 1000
        commit.write_text("\n".join(map(json.dumps, actions)))
    for summary in (table / "_delta_log").glob(
        "*.c*"
    ):  # checksums, of Delta's and of Hadoop's, are of what was there
        summary.unlink()
    for file in table.rglob("*"):
        os.utime(file, (moment, moment))


def test_vacuum_at_its_defaults_leaves_what_was_replaced_for_thirty_days(
    spark: SparkSession, tmp_path: Path
) -> None:
    table = tmp_path / "examples"
    first = delta.write(spark.range(3).coalesce(1), table, properties=delta.kept_for())
    delta.write(spark.range(5).coalesce(1), table, properties=delta.kept_for())
    old = {Path(file) for file in delta.read(spark, table, first).inputFiles()}
    assert len(old) == 1
    aged(table, 29 * DAY)
    moved = table.rename(tmp_path / "aged")  # Delta knows the state of the other place
    # It lists folders in as many tasks as this says: 10,000, for two folders.
    spark.conf.set("spark.sql.sources.parallelPartitionDiscovery.parallelism", "2")
    try:
        spark.sql(f"VACUUM delta.`{moved}`")
    finally:
        spark.conf.unset("spark.sql.sources.parallelPartitionDiscovery.parallelism")
    assert all((moved / file.name).exists() for file in old)


def test_who_reads_by_path_during_rebuilds_sees_whole_tables_alone(
    spark: SparkSession, tmp_path: Path
) -> None:
    table = str(tmp_path / "events")
    whole = {100, 101, 102, 103, 104, 105}
    delta.write(spark.range(100).repartition(3), table, properties=delta.kept_for())
    seen: list[int] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.append(spark.read.format("delta").load(table).count())

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for rows in sorted(whole)[1:]:
            delta.write(spark.range(rows).repartition(3), table, properties=delta.kept_for())
    finally:
        done.set()
        reader.join()
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
    version = delta.write_partitions(days(2, 9), table, "day = 2")
    now = delta.partitions(table, version, "day")
    assert (version, delta.num_rows(spark, table, version)) == (1, 14)
    assert now[1] == before[1]
    assert not now[2] & before[2]
    with pytest.raises(Exception, match="DELTA_REPLACE_WHERE_MISMATCH"):
        delta.write_partitions(days(1, 9), table, "day = 2")
    assert delta.newest_version(table) == version
    assert delta.write_partitions(days(2, 0), table, "day = 2") == 2
    assert delta.num_rows(spark, table, 2) == 5
    assert delta.properties(table, 2)["delta.deletedFileRetentionDuration"] == delta.RETENTION
