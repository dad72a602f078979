"""Times of some days, said of a raw column as it is: files and row groups that hold none of them are not read.

How a time is read (:func:`feature_eng.events.times.to_seconds`) is more than files know of their columns. What they
know, the least and the greatest value, is enough to leave most of them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import reduce

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import (
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    IntegerType,
    LongType,
    TimestampNTZType,
    TimestampType,
)

from feature_eng.contract import Time
from feature_eng.dates import DAY_SECONDS
from feature_eng.events.times import DATE_NUMBERS, LATEST_SECOND, PER_SECOND, coarser_units

_Span = tuple[int | None, int | None]
"""From a number on, and before another one; ``None`` is an open end."""
_LARGEST = {IntegerType: 2**31 - 1, LongType: 2**63 - 1}


def may_be_within(
    value: Column, dtype: DataType, reading: Time, first: int | None, last: int | None
) -> Column | None:
    """Whether a raw value may be read as a time of some seconds, or as no time at all.

    True of all values that are, and of few others. It compares the column with constants, which is what files are
    left out by.

    Args:
        value: The raw column.
        dtype: Its type.
        reading: How its times are read.
        first: The first of these seconds; ``None`` where there is none.
        last: The last of them; ``None`` where there is none.

    Returns:
        ``None`` where the order of values is not that of their times, as of text and of formats.
    """
    if reading.format:
        return None
    after = None if last is None else last + 1
    seconds: list[_Span] = [(None, 0), (first, after), (LATEST_SECOND + 1, None)]
    # To a day's end it is a day, of 25 hours at most.
    to_end = 2 * DAY_SECONDS if reading.dates == "end" else 0
    if isinstance(dtype, LongType | IntegerType | DecimalType | DoubleType):
        per = PER_SECOND[reading.unit or "s"]
        # Of whole numbers all is exact; others are read as doubles, and may be rounded to the next one.
        slack = 0 if isinstance(dtype, LongType | IntegerType) else 1
        spans = [_scaled(span, per, slack + to_end) for span in seconds]
        refused = coarser_units(reading.unit) if reading.unit else [DATE_NUMBERS]
        spans += [(low - slack, high + 1 + slack) for low, high in refused]
        is_none = value.isNull()
        if isinstance(dtype, DoubleType):
            # Of what is no number writers keep no account, and no file may be left out.
            is_none |= F.isnan(value)
        else:
            largest = (
                10 ** (dtype.precision - dtype.scale) - 1
                if isinstance(dtype, DecimalType)
                else _LARGEST[type(dtype)]
            )
            spans = list(_held(spans, largest))
        return _is_in(value, is_none, spans, lambda bound: F.lit(_number(bound, dtype)).cast(dtype))
    if isinstance(dtype, TimestampType):
        spans = [_scaled(span, 1, to_end) for span in seconds]
        return _is_in(value, value.isNull(), spans, lambda bound: F.timestamp_seconds(F.lit(bound)))
    # Without a zone of their own times lie less than a day from those of UTC.
    spans = [_scaled(span, 1, 2 * DAY_SECONDS + to_end) for span in seconds]
    if isinstance(dtype, TimestampNTZType):
        start = F.expr("TIMESTAMP_NTZ'1970-01-01 00:00:00'")
        return _is_in(
            value, value.isNull(), spans, lambda bound: start + F.make_dt_interval(secs=F.lit(bound))
        )
    if isinstance(dtype, DateType):
        return _is_in(
            value, value.isNull(), spans, lambda bound: F.date_from_unix_date(F.lit(bound // DAY_SECONDS))
        )
    return None


def _scaled(span: _Span, per: int, slack: int) -> _Span:
    low, high = span
    return None if low is None else (low - slack) * per, None if high is None else (high + slack) * per


def _held(spans: list[_Span], largest: int) -> Iterator[_Span]:
    """The spans as far as a type's values reach, from ``-largest`` to ``largest`` at the least."""
    for low, high in spans:
        if (low is not None and low > largest) or (high is not None and high <= -largest - 1):
            continue
        yield (
            None if low is None or low < -largest else low,
            None if high is None or high > largest else high,
        )


def _number(bound: int, dtype: DataType) -> int | float | Decimal:
    if isinstance(dtype, DoubleType):
        return float(bound)
    return Decimal(bound) if isinstance(dtype, DecimalType) else bound


def _is_in(value: Column, is_none: Column, spans: list[_Span], constant: Callable[[int], Column]) -> Column:
    found = [is_none]
    for low, high in spans:
        ends = []
        if low is not None:
            ends.append(value >= constant(low))
        if high is not None:
            ends.append(value < constant(high))
        if not ends:
            return F.lit(True)
        found.append(reduce(Column.__and__, ends))
    return reduce(Column.__or__, found)
