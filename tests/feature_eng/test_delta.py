"""Delta tables: versions, and what a snapshot refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from feature_eng import delta
from feature_eng.snapshot import SnapshotError

pytestmark = pytest.mark.spark

PROPERTIES = {
    "hinet.contract": "shop",
    "hinet.contract_fingerprint": "abc",
    "hinet.encoder_digest": "def",
    "hinet.encoder_path": "/encoders/it's here",
    "hinet.scenarios": json.dumps(["home", "search"]),
}
SCHEMA = T.StructType(
    [
        T.StructField("row_id", T.LongType(), False),
        T.StructField("scenario_index", T.IntegerType(), False),
        T.StructField("price", T.FloatType(), False),
        T.StructField("split", T.StringType(), False),
    ]
)


def training_rows(spark: SparkSession, count: int) -> DataFrame:
    """Rows 0 to 5 are train, the rest test; scenarios alternate."""
    return spark.range(count).select(
        F.col("id").alias("row_id"),
        (F.col("id") % 2).cast("int").alias("scenario_index"),
        F.lit(1.0).cast("float").alias("price"),
        F.when(F.col("id") < 6, "train").otherwise("test").alias("split"),
    )


def write(spark: SparkSession, path: Path, count: int, **properties: str) -> int:
    return delta.write(
        training_rows(spark, count),
        path,
        partition_by=["split"],
        schema=SCHEMA,
        properties={**PROPERTIES, **properties},
    )


def test_a_snapshot_lists_the_files_of_its_version_alone(spark: SparkSession, tmp_path: Path) -> None:
    table = tmp_path / "a table%20of 100%"
    first = write(spark, table, 10)
    second = write(spark, table, 13)
    assert second == first + 1
    old, new = delta.snapshot(spark, table, first), delta.snapshot(spark, table)
    assert (new.version, old.version) == (second, first)
    assert not {file.path for file in old.files} & {file.path for file in new.files}
    for snapshot, count in ((old, 10), (new, 13)):
        rows = sorted(
            row
            for file in snapshot.files
            for row in pq.ParquetFile(file.path).read().column("row_id").to_pylist()
        )
        assert rows == list(range(count))
        assert all(file.size == Path(file.path).stat().st_size for file in snapshot.files)
        snapshot.check_files("train")
    assert old.scenario_rows == {"test": (2, 2), "train": (3, 3)}
    assert (new.rows("train"), new.rows("test")) == (6, 7)
    assert new.columns == (("row_id", "int64"), ("scenario_index", "int32"), ("price", "float32"))
    assert new.encoder_path == "/encoders/it's here"
    assert (new.contract_name, new.contract_fingerprint, new.encoder_digest) == ("shop", "abc", "def")
    assert delta.read(spark, table, first).count() == 10


def test_new_properties_never_meet_old_rows(spark: SparkSession, tmp_path: Path) -> None:
    table = tmp_path / "table"
    first = write(spark, table, 10)
    second = write(spark, table, 8, **{"hinet.encoder_digest": "other", "hinet.meaning": "2"})
    snapshots = [delta.snapshot(spark, table, v) for v in (first, second)]
    assert [(one.encoder_digest, one.meaning) for one in snapshots] == [("def", "1"), ("other", "2")]
    assert [delta.read(spark, table, v).count() for v in (first, second)] == [10, 8]


def test_a_rebuild_with_new_columns_and_properties_is_one_commit(spark: SparkSession, tmp_path: Path) -> None:
    table = tmp_path / "table"
    first = write(spark, table, 10)
    wider = T.StructType([*SCHEMA.fields, T.StructField("extra", T.IntegerType(), False)])
    rows = training_rows(spark, 4).withColumn("extra", F.col("scenario_index"))
    second = delta.write(
        rows, table, partition_by=["split"], schema=wider, properties={**PROPERTIES, "a": "b"}
    )
    assert (second, delta.newest_version(table)) == (first + 1, first + 1)
    assert {**delta.properties(table), "id": ""} == {**PROPERTIES, "a": "b", "id": ""}
    assert [name for name, _ in delta.snapshot(spark, table).columns] == [
        "row_id", "scenario_index", "price", "extra",
    ]  # fmt: skip
    assert {**delta.properties(table, first), "id": ""} == {**PROPERTIES, "id": ""}


def test_a_write_without_properties_keeps_those_that_there_are(spark: SparkSession, tmp_path: Path) -> None:
    delta.write(spark.range(3), tmp_path / "table", properties={"mine": "1"})
    delta.write(spark.createDataFrame([("a",)], "x string"), tmp_path / "table")
    assert delta.properties(tmp_path / "table")["mine"] == "1"


def test_the_version_returned_is_the_commit_s_own(spark: SparkSession, tmp_path: Path) -> None:
    versions = [delta.write(spark.range(3), tmp_path / "a", properties=p) for p in (None, {"x": "y"}, None)]
    assert versions == [0, 1, 2]
    assert delta.write(spark.range(3), tmp_path / "b") == 0


def test_a_null_is_rejected_at_write(spark: SparkSession, tmp_path: Path) -> None:
    write(spark, tmp_path / "table", 3)
    rows = training_rows(spark, 3).withColumn("price", F.lit(None).cast("float"))
    with pytest.raises(Exception, match=r"NOT NULL constraint violated for column: price"):
        delta.write(rows, tmp_path / "table", partition_by=["split"], schema=SCHEMA, properties=PROPERTIES)
    assert delta.snapshot(spark, tmp_path / "table").rows("train") == 3


def test_without_a_schema_the_table_takes_the_rows_own(spark: SparkSession, tmp_path: Path) -> None:
    delta.write(spark.range(3), tmp_path / "table")
    delta.write(spark.createDataFrame([("a", None)], "x string, y int"), tmp_path / "table")
    assert [tuple(row) for row in delta.read(spark, tmp_path / "table").collect()] == [("a", None)]
    assert delta.read(spark, tmp_path / "table", 0).count() == 3


@pytest.mark.parametrize("version", [7, -1])
def test_a_missing_version_is_named(spark: SparkSession, tmp_path: Path, version: int) -> None:
    newest = delta.write(spark.range(3), tmp_path / "table")
    with pytest.raises(SnapshotError, match=f"no version {version}; the newest is {newest}"):
        delta.snapshot(spark, tmp_path / "table", version)


def test_a_folder_that_is_no_table_is_named(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="there is no Delta table"):
        delta.read(spark, tmp_path / "nothing")


def test_deletion_vectors_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    table = tmp_path / "table"
    write(spark, table, 10, **{"delta.enableDeletionVectors": "true"})
    delta.snapshot(spark, table)
    spark.sql(f"DELETE FROM delta.`{table}` WHERE row_id = 1")
    with pytest.raises(SnapshotError, match=r"deletion vectors.*REORG"):
        delta.snapshot(spark, table)


def test_column_mapping_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    write(spark, tmp_path / "table", 10, **{"delta.columnMapping.mode": "name"})
    with pytest.raises(SnapshotError, match="column mapping"):
        delta.snapshot(spark, tmp_path / "table")


def test_type_widening_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    write(spark, tmp_path / "table", 10, **{"delta.enableTypeWidening": "true"})
    with pytest.raises(SnapshotError, match="type widening"):
        delta.snapshot(spark, tmp_path / "table")


def test_a_reader_feature_that_is_not_known_is_named(spark: SparkSession, tmp_path: Path) -> None:
    table = tmp_path / "table"
    write(spark, table, 10, **{"delta.feature.variantType-preview": "supported"})
    with pytest.raises(SnapshotError, match="not known here: variantType"):
        delta.snapshot(spark, table)


def test_columns_that_hold_nulls_are_named(spark: SparkSession, tmp_path: Path) -> None:
    table = tmp_path / "table"
    rows = training_rows(spark, 10).withColumn("price", F.when(F.col("row_id") != 3, F.col("price")))
    delta.write(rows, table, partition_by=["split"], properties=PROPERTIES)
    with pytest.raises(SnapshotError, match=r"parquet: column 'price' holds 1 nulls; expected none"):
        delta.snapshot(spark, table)


def test_columns_that_may_hold_nulls_are_named(spark: SparkSession, tmp_path: Path) -> None:
    table = tmp_path / "table"
    rows = training_rows(spark, 10).withColumn("row_id", F.col("row_id"))
    delta.write(rows, table, partition_by=["split"], properties=PROPERTIES)
    for file in table.glob("split=*/*.parquet"):
        pq.write_table(pq.ParquetFile(file).read(), file, write_statistics=False)
    with pytest.raises(SnapshotError, match="column 'row_id' may hold nulls, the file does not count them"):
        delta.snapshot(spark, table)


def test_rows_of_no_split_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    table = tmp_path / "table"
    rows = training_rows(spark, 10).withColumn("split", F.when(F.col("row_id") != 3, F.col("split")))
    delta.write(rows, table, partition_by=["split"], properties=PROPERTIES)
    with pytest.raises(SnapshotError, match="its rows are of no split"):
        delta.snapshot(spark, table)


def test_a_table_of_another_kind_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    delta.write(spark.range(3), tmp_path / "table")
    with pytest.raises(SnapshotError, match="not a training table"):
        delta.snapshot(spark, tmp_path / "table")
    delta.write(training_rows(spark, 10), tmp_path / "bare", partition_by=["split"], schema=SCHEMA)
    with pytest.raises(SnapshotError, match=r"lacks the properties hinet\.contract, "):
        delta.snapshot(spark, tmp_path / "bare")
