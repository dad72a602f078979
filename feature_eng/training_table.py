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

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from feature_eng import delta
from feature_eng.contract import SPLITS
from feature_eng.dates import ON_DATE, condition_of
from feature_eng.encoder.spark import partition_columns, training_columns
from feature_eng.encoder.state import EncoderError, EncoderState
from feature_eng.row_order import buckets_of, laid_out
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
    buckets = buckets_of(encoded, seed)
    rows_of = {part: int(rows.sum()) for part, (_, rows) in buckets.items()}
    if days is None and not any(map(_is_train, rows_of)):
        raise EncoderError("there are no training rows to write; check the contract's split")
    groups_of = _groups_of(rows_of, rows_per_group)
    said = _properties(state, encoder_path, retention) | {LAYOUT: layout(rows_per_group, seed)}
    with _one_group_per_file(spark):
        version = delta.write(
            laid_out(encoded, buckets, groups_of, seed),
            path,
            partition_by=partition_columns(encoded),
            schema=_schema(encoded, state),
            properties=said | dict(properties or {}),
            where=None if days is None else condition_of(days),
        )
    written = delta.snapshot(spark, path, version)
    _check_rows(written, [(cell.split, cell.rows) for cell in written.cells if cell.split in SPLITS])
    if days is None:
        _check_rows(written, [(part.partition("/")[0], rows) for part, rows in rows_of.items()])
        groups = sum(len(file.row_groups) for file in written.files)
        if groups != sum(groups_of.values()):
            logger.warning(
                "there are %d row groups, not %d: batches will be mixed less well",
                groups,
                sum(groups_of.values()),
            )
    sizes = group_sizes(written)["train"]
    logger.info("train has %d row groups of %d to %d rows", len(sizes), sizes[-1], sizes[0])
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


def _groups_of(rows_of: Mapping[str, int], rows_per_group: int) -> dict[str, int]:
    """Row groups of each partition, a split or a day of it."""
    least = math.ceil(MIN_TRAIN_GROUPS / max(1, sum(map(_is_train, rows_of))))
    return {
        part: max(math.ceil(rows / rows_per_group), min(least, rows) if _is_train(part) else 1)
        for part, rows in rows_of.items()
    }


def _is_train(part: str) -> bool:
    return part.partition("/")[0] == "train"


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
    columns |= {name: encoded.schema[name].dataType for name in partition_columns(encoded)}
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
