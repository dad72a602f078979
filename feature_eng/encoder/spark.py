"""The encoder on Spark: examples to the training table's columns, by the interpreter that serving uses.

Each executor gets the state once; rows meet it as Arrow batches, all slots of a history as one array, so that
nothing is joined and nothing shuffled. :mod:`feature_eng.encoder.expressions` is what a sample is checked by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyspark import Broadcast
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from feature_eng.contract import Contract
from feature_eng.dates import ON_DATE
from feature_eng.encoder import arrow
from feature_eng.encoder.state import EncoderState
from feature_eng.events import column

_TYPES = {"bigint": T.LongType(), "int": T.IntegerType(), "float": T.FloatType()}


def with_row_id(examples: DataFrame, contract: Contract) -> DataFrame:
    """Add ``row_id``: a hash of the row's key, the same in every version of the data."""
    return examples.withColumn("row_id", F.xxhash64(*(column(name) for name in contract.key)))


def encode(examples: DataFrame, state: EncoderState) -> DataFrame:
    """Encode examples.

    Args:
        examples: ``row_id``, ``split``, ``label__<task>``, the raw columns, and ``row_weight`` where the
            contract has weights.
        state: The fitted encoder.

    Returns:
        ``split``, of examples by date ``on_date``, then `training_columns`: ``row_id``, ``scenario_index``, labels
        (-1 for a null), ``row_weight``, and the fields' columns; one row per example.
    """
    parts = partition_columns(examples)
    read = list(state.raw_types)
    read += [f"label__{task}" for task in state.task_names]
    read += ["row_weight"] if state.contract.has_row_weights else []
    rows = examples.select("row_id", *parts, *(column(name) for name in dict.fromkeys(read)))
    fields = [T.StructField(name, _TYPES[kind]) for name, kind in training_columns(state)]
    schema = T.StructType([*(examples.schema[name] for name in parts), *fields])
    shipped = examples.sparkSession.sparkContext.broadcast(state)
    names = tuple(field.name for field in fields)
    return rows.mapInArrow(_ArrowEncoder(shipped, tuple(parts), names), schema)


def partition_columns(rows: DataFrame) -> list[str]:
    """What a training table of these rows, raw or encoded, is partitioned by."""
    return [name for name in ("split", ON_DATE) if name in rows.columns]


def training_columns(state: EncoderState) -> list[tuple[str, str]]:
    """Name and Spark type of each column of the training table that is no partition, in order."""
    columns = [("row_id", "bigint"), ("scenario_index", "int")]
    columns += [(f"label__{task}", "float") for task in state.task_names]
    columns += [("row_weight", "float")] if state.contract.has_row_weights else []
    for item in state.fields:
        columns += [(name, "float" if item.kind == "number" else "int") for name in item.columns]
    return columns


@dataclass(frozen=True)
class _ArrowEncoder:
    """The function for ``DataFrame.mapInArrow``.

    Args:
        state: The encoder.
        parts: Columns that go through as they are.
        columns: What it gives after these.
    """

    state: Broadcast[EncoderState]
    parts: tuple[str, ...]
    columns: tuple[str, ...]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            encoded = arrow.encode(batch, self.state.value, labels=True)
            columns = [pa.array(np.ascontiguousarray(encoded[name])) for name in self.columns]
            parts = [batch.column(batch.schema.names.index(name)) for name in self.parts]
            yield pa.RecordBatch.from_arrays([*parts, *columns], names=[*self.parts, *self.columns])
