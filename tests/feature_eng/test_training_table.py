"""The training table's layout: what the loader builds on."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng import delta, row_order, training_table
from feature_eng.contract import to_contract
from feature_eng.encoder.state import EncoderError, EncoderState, Lookup
from feature_eng.snapshot import DATA_VERSION, SnapshotRef

pytestmark = pytest.mark.spark

CONTRACT = to_contract(
    {
        "name": "shop",
        "source": {"reader": "tables", "tables": {"log": {"path": "log.csv", "format": "csv"}}},
        "columns": {"key": ["row"], "user": "user", "item": "item"},
        "scenario": {"column": "page", "values": {"home": {"in": ["h"]}, "search": {"in": ["s"]}}},
        "tasks": {"click": {"column": "clicked", "at_least": 1}},
        "features": {"item": {"kind": "categorical", "column": "item"}},
        "split": {"method": "random"},
    }
)
STATE = EncoderState(
    CONTRACT,
    {"item": Lookup("item", "item")},
    {"item": pa.array([1, 2])},
    {"page": "string", "item": "int64"},
)


def encoded_rows(spark: SparkSession, train: int, test: int) -> DataFrame:
    """Rows sorted by scenario, as a raw log might come: row ids count up."""
    is_train = F.col("id") < train
    return spark.range(train + test).select(
        F.when(is_train, "train").otherwise("test").alias("split"),
        F.col("id").alias("row_id"),
        F.when(F.col("id") < train // 2, 0).otherwise(1).cast("int").alias("scenario_index"),
        (F.col("id") % 2).cast("float").alias("label__click"),
        (F.col("id") % 3).cast("int").alias("item"),
    )


def row_ids(snapshot: SnapshotRef, split: str) -> list[npt.NDArray[np.int64]]:
    return [
        pq.ParquetFile(file.path).read_row_group(group).column("row_id").to_numpy()
        for file in snapshot.files_of(split)
        for group in range(len(file.row_groups))
    ]


def test_row_groups_are_near_equal_and_hold_every_row_once(spark: SparkSession, tmp_path: Path) -> None:
    snapshot = training_table.write(
        encoded_rows(spark, 5_000, 333), tmp_path / "t", STATE, tmp_path / "encoder", rows_per_group=400
    )
    sizes = training_table.group_sizes(snapshot)
    assert len(sizes["train"]) == 13
    assert max(sizes["train"]) - min(sizes["train"]) == 1
    assert sizes["test"] == [333]
    assert sizes["validation"] == []
    ids = np.concatenate(row_ids(snapshot, "train"))
    assert sorted(ids.tolist()) == list(range(5_000))
    assert snapshot.scenario_rows == {"train": (2_500, 2_500), "test": (0, 333)}
    assert snapshot.columns == (
        ("row_id", "int64"), ("scenario_index", "int32"), ("label__click", "float32"), ("item", "int32"),
    )  # fmt: skip
    # Each group is a fair mixture of what came sorted.
    for group in row_ids(snapshot, "train"):
        assert 0.35 < (group < 2_500).mean() < 0.65
        assert np.corrcoef(group[:-1], group[1:])[0, 1] < 0.3


def test_few_rows_still_give_train_eight_groups(spark: SparkSession, tmp_path: Path) -> None:
    snapshot = training_table.write(encoded_rows(spark, 100, 10), tmp_path / "t", STATE, tmp_path / "e")
    assert training_table.group_sizes(snapshot)["train"] == [13] * 4 + [12] * 4


def test_a_rebuild_gives_equal_rows_as_a_new_version(spark: SparkSession, tmp_path: Path) -> None:
    def build(rows: DataFrame, seed: int) -> SnapshotRef:
        return training_table.write(rows, tmp_path / "t", STATE, tmp_path / "e", rows_per_group=50, seed=seed)

    rows = encoded_rows(spark, 400, 20)
    first = build(rows, 0)
    second = build(rows.orderBy(F.desc("row_id")), 0)
    other = build(rows, 1)
    assert (second.version, other.version) == (first.version + 1, first.version + 2)

    def groups(snapshot: SnapshotRef) -> list[list[int]]:
        return [group.tolist() for group in row_ids(snapshot, "train")]

    # In order, though Delta names its files anew: a plan over the one is a plan over the other.
    assert groups(second) == groups(first)
    assert sorted(groups(other)) != sorted(groups(first))
    first.check_files("train")


@pytest.mark.parametrize("bits", [16, 2])
def test_each_file_holds_the_next_rows_of_the_order_wherever_buckets_end(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    monkeypatch.setattr(row_order, "_BUCKET_BITS", bits)
    rows = encoded_rows(spark, 700, 60)
    snapshot = training_table.write(rows, tmp_path / "t", STATE, tmp_path / "e", rows_per_group=50, seed=3)
    order = F.xxhash64("row_id", F.lit(3).cast("bigint"))
    for split in ("train", "test"):
        ids = [row["row_id"] for row in rows.where(F.col("split") == split).orderBy(order).collect()]
        size = {"train": 50, "test": 30}[split]
        wanted = sorted(ids[first : first + size] for first in range(0, len(ids), size))
        assert sorted(group.tolist() for group in row_ids(snapshot, split)) == wanted


def test_each_day_has_its_own_row_groups_and_is_replaced_by_itself(
    spark: SparkSession, tmp_path: Path
) -> None:
    def of_days(train: int, least: int = 0) -> DataFrame:
        day = F.date_add(F.lit(date(2024, 1, 1)), (F.col("row_id") % 3).cast("int"))
        rows = encoded_rows(spark, train, 40).withColumn("on_date", day)
        return rows.where(day >= F.date_add(F.lit(date(2024, 1, 1)), least))

    def write(rows: DataFrame, days: Collection[date] | None) -> SnapshotRef:
        return training_table.write(rows, tmp_path / "t", STATE, tmp_path / "e", rows_per_group=50, days=days)

    def groups(snapshot: SnapshotRef) -> dict[tuple[str, int], list[int]]:
        found: dict[tuple[str, int], list[int]] = {}
        for split in ("train", "test"):
            for ids in row_ids(snapshot, split):
                (day,) = set((ids % 3).tolist())
                found.setdefault((split, day), []).append(len(ids))
        return {part: sorted(sizes, reverse=True) for part, sizes in found.items()}

    first = write(of_days(303), None)
    # 101 rows a day, at most 50 in a group and at least three groups a day.
    assert groups(first) == {**{("train", day): [34, 34, 33] for day in range(3)},
                             **{("test", day): [14 if day == 0 else 13] for day in range(3)}}  # fmt: skip
    assert (first.rows("train"), first.rows("test")) == (303, 40)
    second = write(of_days(240, least=2), [date(2024, 1, 3), date(2024, 1, 4)])
    assert {part: sizes for part, sizes in groups(second).items() if part[1] == 2} == {
        ("train", 2): [10] * 8, ("test", 2): [13],
    }  # fmt: skip
    stays = {file for file in first.files if "2024-01-03" not in file.path}
    assert {file for file in second.files if "2024-01-03" not in file.path} == stays
    assert second.rows("train") == 202 + 80
    assert second.scenario_rows == delta.snapshot(spark, tmp_path / "t").scenario_rows
    # A day that has lost its rows; and none at all.
    assert write(of_days(303).where("false"), [date(2024, 1, 3)]).rows("train") == 202
    assert write(of_days(303).where("false"), []).version == 3


def test_every_file_has_a_task_of_its_own(spark: SparkSession) -> None:
    numbers = np.array([0, 1, -1, 7, 2**31 - 1, -(2**31), 12_345_678], np.int64)
    rows = spark.createDataFrame([(int(one),) for one in numbers], "one int")
    assert row_order.hashed(numbers).tolist() == [row[0] for row in rows.select(F.hash("one")).collect()]
    for tasks in (1, 2, 13, 1000):
        keys = row_order._keys_of_tasks(tasks)
        assert (row_order.hashed(keys) % tasks).tolist() == list(range(tasks))


def test_the_table_says_how_it_was_made_and_how_long_versions_stay(
    spark: SparkSession, tmp_path: Path
) -> None:
    snapshot = training_table.write(
        encoded_rows(spark, 20, 2), tmp_path / "t", STATE, tmp_path / "e",
        retention="interval 90 days", properties={DATA_VERSION: "abc"},
    )  # fmt: skip
    assert (snapshot.contract_name, snapshot.contract_fingerprint) == ("shop", CONTRACT.fingerprint)
    assert (snapshot.encoder_path, snapshot.encoder_digest) == (str(tmp_path / "e"), STATE.digest)
    detail = spark.sql(f"DESCRIBE DETAIL delta.`{tmp_path / 't'}`").collect()[0]
    assert detail["partitionColumns"] == ["split"]
    assert detail["properties"][DATA_VERSION] == "abc"
    assert detail["properties"]["delta.enableDeletionVectors"] == "false"
    assert detail["properties"]["delta.deletedFileRetentionDuration"] == "interval 90 days"


def test_a_null_index_is_rejected(spark: SparkSession, tmp_path: Path) -> None:
    rows = encoded_rows(spark, 20, 2).withColumn("item", F.lit(None).cast("int"))
    with pytest.raises(Exception, match="NOT NULL constraint violated for column: item"):
        training_table.write(rows, tmp_path / "t", STATE, tmp_path / "e")


def test_no_training_rows_is_said(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no training rows"):
        training_table.write(encoded_rows(spark, 0, 5), tmp_path / "t", STATE, tmp_path / "e")
