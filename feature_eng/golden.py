"""Golden rows: a few raw rows of every scenario, which travel with a model and are scored again on each load."""

from __future__ import annotations

import pyarrow as pa
from pyspark.sql import SparkSession, Window
from pyspark.sql import functions as F

from feature_eng import delta
from feature_eng.encoder import arrow
from feature_eng.encoder.reading import read_as
from feature_eng.encoder.state import EncoderState
from feature_eng.events import column
from feature_eng.origin import origin_of
from feature_eng.snapshot import SnapshotRef


def golden_rows(
    spark: SparkSession, snapshot: SnapshotRef, state: EncoderState, rows_per_scenario: int = 4
) -> pa.Table:
    """Take rows from the very examples that a training table was made of; the same ones each time.

    Args:
        spark: The session.
        snapshot: The pinned training table.
        state: Its encoder.
        rows_per_scenario: Rows of each scenario, fewer where it has fewer.

    Raises:
        SnapshotError: The table does not say which examples it was made of.
    """
    origin = origin_of(snapshot.table, delta.properties(snapshot.table, snapshot.version))
    examples = delta.read(spark, origin.examples, origin.version)
    place = F.row_number().over(Window.partitionBy("scenario").orderBy("row_id"))
    kept = examples.where(F.col("split").isin("train", "validation")).withColumn("__place", place)
    chosen = kept.where(F.col("__place") <= rows_per_scenario).orderBy("scenario", "__place")
    schema = pa.schema(arrow.raw_columns(state))
    rows: pa.Table = chosen.select(*(column(name).alias(name) for name in schema.names)).toArrow()
    read = [read_as(rows[name].combine_chunks(), kind, name) for name, kind in state.raw_types.items()]
    return pa.table(read, schema=schema)
