"""Raw values -> typed values, as Spark columns; kinds that mean nothing here are refused by name.

The table of kinds in docs/adding_data.md says what becomes of each.
"""

from __future__ import annotations

from typing import Literal

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    FractionalType,
    IntegralType,
    NullType,
    NumericType,
    StringType,
)

from feature_eng.contract import Contract, ScenarioValues, quoted, stored_name, to_boolean
from feature_eng.contract.values import EXACT_DOUBLE, NUMBER_PATTERN

Wanted = Literal["id", "number", "integer", "string", "boolean", "values", "as it is"]

# Digits that every bigint can hold.
_LONG_DIGITS = 18
BIG_INTEGER = "decimal(38,0)"
"""Type of ids that a bigint cannot hold."""

_INSTEAD = {
    "array": "{0}[0], or concat_ws('|', {0})",
    "map": "{0}['key']",
    "struct": "{0}.field",
    "binary": "decode({0}, 'UTF-8'), or hex({0})",
    "timestamp": "date_format({0}, 'yyyy-MM-dd'), or hour({0})",
    "timestamp_ntz": "date_format({0}, 'yyyy-MM-dd'), or hour({0})",
    "date": "dayofweek({0})",
    "decimal": "CAST({0} AS STRING)",
}


def column(name: str) -> Column:
    """A raw column as events and examples store it."""
    return F.col(quoted(stored_name(name)))


def raw_column(name: str) -> Column:
    """A column of a raw table by its exact name, dots and all."""
    return F.col(quoted(name))


def number(value: Column, dtype: DataType | None = None) -> Column:
    """A raw value as a finite double, null otherwise; see :func:`feature_eng.contract.to_number`."""
    if isinstance(dtype, IntegralType):
        return value.cast("double")
    text = F.trim(value.cast("string"))
    parsed = F.when(text.rlike(f"^({NUMBER_PATTERN})\\z"), text.try_cast("double"))
    return F.when(F.abs(parsed) != float("inf"), parsed)


def scenario_index_column(
    contract: Contract, dtype: DataType | None = None, value: Column | None = None
) -> Column:
    """Place of a row's scenario in the contract, from the scenario column; null when unknown.

    Agrees with :meth:`feature_eng.contract.Contract.scenario_index` value by value.

    Args:
        contract: Names the column and its values.
        dtype: The column's type; knowing it spares reading numbers by way of text.
        value: The column, where it is not the one of events and examples.
    """
    found = column(contract.scenario.column) if value is None else value
    cases = [
        F.when(_is_one_of(found, dtype, values), F.lit(index).cast("int"))
        for index, values in enumerate(contract.scenario.values.values())
    ]
    return F.coalesce(*cases)


def refusal(name: str, dtype: DataType, wanted: Wanted) -> str | None:
    """Why a column of this type cannot be read as what is wanted, and what to write instead; None if it can."""
    kind = dtype.typeName()
    if isinstance(dtype, StringType | NullType | IntegralType | BooleanType | DoubleType | FloatType):
        fits = wanted != "values"
    elif isinstance(dtype, DecimalType):
        fits = wanted != "values" and (wanted != "id" or dtype.scale == 0)
    elif isinstance(dtype, DateType):
        fits = wanted in ("id", "string", "as it is")
    elif isinstance(dtype, ArrayType) and wanted == "values":
        return refusal(f"an element of {name}", dtype.elementType, "id")
    else:
        fits = False
    if fits:
        return None
    expected = {
        "id": "whole numbers or text", "number": "numbers", "integer": "whole numbers", "string": "text",
        "boolean": "true and false", "values": "a list, or a text of several values",
        "as it is": "numbers or text",
    }[wanted]  # fmt: skip
    instead = _INSTEAD.get(kind, "an expression of it").format(
        quoted(name) if not name.isidentifier() else name
    )
    return f'is of type {dtype.simpleString()}; expected {expected}; write select: {{NAME: "{instead}"}}'


def to_typed(value: Column, dtype: DataType, wanted: Wanted) -> Column:
    """A raw value in the type of events; null where it is not what is wanted.

    ``id`` keeps whole numbers exact: a bigint, or ``decimal(38,0)`` where the column's type may exceed it.
    ``as it is`` follows the column's own type. A type that :func:`refusal` refuses never gets here.
    """
    if wanted == "values":
        assert isinstance(dtype, ArrayType), "refused before"
        element = dtype.elementType
        return F.transform(value, lambda each: to_typed(each, element, "id"))
    if wanted == "string":
        return value.cast("string")
    if isinstance(dtype, IntegralType | BooleanType):
        return value.cast("bigint")
    if wanted == "number":
        return number(value, dtype)
    if wanted == "integer":
        return whole_number(value, dtype)
    if wanted == "boolean":
        return _boolean(value, dtype)
    if isinstance(dtype, DecimalType) and dtype.scale == 0:
        return value.cast("bigint" if dtype.precision <= _LONG_DIGITS else BIG_INTEGER)
    if isinstance(dtype, FractionalType):
        double = value.cast("double")
        if wanted == "id":
            is_exact = (double == F.floor(double)) & (F.abs(double) < F.lit(EXACT_DOUBLE))
            return F.when(is_exact, double.try_cast("bigint"))
        return F.when(~F.isnan(double), double)
    return value.cast("string")


def whole_number(value: Column, dtype: DataType) -> Column:
    """A raw value as a bigint; null where it is none; see :func:`feature_eng.contract.values.to_integer`."""
    if isinstance(dtype, IntegralType):
        return value.cast("bigint")
    if isinstance(dtype, DecimalType):
        return F.when(value == F.floor(value), F.floor(value).try_cast("bigint"))
    whole = number(value)
    # Whole text is read as such: by way of a double, ids above 2^53 would collide.
    digits = F.trim(value.cast("string"))
    from_text = F.when(digits.rlike(r"^[+-]?\d+\z"), digits.try_cast("bigint"))
    is_exact = (whole == F.floor(whole)) & (F.abs(whole) < F.lit(EXACT_DOUBLE))
    return F.coalesce(from_text, F.when(is_exact, whole.try_cast("bigint")))


def comparable(
    mine: Column, mine_type: DataType, other: Column, other_type: DataType
) -> tuple[Column, Column]:
    """Two typed ids so that equality compares their values: text against a number is read as a number.

    So 5, 5.0 and "5" are one id. Text that is no whole number equals no number.
    """
    if isinstance(mine_type, NumericType) and isinstance(other_type, StringType):
        return mine, as_id_like(other, mine_type)
    if isinstance(other_type, NumericType) and isinstance(mine_type, StringType):
        return as_id_like(mine, other_type), other
    return mine, other


def is_blank(name: str, dtype: DataType) -> Column:
    """Whether a raw column holds null, blanks alone, or NaN, which many writers use for null."""
    value = raw_column(name)
    if isinstance(dtype, DoubleType | FloatType):
        return value.isNull() | F.isnan(value)
    if isinstance(dtype, StringType):
        return value.isNull() | (F.trim(value) == "")
    return value.isNull()


def as_id_like(text: Column, dtype: DataType) -> Column:
    """Text as a whole number of an id's type; null where it is none."""
    if not isinstance(dtype, DecimalType):
        return whole_number(text, StringType())
    digits = F.trim(text)
    return F.when(digits.rlike(r"^[+-]?\d+\z"), digits.try_cast(BIG_INTEGER))


def _boolean(value: Column, dtype: DataType) -> Column:
    """1 and 0 for true and false, and for the numbers 1 and 0."""
    read = number(value, dtype)
    as_number = F.when(read.isin(0.0, 1.0), read.cast("bigint"))
    if not isinstance(dtype, StringType):
        return as_number
    word = F.lower(F.trim(value))
    return (
        F.when(word == "true", F.lit(1)).when(word == "false", F.lit(0)).otherwise(as_number).cast("bigint")
    )


def _is_one_of(raw: Column, dtype: DataType | None, values: ScenarioValues) -> Column:
    if values.range is not None:
        low, high = values.range
        inside = number(raw, dtype).isNotNull()
        if low is not None:
            inside &= number(raw, dtype) >= low
        return inside if high is None else inside & (number(raw, dtype) <= high)
    wanted = values.one_of or ()
    texts = [value for value in wanted if isinstance(value, str)]
    truths = [truth for truth in map(to_boolean, wanted) if truth is not None]
    numbers = [float(value) for value in (*wanted, *truths) if not isinstance(value, str)]
    found = F.lit(False)
    if texts:
        found |= F.coalesce(raw.cast("string").isin(texts), F.lit(False))
    if truths:
        words = [str(truth).lower() for truth in truths]
        found |= F.coalesce(F.lower(F.trim(raw.cast("string"))).isin(words), F.lit(False))
    return found | F.coalesce(number(raw, dtype).isin(numbers), F.lit(False)) if numbers else found
