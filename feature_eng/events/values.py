"""Raw values -> typed values, as Spark columns."""

from __future__ import annotations

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DateType,
    FractionalType,
    IntegralType,
    NumericType,
    StringType,
    TimestampNTZType,
    TimestampType,
)

from feature_eng.contract import Contract, ScenarioValues
from feature_eng.contract.values import NUMBER_PATTERN

# Seconds up to the year 3000: milliseconds given for seconds lie beyond, and are refused.
LATEST_SECOND = 32_503_680_000


def scenario_index_column(contract: Contract, dtype: DataType | None = None) -> Column:
    """Place of a row's scenario in the contract, from the raw scenario column; null when unknown.

    Agrees with :meth:`feature_eng.contract.Contract.scenario_index` value by value.

    Args:
        contract: Names the column and its values.
        dtype: The column's type; knowing it spares reading numbers by way of text.
    """
    raw = column(contract.scenario.column)
    cases = [
        F.when(_is_one_of(raw, dtype, values), F.lit(index).cast("int"))
        for index, values in enumerate(contract.scenario.values.values())
    ]
    return F.coalesce(*cases)


def column(name: str) -> Column:
    """A top-level column by its exact name, dots and all."""
    return F.col(f"`{name}`")


def number(value: Column, dtype: DataType | None = None) -> Column:
    """A raw value as a finite double, null otherwise; see :func:`feature_eng.contract.to_number`."""
    if isinstance(dtype, IntegralType):
        return value.cast("double")
    text = F.trim(value.cast("string"))
    parsed = F.when(text.rlike(f"^({NUMBER_PATTERN})\\z"), text.try_cast("double"))
    return F.when(F.abs(parsed) != float("inf"), parsed)


def _is_one_of(raw: Column, dtype: DataType | None, values: ScenarioValues) -> Column:
    if values.range is not None:
        low, high = values.range
        inside = number(raw, dtype).isNotNull()
        if low is not None:
            inside &= number(raw, dtype) >= low
        return inside if high is None else inside & (number(raw, dtype) <= high)
    texts = [value for value in values.one_of or () if isinstance(value, str)]
    numbers = [float(value) for value in values.one_of or () if not isinstance(value, str)]
    found = F.lit(False)
    if texts:
        found |= F.coalesce(raw.cast("string").isin(texts), F.lit(False))
    return found | F.coalesce(number(raw, dtype).isin(numbers), F.lit(False)) if numbers else found


def to_typed(value: Column, dtype: DataType, wanted: str, separator: str | None) -> Column:
    """A raw value as ``number``, ``integer``, ``string`` or, by its own type, ``as it is``."""
    if isinstance(dtype, ArrayType):
        return F.array_join(value.cast("array<string>"), separator or "|")
    if wanted == "number":
        return value.cast("bigint") if isinstance(dtype, IntegralType) else number(value, dtype)
    if wanted == "integer":
        if isinstance(dtype, IntegralType):
            return value.cast("bigint")
        whole = number(value)
        # Whole text is read as such: by way of a double, ids above 2^53 would collide.
        digits = F.trim(value.cast("string"))
        from_text = F.when(digits.rlike(r"^[+-]?\d+\z"), digits.try_cast("bigint"))
        return F.coalesce(from_text, F.when(whole == F.floor(whole), whole.try_cast("bigint")))
    if wanted == "string":
        return value.cast("string")
    if isinstance(dtype, IntegralType | BooleanType):
        return value.cast("bigint")
    if isinstance(dtype, FractionalType):
        return F.when(~F.isnan(value.cast("double")), value.cast("double"))
    return value.cast("string")


def to_seconds(value: Column, dtype: DataType) -> Column:
    """Whole seconds since the epoch; text without a time zone is taken as UTC."""
    if isinstance(dtype, TimestampType):
        seconds = F.unix_seconds(value)
    elif isinstance(dtype, NumericType):
        seconds = F.floor(number(value, dtype)).cast("bigint")
    elif isinstance(dtype, StringType | DateType | TimestampNTZType):
        text = F.trim(value.cast("string"))
        has_zone = text.rlike(r"[:\d](Z|[+-]\d{2}(:?\d{2})?)\z") & text.rlike(r"[T ]\d{2}:")
        with_time = F.when(text.rlike(r"^\d{4}-\d{2}-\d{2}\z"), F.concat(text, F.lit("T00:00:00"))).otherwise(
            text
        )
        # Left alone, Spark completes a bare time of day with today's date, and reads text
        # without a zone in the session's.
        instant = F.when(has_zone, text).otherwise(F.concat(with_time, F.lit("Z")))
        is_date = text.rlike(r"^\d{4}-\d{2}-\d{2}")
        iso = F.when(is_date, F.unix_seconds(instant.try_cast("timestamp")))
        seconds = F.coalesce(F.floor(number(text)).try_cast("bigint"), iso)
    else:
        seconds = F.lit(None).cast("bigint")
    return F.when(seconds.between(0, LATEST_SECOND), seconds)


def is_blank(name: str) -> Column:
    """Whether a column holds null or blanks alone."""
    return column(name).isNull() | (F.trim(column(name).cast("string")) == "")


def is_nan(name: str, dtype: DataType) -> Column:
    """Whether a double is NaN, which many writers use for null."""
    return F.isnan(column(name).cast("double")) if isinstance(dtype, FractionalType) else F.lit(False)
