"""The encoder as Spark expressions: the other interpreter, by which samples of a build are checked.

Equal to :mod:`feature_eng.encoder.arrow`: integers exactly, floats computed in double and
cast last. Only ``log1p``, which each platform brings itself, may differ in a float's last bit.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from feature_eng.encoder.arrow import FLOAT32_MAX
from feature_eng.encoder.spark import training_columns
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


def encode(examples: DataFrame, state: EncoderState) -> DataFrame:
    """Encode a sample of examples, whose keys are gathered on the driver.

    Args:
        examples: ``row_id``, ``split``, ``label__<task>``, the raw columns, and ``row_weight`` where the
            contract has weights.
        state: The fitted encoder.

    Returns:
        ``row_id``, ``split``, ``scenario_index``, labels (-1 for a null), ``row_weight``, then the fields'
        columns, in the types of the training table; one row per example.
    """
    listed = {
        f"__values__{name}": values_of(operation)
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


def parts_of(text: Column, separator: str) -> Column:
    """Non-empty parts of a text; null for null."""
    quoted = "".join(letter if letter.isalnum() else f"\\{letter}" for letter in separator)
    return F.filter(F.split(text, quoted, -1), lambda part: part != "")


def transformed(value: Column, transform: str) -> Column:
    """A number as a finite double after its transform, null otherwise."""
    number = value.cast("double")
    number = F.log1p(number) if transform == "log1p" else number
    return F.when(~F.isnan(number) & (F.abs(number) < float("inf")), number)


def values_of(operation: Slots) -> Column:
    """The values of a row that take slots, however many; null where the column is."""
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
        return F.when(number.isNull(), F.lit(missing)).otherwise(_total([F.lit(1), *reached]))
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
    """Add ``__index__<column>`` for each ``__key__<column>``: a look-up in the part of its vocabulary that occurs."""
    if not vocabularies:
        return keyed
    found = keyed.select(*(f"__key__{name}" for name in vocabularies)).toArrow()
    maps: dict[str, dict[Any, int]] = {}
    fields = []
    for vocabulary in dict.fromkeys(vocabularies.values()):
        keys = state.vocabularies[vocabulary]
        asked = [
            found[f"__key__{name}"].cast(keys.type) for name, of in vocabularies.items() if of == vocabulary
        ]
        occurs = pc.is_in(
            keys,
            value_set=pa.chunked_array([part for one in asked for part in one.chunks], keys.type),
            skip_nulls=True,
        )
        places = pc.indices_nonzero(occurs)
        maps[vocabulary] = dict(
            zip(keys.take(places).to_pylist(), (p + 1 for p in places.to_pylist()), strict=True)
        )
        key = T.LongType() if pa.types.is_integer(keys.type) else T.StringType()
        fields.append(T.StructField(f"__places__{vocabulary}", T.MapType(key, T.IntegerType())))
    places_of = keyed.sparkSession.createDataFrame([tuple(maps.values())], T.StructType(fields))
    return keyed.crossJoin(F.broadcast(places_of)).withColumns(
        {
            f"__index__{name}": F.try_element_at(
                F.col(f"__places__{vocabulary}"), F.col(f"__key__{name}").cast(_key_type(vocabulary, fields))
            )
            for name, vocabulary in vocabularies.items()
        }
    )


def _key_type(vocabulary: str, fields: list[T.StructField]) -> T.DataType:
    map_type = next(field.dataType for field in fields if field.name == f"__places__{vocabulary}")
    assert isinstance(map_type, T.MapType), "made so"
    return map_type.keyType
