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
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
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

_BUCKET_BITS = 16
"""Buckets of the order are counted before rows are moved: so many that few of them hold the end of a file."""
# A row group ends with its file, never because it is full, so this is larger than any file.
_BLOCK_BYTES = 1 << 30


Integers = npt.NDArray[np.integer[Any]]
_Buckets = Mapping[str, tuple[Integers, Integers]]
"""Split -> its buckets in order, and the rows of each."""


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
        encoded: As :func:`feature_eng.encoder.spark.encode` gives them. Read three times, shuffled once.
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
    buckets = _buckets(encoded, seed)
    rows_of = {split: int(rows.sum()) for split, (_, rows) in buckets.items()}
    train_rows = rows_of.get("train", 0)
    if train_rows == 0:
        raise EncoderError("there are no training rows to write; check the contract's split")
    group_rows = _group_rows(train_rows, rows_per_group)
    with _one_group_per_file(spark):
        version = delta.write(
            _laid_out(encoded, buckets, group_rows, seed),
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
    return (F.shiftright(order, 64 - _BUCKET_BITS) + F.lit(1 << (_BUCKET_BITS - 1))).cast("int")


def _buckets(encoded: DataFrame, seed: int) -> _Buckets:
    counted = (
        encoded.select("split", _bucket(_order(seed)).alias("bucket"))
        .groupBy("split", "bucket")
        .agg(F.count("*").alias("rows"))
        .toArrow()
        .sort_by([("split", "ascending"), ("bucket", "ascending")])
    )
    found = {}
    for split in counted.column("split").unique().to_pylist():
        own = counted.filter(pc.equal(counted.column("split"), split))
        found[split] = (own.column("bucket").to_numpy(), own.column("rows").to_numpy())
    return found


def _laid_out(encoded: DataFrame, buckets: _Buckets, group_rows: int, seed: int) -> DataFrame:
    """Rows in the order to write them: each file's rows together in one task, in their places.

    A row's file follows from its place among its split's rows, that is from the places at which its bucket begins and
    ends, and, in a bucket in which a file ends, from the order of the next file's first row.
    """
    starting, ends = _starts(buckets, group_rows)
    spark = encoded.sparkSession
    ordered = encoded.withColumn("__order", _order(seed)).withColumn("__bucket", _bucket(F.col("__order")))
    first_of_files = _first_of_files(ordered.select("split", "__bucket", "__order"), ends)
    file_of = (
        spark.createDataFrame(starting)
        .join(first_of_files, on=["split", "__bucket"], how="left")
        .withColumn("__starts", F.coalesce("__starts", F.array().cast("array<bigint>")))
    )
    begun = F.size(F.filter("__starts", lambda start: start <= F.col("__order")))
    files = sum(math.ceil(int(rows.sum()) / group_rows) for _, rows in buckets.values())
    return (
        ordered.join(F.broadcast(file_of), on=["split", "__bucket"], how="inner")
        .withColumn("__file", F.col("__file") + begun)
        .repartition(files, "split", "__file")
        .sortWithinPartitions("split", "__order", "row_id")
        .select(*encoded.columns)
    )


def _starts(buckets: _Buckets, group_rows: int) -> tuple[pa.Table, pa.Table]:
    """The file in which each bucket begins; and in which buckets, after how many rows, another one does."""
    starting, ends = [], []
    for split, (bucket, rows) in buckets.items():
        start = np.cumsum(rows) - rows
        file, last = start // group_rows, (start + rows - 1) // group_rows
        starting.append(_of_split(split, bucket, __file=file))
        more = last - file
        place = np.repeat(np.arange(len(bucket)), more)
        number = np.arange(len(place)) - np.repeat(np.cumsum(more) - more, more) + 1
        ends.append(
            _of_split(split, bucket[place], __number=(file[place] + number) * group_rows - start[place] + 1)
        )
    return pa.concat_tables(starting), pa.concat_tables(ends)


def _of_split(split: str, bucket: Integers, **columns: Integers) -> pa.Table:
    return pa.table(
        {
            "split": pa.array([split] * len(bucket), pa.string()),
            "__bucket": bucket.astype(np.int32),
            **columns,
        }
    )


def _first_of_files(ordered: DataFrame, ends: pa.Table) -> DataFrame:
    """For each bucket in which files begin, the order of the first row of each."""
    wanted = F.broadcast(ordered.sparkSession.createDataFrame(ends))
    number = F.row_number().over(Window.partitionBy("split", "__bucket").orderBy("__order"))
    return (
        ordered.join(
            F.broadcast(wanted.select("split", "__bucket").distinct()), ["split", "__bucket"], "left_semi"
        )
        .withColumn("__number", number)
        .join(wanted, ["split", "__bucket", "__number"])
        .groupBy("split", "__bucket")
        .agg(F.collect_list("__order").alias("__starts"))
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


def _check_layout(written: SnapshotRef, rows_of: Mapping[str, int], group_rows: int) -> None:
    for split, rows in rows_of.items():
        if written.rows(split) != rows:
            raise RuntimeError(
                f"{written.table}: {rows} rows of {split} went in, "
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
