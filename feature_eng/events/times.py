"""Columns of times -> whole seconds since the epoch, as the contract says how to read them."""

from __future__ import annotations

import re

from pyspark.errors import PySparkException
from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    DataType,
    DateType,
    NullType,
    NumericType,
    StringType,
    TimestampNTZType,
    TimestampType,
)

from feature_eng.contract import Time
from feature_eng.dates import DAY_SECONDS, last_second
from feature_eng.events.values import number, whole_number

# Seconds up to the year 3000: milliseconds given for seconds lie beyond, and are refused.
LATEST_SECOND = 32_503_680_000
_YEAR_1 = -62_135_596_800
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# Numbers since the epoch in each unit, for the years 1973 to 2099.
_LIKELY = {unit: (10**8 * per, 41 * 10**8 * per) for unit, per in PER_SECOND.items()}
DATE_NUMBERS = (19_000_101, 29_991_231)
"""Numbers among which those lie that read as yyyyMMdd of the years 1900 to 2999."""
_ZONE_LETTERS = "VzOXxZ"


def time_refusal(spark: SparkSession, reading: Time, dtype: DataType) -> str | None:
    """Why a column of this type cannot be read as times the way that is asked for; None if it can."""
    if isinstance(dtype, TimestampType):
        extra = next((part for part in ("unit", "format", "zone") if getattr(reading, part)), None)
        return f"is a timestamp, which needs no '{extra}'" if extra else None
    if isinstance(dtype, DateType | TimestampNTZType):
        extra = next((part for part in ("unit", "format") if getattr(reading, part)), None)
        return f"is of type {dtype.simpleString()}, which needs no '{extra}'" if extra else None
    if not isinstance(dtype, NumericType | StringType | NullType):
        return f"is of type {dtype.simpleString()}; expected times: timestamps, dates, numbers or text"
    if isinstance(dtype, NumericType) and reading.zone and not reading.format:
        return "holds numbers since the epoch, which need no 'zone'"
    if reading.format:
        try:
            # Of a local row, so that no task is started.
            spark.range(1).select(_parsed(F.lit("2024"), reading)).take(1)
        except PySparkException as error:
            cause = str(error).splitlines()[0]
            return f"format {reading.format!r} is no pattern of Spark's: {cause}"
    return None


def is_naive(reading: Time, dtype: DataType) -> bool:
    """Whether times of a column of this type name no time zone, so that they are of the reading's, or of UTC.

    Text may name one value by value; what its type cannot tell, the contract says.
    """
    if reading.unit or isinstance(dtype, TimestampType):
        return False
    if reading.format:
        return not _names_zone(reading.format)
    return isinstance(dtype, StringType | DateType | TimestampNTZType)


def as_written(key: str, reading: Time, **added: str) -> str:
    """How a contract says how times are read, with something added, for messages."""
    said = reading.model_dump(exclude_none=True) | added
    return f"{key}: {{{', '.join(f'{name}: {value}' for name, value in said.items())}}}"


def to_seconds(value: Column, dtype: DataType, reading: Time, *, since_ever: bool = False) -> Column:
    """Whole seconds since the epoch, null for what is no time of the years 1970 to 3000.

    With ``since_ever`` earlier ones too: tables say 1900-01-01 of what has held since before anyone counted.

    What names no time zone is taken as of the reading's, or as UTC. A number of eight digits that reads as a
    date, such as 20240115, is no number of seconds unless the reading says so. Nor is a number one of a fine unit
    that would lie in early 1970, and in 1973 to 2099 by a coarser unit.
    """
    if isinstance(dtype, TimestampType):
        seconds = F.unix_seconds(value)
    elif reading.format:
        as_text = whole_number(value, dtype) if isinstance(dtype, NumericType) else value
        seconds = F.unix_seconds(_parsed(F.trim(as_text.cast("string")), reading))
    elif reading.unit:
        of_coarser = _is_of_coarser_unit(value, dtype, reading.unit)
        seconds = F.when(~of_coarser, _scaled(value, dtype, PER_SECOND[reading.unit]))
    elif isinstance(dtype, NumericType):
        seconds = F.when(~_is_date_number(value, dtype), F.floor(number(value, dtype)).try_cast("bigint"))
    elif isinstance(dtype, StringType | DateType | TimestampNTZType):
        text = F.trim(value.cast("string"))
        seconds = F.when(
            ~F.coalesce(_is_date_number(text, StringType()), F.lit(False)),
            F.coalesce(
                F.floor(number(text)).try_cast("bigint"), F.unix_seconds(iso_moment(text, reading.zone))
            ),
        )
    else:
        seconds = F.lit(None).cast("bigint")
    earliest = _YEAR_1 if since_ever else 0
    if reading.dates == "end":
        # Of what is far from all times no day can be told.
        near = F.when(seconds.between(earliest - DAY_SECONDS, LATEST_SECOND), seconds)
        seconds = last_second(near, reading.zone or "UTC")
    return F.when(seconds.between(earliest, LATEST_SECOND), seconds)


def time_hint(value: Column, dtype: DataType, reading: Time) -> Column:
    """For a time that is refused: what it seems to be and what to write, or null."""
    if reading.format or not isinstance(dtype, NumericType | StringType):
        return F.lit(None).cast("string")
    read = number(value, dtype)
    date = f"a date as a number; write time: {{column: {reading.column}, format: yyyyMMdd}}"
    hint = F.when(_is_date_number(value, dtype), F.lit(date))
    for unit, (low, high) in _LIKELY.items():
        if unit == (reading.unit or "s"):
            continue
        says = f"{unit} since the epoch, it seems; write time: {{column: {reading.column}, unit: {unit}}}"
        hint = hint.when(read.between(low, high), F.lit(says))
    return hint


def coarser_units(unit: str) -> list[tuple[int, int]]:
    """Between which numbers those lie that seem to be of each unit that is coarser than this one."""
    return [bounds for other, bounds in _LIKELY.items() if PER_SECOND[other] < PER_SECOND[unit]]


def _scaled(value: Column, dtype: DataType, per_second: int) -> Column:
    whole = whole_number(value, dtype)
    # Division drops the fraction, which before the epoch would be the wrong way.
    exact = F.when(whole >= 0, F.call_function("div", whole, F.lit(per_second).cast("bigint")))
    return F.coalesce(exact, F.floor(number(value, dtype) / per_second).try_cast("bigint"))


def _is_of_coarser_unit(value: Column, dtype: DataType, unit: str) -> Column:
    read, found = number(value, dtype), F.lit(False)
    for bounds in coarser_units(unit):
        found = found | read.between(*bounds)
    return found


def _parsed(text: Column, reading: Time) -> Column:
    assert reading.format is not None, "asked for by the caller"
    if _names_zone(reading.format):
        return F.try_to_timestamp(text, F.lit(reading.format))
    # Without a zone of its own Spark would take the text as of the session's.
    return F.try_to_timestamp(
        F.concat(text, F.lit(f" {reading.zone or 'UTC'}")), F.lit(f"{reading.format} VV")
    )


def _names_zone(format: str) -> bool:
    letters = re.sub("'[^']*'", "", format)
    return any(letter in letters for letter in _ZONE_LETTERS)


def iso_moment(text: Column, zone: str | None = None) -> Column:
    """ISO text as a moment, null for other text; what names no time zone is of the given one, or of UTC."""
    has_zone = text.rlike(r"[:\d](Z|[+-]\d{2}(:?\d{2})?)\z") & text.rlike(r"[T ]\d{2}:")
    is_day = text.rlike(r"^\d{4}-\d{2}-\d{2}\z")
    # Spark wants seconds.
    text = F.regexp_replace(text, r"^(\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2})(?![:\d])", "$1:00")
    with_time = F.when(is_day, F.concat(text, F.lit("T00:00:00"))).otherwise(text)
    # Left alone, Spark completes a bare time of day with today's date, and reads text
    # without a zone in the session's.
    own = F.lit(f" {zone}" if zone else "Z")
    instant = F.when(has_zone, text).otherwise(F.concat(with_time, own))
    is_date = text.rlike(r"^\d{4}-\d{2}-\d{2}")
    return F.when(is_date, instant.try_cast("timestamp"))


def _is_date_number(value: Column, dtype: DataType) -> Column:
    """Whether a number reads as yyyyMMdd of the years 1900 to 2999."""
    read = number(value, dtype)
    month = F.floor(read / 100) % 100
    return (
        (read == F.floor(read))
        & read.between(*DATE_NUMBERS)
        & month.between(1, 12)
        & (read % 100).between(1, 31)
    )
