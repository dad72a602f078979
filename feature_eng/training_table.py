"""The training table: encoded rows laid out for reading in any order.

Rows lie in seeded-random order, in near-equal row groups, so that a reader that shuffles
row groups and mixes a few of them sees a fair mixture. Scenario is a column, not a
partition: sorted or partitioned rows would give batches of one scenario. Of examples by date
each day has its own, smaller row groups, so that it can be replaced by itself (docs/adr/0015).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
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
from feature_eng.dates import ON_DATE, condition_of
from feature_eng.encoder.spark import training_columns
from feature_eng.encoder.state import EncoderError, EncoderState
from feature_eng.snapshot import (
    CONTRACT_FINGERPRINT,
    CONTRACT_NAME,
    ENCODER_DIGEST,
    ENCODER_PATH,
    LAYOUT,
    SCENARIO_NAMES,
    SnapshotRef,
)
from foundation import stores

logger = logging.getLogger(__name__)

ROWS_PER_GROUP = 16_384
ROWS_PER_GROUP_OF_A_DAY = 4_096
"""Of a table by date: a window of 65,536 rows then mixes the rows of up to 16 days."""
MIN_TRAIN_GROUPS = 8

_BUCKET_BITS = 16
"""Buckets of the order are counted before rows are moved: so many that few of them hold the end of a file."""
# A row group ends with its file, never because it is full, so this is larger than any file.
_BLOCK_BYTES = 1 << 30

Integers = npt.NDArray[np.integer[Any]]
_Buckets = Mapping[str, tuple[Integers, Integers]]
"""Partition, a split or a day of it -> its buckets in order, and the rows of each."""


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
    days: Collection[date] | None = None,
) -> SnapshotRef:
    """Write encoded rows as a new version of a training table.

    Each file holds one row group. Rows are ordered by a seeded hash of their key; equal rows
    and an equal seed give the same files' contents again. Rows with ``on_date`` make a table by date.

    Args:
        encoded: As :func:`feature_eng.encoder.spark.encode` gives them. Read three times, shuffled once.
        path: Place of the table.
        state: The encoder that made the rows.
        encoder_path: Where that encoder is saved.
        rows_per_group: Most rows of a row group. The training rows that are written get at least
            8 groups, if need be smaller ones, as long as there are that many.
        seed: Of the order of rows.
        retention: For how long a version stays readable after a newer one replaced it: longer
            than the longest training run with its restarts.
        properties: Further table properties, such as the version of the raw data.
        days: Days of a table by date that are replaced by these rows, in one commit with the properties; the files of
            other days stay. ``None`` replaces the whole table.

    Raises:
        EncoderError: If there are no training rows.
    """
    spark = encoded.sparkSession
    buckets = _buckets(encoded, seed)
    counted = [(part.partition("/")[0], int(rows.sum())) for part, (_, rows) in buckets.items()]
    train = [rows for split, rows in counted if split == "train"]
    if not train and days is None:
        raise EncoderError("there are no training rows to write; check the contract's split")
    group_rows = _group_rows(train or [rows for _, rows in counted], rows_per_group)
    said = _properties(state, encoder_path, retention) | {LAYOUT: layout(rows_per_group, seed)}
    with _one_group_per_file(spark):
        version = delta.write(
            _laid_out(encoded, buckets, group_rows, seed),
            path,
            partition_by=_partition_columns(encoded),
            schema=_schema(encoded, state),
            properties=said | dict(properties or {}),
            options={"maxRecordsPerFile": str(group_rows)},
            where=None if days is None else condition_of(days),
        )
    written = delta.snapshot(spark, path, version)
    if days is None:
        _check_rows(written, counted)
    _check_rows(written, [(cell.split, cell.rows) for cell in written.cells if cell.split in SPLITS])
    sizes = group_sizes(written)["train"]
    logger.info("train has %d row groups of %d to %d rows", len(sizes), sizes[-1], sizes[0])
    # By date each day has a last group.
    if ON_DATE not in encoded.columns and len(sizes) > 1 and sizes[-2] < group_rows:
        logger.warning("row groups of train are uneven (%s): batches will be mixed less well", sizes)
    return written


def most_rows(encoded: DataFrame) -> int:
    """Rows of a row group where nothing else is asked for."""
    return ROWS_PER_GROUP_OF_A_DAY if ON_DATE in encoded.columns else ROWS_PER_GROUP


def layout(rows_per_group: int, seed: int) -> str:
    """What all days of a table have in common, as its property has it."""
    return json.dumps({"rows_per_group": rows_per_group, "seed": seed})


def group_sizes(snapshot: SnapshotRef) -> dict[str, list[int]]:
    """Rows of every row group, by split, largest first."""
    return {
        split: sorted((rows for file in snapshot.files_of(split) for rows in file.row_groups), reverse=True)
        for split in SPLITS
    }


def _partition_columns(encoded: DataFrame) -> list[str]:
    return [name for name in ("split", ON_DATE) if name in encoded.columns]


def _part(encoded: DataFrame) -> Column:
    """The partition that a row goes to, as one text."""
    return F.concat_ws("/", *_partition_columns(encoded))


def _group_rows(parts: Sequence[int], rows_per_group: int) -> int:
    """Rows of all groups of these partitions but the last of each: near-equal ones in the largest."""
    largest = max(parts, default=1)
    least = min(math.ceil(MIN_TRAIN_GROUPS / max(1, len(parts))), largest)
    return math.ceil(largest / max(math.ceil(largest / rows_per_group), least))


def _order(seed: int) -> Column:
    return F.xxhash64(F.col("row_id"), F.lit(seed).cast("bigint"))


def _bucket(order: Column) -> Column:
    # The top bits, so that buckets are consecutive ranges of the order.
    return (F.shiftright(order, 64 - _BUCKET_BITS) + F.lit(1 << (_BUCKET_BITS - 1))).cast("int")


def _buckets(encoded: DataFrame, seed: int) -> _Buckets:
    counted = (
        encoded.select(_part(encoded).alias("part"), _bucket(_order(seed)).alias("bucket"))
        .groupBy("part", "bucket")
        .agg(F.count("*").alias("rows"))
        .toArrow()
        .sort_by([("part", "ascending"), ("bucket", "ascending")])
    )
    found = {}
    for part in counted.column("part").unique().to_pylist():
        own = counted.filter(pc.equal(counted.column("part"), part))
        found[part] = (own.column("bucket").to_numpy(), own.column("rows").to_numpy())
    return found


def _laid_out(encoded: DataFrame, buckets: _Buckets, group_rows: int, seed: int) -> DataFrame:
    """Rows in the order to write them: each file's rows together in one task, in their places.

    A row's file follows from its place among its partition's rows, that is from the places at which its bucket begins
    and ends, and, in a bucket in which a file ends, from the order of the next file's first row.
    """
    if not buckets:
        return encoded
    starting, ends = _starts(buckets, group_rows)
    spark = encoded.sparkSession
    ordered = encoded.withColumns({"__part": _part(encoded), "__order": _order(seed)})
    ordered = ordered.withColumn("__bucket", _bucket(F.col("__order")))
    first_of_files = _first_of_files(ordered.select("__part", "__bucket", "__order"), ends)
    file_of = (
        spark.createDataFrame(starting)
        .join(first_of_files, on=["__part", "__bucket"], how="left")
        .withColumn("__starts", F.coalesce("__starts", F.array().cast("array<bigint>")))
    )
    begun = F.size(F.filter("__starts", lambda start: start <= F.col("__order")))
    files = sum(math.ceil(int(rows.sum()) / group_rows) for _, rows in buckets.values())
    return (
        ordered.join(F.broadcast(file_of), on=["__part", "__bucket"], how="inner")
        .withColumn("__file", F.col("__file") + begun)
        .repartition(files, "__part", "__file")
        .sortWithinPartitions(*_partition_columns(encoded), "__order", "row_id")
        .select(*encoded.columns)
    )


def _starts(buckets: _Buckets, group_rows: int) -> tuple[pa.Table, pa.Table]:
    """The file in which each bucket begins; and in which buckets, after how many rows, another one does."""
    starting, ends = [], []
    for part, (bucket, rows) in buckets.items():
        start = np.cumsum(rows) - rows
        file, last = start // group_rows, (start + rows - 1) // group_rows
        starting.append(_of_part(part, bucket, __file=file))
        more = last - file
        place = np.repeat(np.arange(len(bucket)), more)
        number = np.arange(len(place)) - np.repeat(np.cumsum(more) - more, more) + 1
        ends.append(
            _of_part(part, bucket[place], __number=(file[place] + number) * group_rows - start[place] + 1)
        )
    return pa.concat_tables(starting), pa.concat_tables(ends)


def _of_part(part: str, bucket: Integers, **columns: Integers) -> pa.Table:
    return pa.table(
        {
            "__part": pa.array([part] * len(bucket), pa.string()),
            "__bucket": bucket.astype(np.int32),
            **columns,
        }
    )


def _first_of_files(ordered: DataFrame, ends: pa.Table) -> DataFrame:
    """For each bucket in which files begin, the order of the first row of each."""
    wanted = F.broadcast(ordered.sparkSession.createDataFrame(ends))
    bucket = ["__part", "__bucket"]
    number = F.row_number().over(Window.partitionBy(*bucket).orderBy("__order"))
    return (
        ordered.join(F.broadcast(wanted.select(*bucket).distinct()), bucket, "left_semi")
        .withColumn("__number", number)
        .join(wanted, [*bucket, "__number"])
        .groupBy(*bucket)
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


def _check_rows(written: SnapshotRef, counted: Sequence[tuple[str, int]]) -> None:
    """Stop where a version does not hold the rows that went in, or that the build counted among its examples."""
    for split in dict.fromkeys(split for split, _ in counted):
        rows = sum(rows for of, rows in counted if of == split)
        if written.rows(split) != rows:
            raise RuntimeError(
                f"{written.table}: {rows} rows of {split} went in, "
                f"{written.rows(split)} are in version {written.version}"
            )


def _schema(encoded: DataFrame, state: EncoderState) -> T.StructType:
    kinds = {"bigint": T.LongType(), "int": T.IntegerType(), "float": T.FloatType()}
    columns = {name: kinds[kind] for name, kind in training_columns(state)}
    columns |= {name: encoded.schema[name].dataType for name in _partition_columns(encoded)}
    return T.StructType([T.StructField(name, kind, nullable=False) for name, kind in columns.items()])


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
