"""Columns by which a row of a side table is chosen: its key, from when on it holds, how new it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Literal

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, DoubleType, FloatType, FractionalType, StringType

from feature_eng.contract import Contract, Join, as_key
from feature_eng.events.times import iso_moment, time_hint, to_seconds
from feature_eng.events.values import Wanted, is_blank, raw_column, to_typed
from feature_eng.events.wanted import declared_type

_EXPECTED: dict[Wanted, str] = {"id": "whole numbers", "integer": "whole numbers", "number": "numbers"}


@dataclass(frozen=True)
class SideColumn:
    """A column by which a row is chosen.

    Args:
        role: What it is to the join.
        name: Of the raw column.
        value: As it is read; null where it cannot be.
        expected: What its values must be, for messages; ``None`` where all of them can be read.
        hint: For a value that cannot be read: what it seems to be and what to write, or null.
    """

    role: Literal["on", "as_of", "newest"]
    name: str
    value: Column
    expected: str | None
    hint: Column | None = None


def side_columns(join: Join, frame: DataFrame, contract: Contract) -> Iterator[SideColumn]:
    """The columns by which a join chooses a row of its side table, keys first and in their order."""
    for name in join.on:
        value, _ = typed_key(name, join.table, frame, contract)
        expected = _expected(frame.schema[name].dataType, _key_type(name, join.table, contract))
        yield SideColumn("on", name, value, expected)
    if (time := join.as_of_time) is not None:
        raw, dtype = raw_column(time.column), frame.schema[time.column].dataType
        value, hint = to_seconds(raw, dtype, time, since_ever=True), time_hint(raw, dtype, time)
        yield SideColumn("as_of", time.column, value, "times up to the year 3000", hint)
    if join.newest is not None:
        yield _newest(join.newest, join.table, frame, contract)


def _newest(name: str, table: str, frame: DataFrame, contract: Contract) -> SideColumn:
    """What is greater in a newer row.

    As text "9" comes after "10". So text is the order of ISO times alone, unless the contract says what it is.
    """
    raw, dtype, declared = raw_column(name), frame.schema[name].dataType, declared_type(name, table, contract)
    if declared is not None:
        return SideColumn("newest", name, to_typed(raw, dtype, declared), _expected(dtype, declared))
    if isinstance(dtype, StringType):
        moment = iso_moment(F.trim(raw))
        types = f"source.tables.{table}.types: {{{as_key(name)}: integer}}"
        expected = f"ISO times, or {types}, number, or string for the order of text"
        # What is finer than a moment is told by the text.
        return SideColumn("newest", name, F.when(moment.isNotNull(), F.struct(moment, raw)), expected)
    is_float = isinstance(dtype, DoubleType | FloatType)
    return SideColumn("newest", name, F.when(~F.isnan(raw), raw) if is_float else raw, None)


def typed_key(name: str, table: str, frame: DataFrame, contract: Contract) -> tuple[Column, DataType]:
    """A column by which tables are joined as it is read, and of which type it is then."""
    typed = to_typed(raw_column(name), frame.schema[name].dataType, _key_type(name, table, contract))
    return typed, frame.select(typed.alias("typed")).schema["typed"].dataType


def unreadable(where: str, join: Join, frame: DataFrame, columns: Sequence[SideColumn]) -> list[str]:
    """What is there and cannot be read, one line for each column: an earlier row would go on holding without a word.

    Rows without a key or a time say nothing of anything, and are left out.
    """
    blank = {column.name: is_blank(column.name, frame.schema[column.name].dataType) for column in columns}
    says = reduce(and_, (~blank[column.name] for column in columns if column.role != "newest"))
    looked_at = [column for column in columns if column.expected is not None]
    if not looked_at:
        return []
    counts = [F.count(F.lit(1)).alias("rows")]
    for place, column in enumerate(looked_at):
        is_bad = says & ~blank[column.name] & column.value.isNull()
        hint = F.lit(None).cast("string") if column.hint is None else column.hint
        example = F.struct(raw_column(column.name).cast("string"), hint)
        counts += [
            F.count_if(is_bad).alias(f"bad{place}"),
            F.min(F.when(is_bad, example)).alias(f"example{place}"),
        ]
    found = frame.agg(*counts).collect()[0]
    faults = []
    for place, column in enumerate(looked_at):
        if not found[f"bad{place}"]:
            continue
        value, seems = found[f"example{place}"]
        # It is worded for the key `time`.
        told = "" if seems is None else f" ({seems.replace('time: {', f'{column.role}: {{')})"
        faults.append(
            f"{where}.{column.role}: {found[f'bad{place}']:,} of {found['rows']:,} rows of {join.table!r} have a "
            f"{column.name!r} that cannot be read, as {value!r}{told}; expected {column.expected}, or a 'where' that "
            "leaves such rows out"
        )
    return faults


def _key_type(name: str, table: str, contract: Contract) -> Wanted:
    return declared_type(name, table, contract) or "id"


def _expected(dtype: DataType, wanted: Wanted) -> str | None:
    """What values must be that may be none of what is wanted; ``None`` where each is one."""
    is_read = isinstance(dtype, FractionalType) or (isinstance(dtype, StringType) and wanted != "id")
    return _EXPECTED.get(wanted) if is_read else None
