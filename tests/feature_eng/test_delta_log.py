"""What the log says of a table version: delta-rs, which reads it here, against Spark, which wrote it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from feature_eng import delta
from feature_eng.snapshot import SnapshotError

pytestmark = pytest.mark.spark

PROPERTIES = {
    "hinet.contract": "shop",
    "hinet.contract_fingerprint": "abc",
    "hinet.encoder_digest": "def",
    "hinet.encoder_path": "/encoder",
    "hinet.scenarios": json.dumps(["home", "search"]),
}
DELETE = "DELETE FROM {table} WHERE row_id = 1"
INSERT = "INSERT INTO {table} VALUES (20, 0, 'test')"
WIDEN = "ALTER TABLE {table} ALTER COLUMN scenario_index TYPE BIGINT"
WITH_VECTORS = {"delta.enableDeletionVectors": "true"}

FEATURES = {
    "no feature": ({}, [INSERT], None),
    "deletion vectors, no row deleted": (WITH_VECTORS, [], None),
    "deletion vectors": (WITH_VECTORS, [DELETE], "deletion vectors.*REORG"),
    "deletion vectors, purged": (WITH_VECTORS, [DELETE, "REORG TABLE {table} APPLY (PURGE)"], None),
    "column mapping by name": ({"delta.columnMapping.mode": "name"}, [], "column mapping"),
    "column mapping by id": ({"delta.columnMapping.mode": "id"}, [], "column mapping"),
    "type widening": ({"delta.enableTypeWidening": "true"}, [WIDEN], "type widening"),
    "checkpoints": ({"delta.checkpointInterval": "1"}, [INSERT], None),
    "v2 checkpoints": ({"delta.checkpointPolicy": "v2", "delta.checkpointInterval": "1"}, [INSERT], None),
    "vacuum protocol check": ({"delta.feature.vacuumProtocolCheck": "supported"}, [], None),
    "timestamps without a zone": ({"delta.feature.timestampNtz": "supported"}, [], None),
    "times in commits": ({"delta.enableInCommitTimestamps": "true"}, [INSERT], None),
    "variants": ({"delta.feature.variantType-preview": "supported"}, [], "not known here: variantType"),
}


def make_table(spark: SparkSession, path: Path, properties: dict[str, str], splits: tuple[str, ...]) -> str:
    """A small training table: ten rows, dealt over the splits, a file for each."""
    split = F.element_at(F.array(*map(F.lit, splits)), (F.col("id") % len(splits) + 1).cast("int"))
    rows = spark.range(10).coalesce(1).select(
        F.col("id").alias("row_id"), (F.col("id") % 2).cast("int").alias("scenario_index"), split.alias("split")
    )  # fmt: skip
    delta.write(rows, path, partition_by=["split"], properties={**PROPERTIES, **properties})
    return f"delta.`{path}`"


def files_of_spark(spark: SparkSession, path: Path, version: int) -> set[str]:
    """Paths of the files that Spark reads for a version."""
    found = spark.read.format("delta").option("versionAsOf", version).load(str(path)).inputFiles()
    assert found
    return {name.removeprefix("file://").removeprefix("file:") for name in found}


def rows_of_spark(spark: SparkSession, path: Path, version: int) -> dict[str, int]:
    """Rows of each split, as Spark counts them."""
    rows = spark.read.format("delta").option("versionAsOf", version).load(str(path))
    return {row["split"]: row["count"] for row in rows.groupBy("split").count().collect()}


@pytest.mark.parametrize(("properties", "statements", "refused"), FEATURES.values(), ids=FEATURES)
def test_delta_rs_and_spark_see_the_same_version(
    spark: SparkSession,
    tmp_path: Path,
    properties: dict[str, str],
    statements: list[str],
    refused: str | None,
) -> None:
    table = make_table(spark, tmp_path / "t", properties, ("train", "test"))
    for statement in statements:
        spark.sql(statement.format(table=table))
    log = delta._read_log(tmp_path / "t", None)
    detail = spark.sql(f"DESCRIBE DETAIL {table}").first()
    assert detail is not None
    assert (log.table_id, log.partition_columns) == (detail["id"], detail["partitionColumns"])
    assert {**log.properties, **detail["properties"]} == dict(log.properties)
    assert log.reader_features <= set(detail["tableFeatures"])
    assert {f"{tmp_path}/t/{unquote(file.uri)}" for file in log.files} == files_of_spark(
        spark, tmp_path / "t", log.version
    )
    assert sum(file.size for file in log.files) == detail["sizeInBytes"]
    newest = spark.sql(f"DESCRIBE HISTORY {table} LIMIT 1").first()
    assert newest is not None
    assert log.version == newest["version"]
    if refused is not None:
        with pytest.raises(SnapshotError, match=refused):
            delta.snapshot(spark, tmp_path / "t")
        return
    snapshot = delta.snapshot(spark, tmp_path / "t")
    assert {split: snapshot.rows(split) for split in ("train", "test")} == rows_of_spark(
        spark, tmp_path / "t", log.version
    )


SPLITS = ("x", "x y", "100%", "a/b", "é中", "x%20y", "a=b", "c:d", "q?#")


def test_partition_values_are_read_back_letter_by_letter(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "a table%20of 100%"
    make_table(spark, path, {}, SPLITS)
    snapshot = delta.snapshot(spark, path)
    assert {split: snapshot.rows(split) for split in SPLITS} == rows_of_spark(spark, path, 0)
    assert {file.path for file in snapshot.files} == files_of_spark(spark, path, 0)
    for split in SPLITS:
        snapshot.check_files(split)


def test_a_null_partition_value_is_none(spark: SparkSession, tmp_path: Path) -> None:
    rows = spark.createDataFrame([(1, "a"), (2, None)], "row_id bigint, split string")
    delta.write(rows, tmp_path / "t", partition_by=["split"])
    values = [file.partition["split"] for file in delta._read_log(tmp_path / "t", None).files]
    assert sorted(values, key=str) == [None, "a"]


def test_every_version_is_read_as_spark_reads_it(spark: SparkSession, tmp_path: Path) -> None:
    table = make_table(spark, tmp_path / "t", {}, ("train", "test"))
    spark.sql(INSERT.format(table=table))
    spark.sql(f"ALTER TABLE {table} SET TBLPROPERTIES ('mine' = '2')")
    spark.sql(f"DELETE FROM {table} WHERE split = 'test'")
    for version in range(4):
        log = delta._read_log(tmp_path / "t", version)
        assert {f"{tmp_path}/t/{unquote(file.uri)}" for file in log.files} == files_of_spark(
            spark, tmp_path / "t", version
        )
        assert log.properties.get("mine") == ("2" if version >= 2 else None)


def test_a_shallow_clone_s_files_are_those_of_the_other_table(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "the first%20one"
    make_table(spark, path, {}, ("train", "x y"))
    spark.sql(f"CREATE TABLE delta.`{tmp_path}/clone` SHALLOW CLONE delta.`{path}`")
    snapshot = delta.snapshot(spark, tmp_path / "clone")
    assert {file.path for file in snapshot.files} == files_of_spark(spark, path, 0)


def test_a_version_whose_files_were_vacuumed_names_the_first_that_is_gone(
    spark: SparkSession, tmp_path: Path
) -> None:
    make_table(spark, tmp_path / "t", {}, ("train",))
    make_table(spark, tmp_path / "t", {}, ("train", "test"))
    DeltaTable(str(tmp_path / "t")).vacuum(0, dry_run=False, enforce_retention_duration=False)
    with pytest.raises(
        SnapshotError, match=r"\.parquet: the table's log lists this file, but it cannot be read"
    ):
        delta.snapshot(spark, tmp_path / "t", 0)
    assert delta.snapshot(spark, tmp_path / "t", 1).rows("train") == 5


def test_a_version_whose_log_was_cleaned_up_is_named(spark: SparkSession, tmp_path: Path) -> None:
    table = make_table(spark, tmp_path / "t", {"delta.checkpointInterval": "2"}, ("train",))
    for _ in range(2):
        spark.sql(INSERT.format(table=table))
    (tmp_path / "t" / "_delta_log" / f"{0:020d}.json").unlink()
    with pytest.raises(SnapshotError, match=r"version 1 can no longer be read.*the newest is 2"):
        delta.properties(tmp_path / "t", 1)
    assert delta.snapshot(spark, tmp_path / "t", 2).rows("train") == 10


def test_a_reader_feature_of_the_future_is_refused_by_name(spark: SparkSession, tmp_path: Path) -> None:
    make_table(spark, tmp_path / "t", {}, ("train",))
    log = tmp_path / "t" / "_delta_log"
    protocol = {
        "minReaderVersion": 3, "minWriterVersion": 7,
        "readerFeatures": ["spokenColumns"], "writerFeatures": ["spokenColumns"],
    }  # fmt: skip
    (log / f"{1:020d}.json").write_text(json.dumps({"protocol": protocol}) + "\n")
    shutil.rmtree(log / "_sidecars", ignore_errors=True)
    with pytest.raises(SnapshotError, match="spokenColumns"):
        delta.snapshot(spark, tmp_path / "t")


@pytest.mark.parametrize("place", ["nothing", "empty", "files"])
def test_a_place_without_a_table_is_named_and_left_as_it_is(
    spark: SparkSession, tmp_path: Path, place: str
) -> None:
    if place != "nothing":
        (tmp_path / place).mkdir()
    if place == "files":
        (tmp_path / place / "a.parquet").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SnapshotError, match=f"{place}: there is no Delta table"):
        delta.read(spark, tmp_path / place)
    assert sorted(tmp_path.rglob("*")) == before
