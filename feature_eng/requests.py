"""Requests: rows that shall be scored and have no labels yet, given the features of what came before them.

What happened before a row is the same question with a label and without one. So requests go through the very step that
makes the examples (`feature_eng.behaviour`), told by these and by the other tables of events.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    DataType,
    DecimalType,
    IntegralType,
    NullType,
    NumericType,
    StringType,
)

from feature_eng.behaviour import with_behaviour
from feature_eng.contract import Contract, stored_name
from feature_eng.events import Events
from feature_eng.events.times import time_refusal, to_seconds
from feature_eng.events.values import as_id_like, is_blank, number, raw_column, refusal, to_typed
from feature_eng.events.wanted import declared_type, wanted_type
from foundation.settings import UserError


class RequestError(UserError):
    """Requests that cannot be read as the contract reads impressions."""


def with_features(requests: DataFrame, events: Events, examples: DataFrame, contract: Contract) -> DataFrame:
    """Requests as raw rows of the contract, with its behaviour features.

    Args:
        requests: Columns as the raw table of the impressions has them; labels and what they are made of are not needed.
        events: What happened.
        examples: What the same build made of it: its labels are those that rates and histories are made of.
        contract: The data contract.

    Returns:
        Of the requests' columns those that the contract reads, typed, and called, as examples store them, and the
        features; what nobody reads would be shuffled in vain.

    Raises:
        RequestError: Columns are missing or of another kind than the events', or values cannot be read.
    """
    read = _columns(requests, events, contract)
    typed = requests.select(*(value.alias(stored_name(name)) for name, value in read.items()))
    _refuse_unreadable(requests, read, contract)
    return with_behaviour(typed, contract, examples, events.related, tell=False)


def _columns(requests: DataFrame, events: Events, contract: Contract) -> dict[str, Column]:
    """Raw column -> the typed value, of those that the contract reads before the row has any label."""
    columns, faults = contract.columns, []
    entities = {columns.time, *contract.entity_columns}
    needed = dict.fromkeys([*filter(None, entities), contract.scenario.column, *contract.feature_columns])
    wished = dict.fromkeys([*needed, *columns.key, *filter(None, (columns.user, columns.item))])
    found: dict[str, Column] = {}
    for name in wished:
        stored: DataType = events.impressions.schema[stored_name(name)].dataType
        if name not in requests.columns:
            if name in contract.optional_columns and name not in entities:
                found[name] = F.lit(None).cast(stored)
            elif name in needed:
                faults.append(f"requests: column {name!r} is missing")
            continue
        given, value = requests.schema[name].dataType, raw_column(name)
        if name == columns.time:
            assert columns.time_reading is not None, "the column is named"
            fault = time_refusal(requests.sparkSession, columns.time_reading, given)
            found[name] = to_seconds(value, given, columns.time_reading)
        else:
            declared = declared_type(name, contract.source.main_table, contract)
            wanted = wanted_type(name, given, declared, contract)
            fault = refusal(name, given, wanted)
            if fault is None:
                typed = to_typed(value, given, wanted)
                kind = requests.select(typed.alias("typed")).schema["typed"].dataType
                fault = _other_text(kind, stored)
                value = _as_stored(typed, kind, stored)
            found[name] = value
        if fault:
            faults.append(f"requests: column {name!r} {fault}")
    if faults:
        raise RequestError("\n".join(faults))
    return found


def _other_text(given: DataType, stored: DataType) -> str | None:
    """Why values that are no text cannot stand for text; ``None`` where they need not."""
    if isinstance(given, ArrayType) and isinstance(stored, ArrayType):
        return _other_text(given.elementType, stored.elementType)
    if isinstance(stored, StringType) and not isinstance(given, StringType | NullType):
        return f"is of type {given.simpleString()}; expected text, as it is in the events: 007 and 7 are two texts"
    return None


def _as_stored(typed: Column, given: DataType, stored: DataType) -> Column:
    """A typed value in the type of events; null where it is none."""
    if isinstance(given, StringType) and isinstance(stored, NumericType):
        is_whole = isinstance(stored, IntegralType | DecimalType)
        return as_id_like(typed, stored) if is_whole else number(typed)
    return typed.try_cast(stored)


def _refuse_unreadable(requests: DataFrame, read: dict[str, Column], contract: Contract) -> None:
    """A row without a time, or with a value that is none of its kind, would be scored as another row."""
    needed = {name for name in (contract.columns.time, contract.scenario.column) if name is not None}
    lost = {
        name: value.isNull()
        if name in needed
        else value.isNull() & ~is_blank(name, requests.schema[name].dataType)
        for name, value in read.items()
        if name in requests.columns
    }
    counts = requests.agg(
        *(F.count_if(fault).alias(stored_name(name)) for name, fault in lost.items())
    ).collect()[0]
    faults = [
        f"requests: {counts[stored_name(name)]:,} rows have no usable value in {name!r}"
        for name in lost
        if counts[stored_name(name)]
    ]
    if faults:
        raise RequestError("\n".join(faults))
