"""The training table: encoded rows laid out for reading in any order.

Rows lie in seeded-random order, in near-equal row groups, so that a reader that shuffles
row groups and mixes a few of them sees a fair mixture. Scenario is a column, not a
partition: sorted or partitioned rows would give batches of one scenario.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from feature_eng import delta
from feature_eng.contract import SPLITS
from feature_eng.encoder.spark import training_columns
from feature_eng.encoder.state import EncoderError, EncoderState
from feature_eng.snapshot import (
    CONTRACT_FINGERPRINT,
    CONTRACT_NAME,
    ENCODER_DIGEST,
    ENCODER_PATH,
    SCENARIO_NAMES,
    SnapshotRef,
)
from foundation import stores

logger = logging.getLogger(__name__)

ROWS_PER_GROUP = 16_384
MIN_TRAIN_GROUPS = 8

_NUM_BUCKETS = 64
# A row group ends with its file, never because it is full, so this is larger than any file.
_BLOCK_BYTES = 1 << 30


def write(
    encoded: DataFrame,
    path: stores.Place,
    state: EncoderState,
    encoder_path: stores.Place,
    *,
    rows_per_group: int = ROWS_PER_GROUP,
    seed: int = 0,
    retention: str = delta.RETENTION,
    properties: Mapping[str, str] | None = None,
) -> SnapshotRef:
    """Write encoded rows as a new version of a training table.

    Each file holds one row group. Rows are ordered by a seeded hash of their key; equal rows
    and an equal seed give the same files' contents again.

    Args:
        encoded: As :func:`feature_eng.encoder.spark.encode` gives them. Read twice.
        path: Place of the table.
        state: The encoder that made the rows.
        encoder_path: Where that encoder is saved.
        rows_per_group: Most rows of a row group. The training split gets at least
            8 groups, if need be smaller ones, as long as it has that many rows.
        seed: Of the order of rows.
        retention: For how long a version stays readable after a newer one replaced it: longer
            than the longest training run with its restarts.
        properties: Further table properties, such as the version of the raw data.

    Raises:
        EncoderError: If there are no training rows.
    """
    spark = encoded.sparkSession
    rows_of = _bucket_rows(encoded, seed)
    train_rows = sum(rows_of.get("train", {}).values())
    if train_rows == 0:
        raise EncoderError("there are no training rows to write; check the contract's split")
    group_rows = _group_rows(train_rows, rows_per_group)
    with _one_group_per_file(spark):
        version = delta.write(
            _laid_out(encoded, rows_of, group_rows, seed),
            path,
            partition_by=["split"],
            schema=_schema(state),
            properties={**_properties(state, encoder_path, retention), **(properties or {})},
            options={"maxRecordsPerFile": str(group_rows)},
        )
    written = delta.snapshot(spark, path, version)
    _check_layout(written, rows_of, group_rows)
    return written


def group_sizes(snapshot: SnapshotRef) -> dict[str, list[int]]:
    """Rows of every row group, by split, largest first."""
    return {
        split: sorted((rows for file in snapshot.files_of(split) for rows in file.row_groups), reverse=True)
        for split in SPLITS
    }


def _group_rows(train_rows: int, rows_per_group: int) -> int:
    groups = max(math.ceil(train_rows / rows_per_group), min(MIN_TRAIN_GROUPS, train_rows))
    return math.ceil(train_rows / groups)


def _order(seed: int) -> Column:
    return F.xxhash64(F.col("row_id"), F.lit(seed).cast("bigint"))


def _bucket(order: Column) -> Column:
    # The top bits, so that buckets are consecutive ranges of the order.
    return (F.shiftright(order, 58) + F.lit(_NUM_BUCKETS // 2)).cast("int")


def _bucket_rows(encoded: DataFrame, seed: int) -> dict[str, dict[int, int]]:
    counted = (
        encoded.select("split", _bucket(_order(seed)).alias("bucket"))
        .groupBy("split", "bucket")
        .agg(F.count("*").alias("rows"))
        .collect()
    )
    rows_of: dict[str, dict[int, int]] = {}
    for row in counted:
        rows_of.setdefault(row["split"], {})[row["bucket"]] = row["rows"]
    return rows_of


def _laid_out(
    encoded: DataFrame, rows_of: Mapping[str, Mapping[int, int]], group_rows: int, seed: int
) -> DataFrame:
    """Rows in the order to write them: each file's rows together in one task, in their places.

    A row's exact place among its split's rows is its bucket's start plus its place in the
    bucket, so that no task ever sees all rows.
    """
    starts = []
    for split, buckets in sorted(rows_of.items()):
        start = 0
        for bucket in range(_NUM_BUCKETS):
            starts.append((split, bucket, start))
            start += buckets.get(bucket, 0)
    starting = encoded.sparkSession.createDataFrame(starts, "split string, __bucket int, __start bigint")
    files = sum(math.ceil(sum(buckets.values()) / group_rows) for buckets in rows_of.values())
    in_bucket = Window.partitionBy("split", "__bucket").orderBy("__order", "row_id")
    place = F.col("__start") + F.row_number().over(in_bucket) - 1
    return (
        encoded.withColumn("__order", _order(seed))
        .withColumn("__bucket", _bucket(F.col("__order")))
        .join(F.broadcast(starting), on=["split", "__bucket"], how="inner")
        .withColumn("__place", place)
        .withColumn("__file", F.floor(F.col("__place") / group_rows))
        .repartition(files, "split", "__file")
        .sortWithinPartitions("split", "__place")
        .select(*encoded.columns)
    )


@contextmanager
def _one_group_per_file(spark: SparkSession) -> Iterator[None]:
    # Delta's writer ignores this as an option of the write; it heeds the session.
    name = "parquet.block.size"
    before = spark.conf.get(name, None)
    spark.conf.set(name, str(_BLOCK_BYTES))
    try:
        yield
    finally:
        if before is None:
            spark.conf.unset(name)
        else:
            spark.conf.set(name, before)


def _check_layout(written: SnapshotRef, rows_of: Mapping[str, Mapping[int, int]], group_rows: int) -> None:
    for split, buckets in rows_of.items():
        if written.rows(split) != sum(buckets.values()):
            raise RuntimeError(
                f"{written.table}: {sum(buckets.values())} rows of {split} went in, "
                f"{written.rows(split)} are in version {written.version}"
            )
    sizes = group_sizes(written)["train"]
    logger.info("train has %d row groups of %d to %d rows", len(sizes), sizes[-1], sizes[0])
    if len(sizes) > 1 and sizes[-2] < group_rows:
        logger.warning("row groups of train are uneven (%s): batches will be mixed less well", sizes)


def _schema(state: EncoderState) -> T.StructType:
    kinds = {"bigint": T.LongType(), "int": T.IntegerType(), "float": T.FloatType()}
    fields = [T.StructField(name, kinds[kind], nullable=False) for name, kind in training_columns(state)]
    return T.StructType([*fields, T.StructField("split", T.StringType(), nullable=False)])


def _properties(state: EncoderState, encoder_path: stores.Place, retention: str) -> dict[str, str]:
    return {
        CONTRACT_NAME: state.contract.name,
        CONTRACT_FINGERPRINT: state.fingerprint,
        ENCODER_DIGEST: state.digest,
        ENCODER_PATH: stores.normalised(encoder_path),
        SCENARIO_NAMES: json.dumps(state.scenario_names),
        # Readers of the plain files would not see these.
        "delta.enableDeletionVectors": "false",
        "delta.columnMapping.mode": "none",
        # Compaction would undo the layout.
        "delta.autoOptimize.optimizeWrite": "false",
        "delta.autoOptimize.autoCompact": "false",
        # Rows in random order give minima and maxima that skip nothing.
        "delta.dataSkippingNumIndexedCols": "0",
        **delta.kept_for(retention),
    }
