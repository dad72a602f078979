"""The encoder over Spark: examples to the training table's columns.

Equal to :mod:`feature_eng.encoder.arrow`: integers exactly, floats computed in double and
cast last. Only ``log1p``, which each platform brings itself, may differ in a float's last bit.
"""

from __future__ import annotations

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from feature_eng.contract import Contract
from feature_eng.encoder.arrow import FLOAT32_MAX
from feature_eng.encoder.state import (
    NO_LABEL,
    PADDING,
    UNKNOWN,
    Bucket,
    EncoderState,
    Hash,
    Lookup,
    Operation,
    Slots,
    Standardise,
)
from feature_eng.events import column, scenario_index_column

# Vocabularies up to this many values are sent whole to every executor.
_BROADCAST_VALUES = 2_000_000


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
        ``row_id``, ``split``, ``scenario_index``, labels (-1 for a null), ``row_weight``, then the fields'
        columns, in the types of the training table; one row per example.
    """
    listed = {
        f"__values__{name}": _values(operation)
        for name, operation in state.operations.items()
        if isinstance(operation, Slots)
    }
    keys: dict[str, Column] = {}
    vocabularies: dict[str, str] = {}
    encoded: dict[str, Column] = {}
    for item in state.fields:
        operation = state.operations[item.name]
        each, missing = (operation.each, PADDING) if isinstance(operation, Slots) else (operation, UNKNOWN)
        for slot, name in enumerate(item.columns):
            is_slot = isinstance(operation, Slots)
            value = F.get(F.col(f"__values__{item.name}"), slot) if is_slot else column(operation.column)
            if isinstance(each, Lookup):
                # Ids beyond 64 bits stand in the vocabulary as text.
                is_big = state.raw_types[operation.column].endswith(("decimal", "decimal>"))
                keys[f"__key__{name}"] = value.cast("string") if is_big else value
                vocabularies[name] = each.vocabulary
                index = F.coalesce(F.col(f"__index__{name}"), F.lit(UNKNOWN))
                encoded[name] = F.when(F.col(f"__key__{name}").isNull(), F.lit(missing)).otherwise(index)
            else:
                encoded[name] = _encoded(value, each, missing)
    keyed = examples.withColumns(listed).withColumns(keys) if keys or listed else examples
    indexed = _with_indices(keyed, vocabularies, state)
    dtypes = dict(training_columns(state))
    rows = {
        "row_id": F.col("row_id"),
        "scenario_index": scenario_index_column(state.contract),
        **{
            name: F.coalesce(F.col(name).cast("float"), F.lit(NO_LABEL))
            for name in dtypes
            if name.startswith("label__")
        },
        "row_weight": F.col("row_weight") if state.contract.has_row_weights else F.lit(1.0),
        **encoded,
    }
    return indexed.select(
        F.col("split"), *(rows[name].cast(dtype).alias(name) for name, dtype in dtypes.items())
    )


def training_columns(state: EncoderState) -> list[tuple[str, str]]:
    """Name and Spark type of each column of the training table but ``split``, in order."""
    columns = [("row_id", "bigint"), ("scenario_index", "int")]
    columns += [(f"label__{task}", "float") for task in state.task_names]
    columns += [("row_weight", "float")] if state.contract.has_row_weights else []
    for item in state.fields:
        columns += [(name, "float" if item.kind == "number" else "int") for name in item.columns]
    return columns


def parts_of(text: Column, separator: str) -> Column:
    """Non-empty parts of a text; null for null."""
    quoted = "".join(letter if letter.isalnum() else f"\\{letter}" for letter in separator)
    return F.filter(F.split(text, quoted, -1), lambda part: part != "")


def transformed(value: Column, transform: str) -> Column:
    """A number as a finite double after its transform, null otherwise."""
    number = value.cast("double")
    number = F.log1p(number) if transform == "log1p" else number
    return F.when(~F.isnan(number) & (F.abs(number) < float("inf")), number)


def _values(operation: Slots) -> Column:
    if operation.separator is not None:
        return parts_of(column(operation.column), operation.separator)
    return F.filter(column(operation.column), lambda value: value.isNotNull())


def _encoded(value: Column, operation: Operation, missing: int) -> Column:
    if isinstance(operation, Hash):
        code = F.crc32(value.cast("string").cast("binary"))
        return F.coalesce(1 + F.pmod(code, F.lit(operation.buckets)), F.lit(missing))
    if isinstance(operation, Bucket):
        number = transformed(value, "none")
        reached = [(number >= F.lit(boundary)).cast("int") for boundary in operation.boundaries]
        return F.when(number.isNull(), F.lit(UNKNOWN)).otherwise(_total([F.lit(1), *reached]))
    assert isinstance(operation, Standardise), "lookups and slots are handled by the caller"
    number = transformed(value, operation.transform)
    scaled = (number - F.lit(operation.mean)) / F.lit(operation.std)
    return F.when(F.abs(scaled) <= F.lit(FLOAT32_MAX), scaled).otherwise(F.lit(0.0))


def _total(terms: list[Column]) -> Column:
    # As a balanced tree: Spark walks expressions recursively. A lambda over an array of the
    # boundaries would be shorter, but behind joins it saw another row's number.
    if len(terms) == 1:
        return terms[0]
    half = len(terms) // 2
    return _total(terms[:half]) + _total(terms[half:])


def _with_indices(keyed: DataFrame, vocabularies: dict[str, str], state: EncoderState) -> DataFrame:
    """Add ``__index__<column>`` for each ``__key__<column>``, one join each."""
    tables = {name: _table(keyed, state.vocabularies[name]) for name in set(vocabularies.values())}
    for name, vocabulary in vocabularies.items():
        found = tables[vocabulary].select(
            F.col("value").alias(f"__value__{name}"), F.col("place").alias(f"__index__{name}")
        )
        if len(state.vocabularies[vocabulary]) <= _BROADCAST_VALUES:
            found = F.broadcast(found)
        keyed = keyed.join(found, on=F.col(f"__key__{name}") == F.col(f"__value__{name}"), how="left")
    return keyed


def _table(rows: DataFrame, keys: pa.Array) -> DataFrame:
    places = pa.array(range(1, len(keys) + 1), pa.int32())
    return rows.sparkSession.createDataFrame(pa.table({"value": keys, "place": places}))
