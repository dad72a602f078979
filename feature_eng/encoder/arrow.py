"""The encoder over Arrow: raw columns to model inputs, without Spark.

Serving, evaluation and the tests use this interpreter; building tables uses
:mod:`feature_eng.encoder.spark`. Both give equal results.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_eng.contract.names import stored_name
from feature_eng.encoder.reading import read_as
from feature_eng.encoder.state import (
    ARROW_TYPES,
    NO_LABEL,
    PADDING,
    UNKNOWN,
    Bucket,
    EncodedField,
    EncoderError,
    EncoderState,
    Hash,
    Lookup,
    Operation,
    Slots,
    Standardise,
)

FLOAT32_MAX = float(np.finfo(np.float32).max)

Indices = npt.NDArray[np.int32]


def raw_columns(state: EncoderState) -> list[tuple[str, pa.DataType]]:
    """Names and types of the raw columns that :func:`encode` reads, in a fixed order."""
    return [(name, ARROW_TYPES[kind]) for name, kind in state.raw_types.items()]


def encode(
    table: pa.Table | pa.RecordBatch,
    state: EncoderState,
    *,
    labels: bool = False,
    unknown_scenario: str | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Encode raw rows.

    Args:
        table: Raw columns as in ``raw_columns(state)``, in any type that can stand for theirs exactly
            (:func:`feature_eng.encoder.reading.read_as`); others are ignored.
        state: The fitted encoder.
        labels: Also give the labels (-1 for a null) and, where the contract has them, the rows' weights,
            which ``table`` must then have; and ``row_id`` where it has that.
        unknown_scenario: Name of the scenario that a row of an unknown one counts as; None refuses such a row.

    Returns:
        Training-table column name -> one value per row: int32 indices, float32 numbers.

    Raises:
        EncoderError: A column is missing or of another type, or a row's scenario is unknown.
    """
    encoded: dict[str, npt.NDArray[Any]] = {}
    if labels and "row_id" in table.schema.names:
        encoded["row_id"] = _plain(table, "row_id").astype(np.int64)
    encoded["scenario_index"] = _scenario_index(table, state, unknown_scenario)
    if labels:
        for task in state.task_names:
            label = pc.fill_null(_column(table, f"label__{task}").cast(pa.float32()), NO_LABEL)
            encoded[f"label__{task}"] = label.to_numpy(zero_copy_only=False)
        if state.contract.has_row_weights:
            encoded["row_weight"] = _plain(table, "row_weight").astype(np.float32)
    for item in state.fields:
        operation = state.operations[item.name]
        values = _raw(table, operation.column, state)
        if item.beside is not None:
            _refuse_other_slots(values, _raw(table, item.beside, state), item)
        encoded.update(zip(item.columns, _apply(values, operation, state), strict=True))
    return encoded


def _apply(values: pa.Array, operation: Operation, state: EncoderState) -> list[npt.NDArray[Any]]:
    """The columns that one operation makes of one raw column."""
    if isinstance(operation, Slots):
        return list(_slots(values, operation, state).T)
    if isinstance(operation, Bucket):
        return [_bucket(_numbers(values), operation)]
    if isinstance(operation, Standardise):
        return [_standardise(_numbers(values), operation)]
    return [_index(values, operation, state)]


def _index(values: pa.Array, operation: Lookup | Hash, state: EncoderState) -> Indices:
    if len(values) == 0:
        return np.zeros(0, np.int32)
    # Each distinct value is looked up once.
    distinct = values.dictionary_encode()
    if isinstance(operation, Hash):
        found = np.array(
            [
                1 + zlib.crc32(str(key).encode()) % operation.buckets
                for key in distinct.dictionary.to_pylist()
            ],
            dtype=np.int32,
        )
    else:
        found = _places(distinct.dictionary, *state.look_ups[operation.vocabulary])
    found = np.append(found, np.int32(UNKNOWN))  # the last place stands for null
    places = pc.fill_null(distinct.indices, len(distinct.dictionary))
    indices: Indices = found[places.to_numpy(zero_copy_only=False)]
    return indices


def _places(values: pa.Array, keys: npt.NDArray[Any], index_of: Indices) -> Indices:
    """The index of each value, by the sorted keys and theirs; 0 where it is not among them."""
    if len(keys) == 0:
        return np.zeros(len(values), np.int32)
    wanted = values.to_numpy(zero_copy_only=False)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    indices: Indices = np.where(keys[places] == wanted, index_of[places], UNKNOWN).astype(np.int32)
    return indices


def _slots(values: pa.Array, operation: Slots, state: EncoderState) -> Indices:
    if operation.separator is not None:
        values = pc.split_pattern(values, pattern=operation.separator)
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(values)), lengths)
    parts = pc.list_flatten(values)
    keep = pc.is_valid(parts)
    if operation.separator is not None:
        keep = pc.and_(keep, pc.not_equal(pc.fill_null(parts, ""), ""))
    row, parts = row[keep.to_numpy(zero_copy_only=False)], parts.filter(keep)
    slot = np.arange(len(row)) - np.searchsorted(row, row)
    within = slot < operation.slots
    indices = np.full((len(values), operation.slots), PADDING, np.int32)
    kept, each = parts.filter(pa.array(within)), operation.each
    indices[row[within], slot[within]] = (
        _bucket(_numbers(kept), each) if isinstance(each, Bucket) else _index(kept, each, state)
    )
    return indices


def _refuse_other_slots(values: pa.Array, told_of: pa.Array, item: EncodedField) -> None:
    """Refuse lists of which one tells of the other's slots and that have others: values would be told of wrong ones."""
    lengths = [
        pc.fill_null(pc.list_value_length(each), 0).to_numpy(zero_copy_only=False)
        for each in (values, told_of)
    ]
    differs = np.flatnonzero(lengths[0] != lengths[1])
    if len(differs):
        row = int(differs[0])
        raise EncoderError(
            f"row {row}: column {item.name!r} lists {lengths[0][row]} values; expected {lengths[1][row]}, as many as "
            f"{item.beside!r}"
        )
    for name, each in ((item.name, values), (item.beside, told_of)):
        if each.flatten().null_count:
            raise EncoderError(
                f"column {name!r} lists a null; expected a value in each slot that {item.name!r} tells of"
            )


def _bucket(numbers: npt.NDArray[np.float64], operation: Bucket) -> Indices:
    places = np.searchsorted(np.asarray(operation.boundaries, np.float64), numbers, side="right") + 1
    indices: Indices = np.where(np.isfinite(numbers), places, UNKNOWN).astype(np.int32)
    return indices


def _standardise(numbers: npt.NDArray[np.float64], operation: Standardise) -> npt.NDArray[np.float32]:
    with np.errstate(all="ignore"):
        if operation.transform == "log1p":
            numbers = np.log1p(numbers)
        scaled = (numbers - operation.mean) / operation.std
        usable = np.isfinite(numbers) & (np.abs(scaled) <= FLOAT32_MAX)
    return np.where(usable, scaled, 0.0).astype(np.float32)


def _numbers(values: pa.Array) -> npt.NDArray[np.float64]:
    """As doubles, null as NaN."""
    doubles = values.cast(pa.float64(), safe=False)
    numbers: npt.NDArray[np.float64] = pc.fill_null(doubles, float("nan")).to_numpy(zero_copy_only=False)
    return numbers


def _scenario_index(
    table: pa.Table | pa.RecordBatch, state: EncoderState, unknown_scenario: str | None
) -> Indices:
    column = state.contract.scenario.column
    values = _raw(table, column, state)
    distinct = values.dictionary_encode(null_encoding="encode")
    known = [state.contract.scenario_index(value) for value in distinct.dictionary.to_pylist()]
    places = distinct.indices.to_numpy(zero_copy_only=False)
    stand_in = -1 if unknown_scenario is None else state.scenario_names.index(unknown_scenario)
    indices: Indices = np.array([stand_in if index is None else index for index in known], dtype=np.int32)[
        places
    ]
    if (indices < 0).any():
        row = int(np.argmax(indices < 0))
        expected = ", ".join(state.scenario_names)
        raise EncoderError(
            f"row {row}: {column} = {values[row].as_py()!r} belongs to no scenario; expected one of {expected}"
        )
    return indices


def _raw(table: pa.Table | pa.RecordBatch, name: str, state: EncoderState) -> pa.Array:
    """One raw column, in the type that the encoder was fitted on."""
    kind = state.raw_types[name]
    if _place(table, name) is None and name in state.contract.optional_columns:
        return pa.nulls(table.num_rows, ARROW_TYPES[kind])
    return read_as(_column(table, name), kind, name)


def missing_columns(names: Sequence[str], state: EncoderState) -> list[str]:
    """Raw columns that rows of these columns lack and may not lack."""
    return [
        name
        for name in state.raw_types
        if name not in names
        and stored_name(name) not in names
        and name not in state.contract.optional_columns
    ]


def _place(table: pa.Table | pa.RecordBatch, name: str) -> int | None:
    """Where a column stands, under its own name or the one that the product's tables store it by."""
    names = table.schema.names
    found = next((each for each in (name, stored_name(name)) if each in names), None)
    return None if found is None else int(names.index(found))


def _column(table: pa.Table | pa.RecordBatch, name: str) -> pa.Array:
    place = _place(table, name)
    if place is None:
        raise EncoderError(f"column {name!r} is missing; given: {', '.join(table.schema.names)}")
    column = table.column(place)
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks else pa.array([], column.type)
    return column


def _plain(table: pa.Table | pa.RecordBatch, name: str) -> npt.NDArray[Any]:
    column = _column(table, name)
    if column.null_count:
        raise EncoderError(f"column {name!r} holds nulls")
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values
