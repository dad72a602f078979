"""Delta tables as they will be some weeks from now, and VACUUM at its defaults."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pyspark.sql import SparkSession

DAY = 86_400


def aged(table: Path, seconds: int) -> None:
    """Let a table have been written that much earlier: files, commits, and the times that the commits bear."""
    moments = {file: file.stat().st_mtime - seconds for file in table.rglob("*")}
    for commit in (table / "_delta_log").glob("*.json"):
        actions = [json.loads(line) for line in commit.read_text().splitlines()]
        for action in actions:
            if "remove" in action:
                action["remove"]["deletionTimestamp"] -= seconds * 1000
        commit.write_text("\n".join(map(json.dumps, actions)))
    for file, moment in moments.items():
        # Checksums in the log, of Delta's and of Hadoop's, are of what was there.
        if file.parent.name == "_delta_log" and ".c" in file.name:
            file.unlink()
        else:
            os.utime(file, (moment, moment))


def vacuum(spark: SparkSession, *tables: Path) -> None:
    """VACUUM tables as Delta does by default."""
    assert spark._jvm is not None
    # Delta knows the state of tables that it has read, and these are others now.
    spark._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()
    # It lists folders in as many tasks as this says: 10,000, for two folders.
    spark.conf.set("spark.sql.sources.parallelPartitionDiscovery.parallelism", "2")
    try:
        for table in tables:
            spark.sql(f"VACUUM delta.`{table}`")
    finally:
        spark.conf.unset("spark.sql.sources.parallelPartitionDiscovery.parallelism")
