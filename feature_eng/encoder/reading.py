"""Raw values in whatever Arrow type they arrive, as the kind that the encoder was fitted on, exactly or not at all.

Building tables, scoring tables, Python and REST all end here. docs/adding_data.md has the table of kinds.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from feature_eng.contract.values import EXACT_DOUBLE, to_integer, to_number
from feature_eng.encoder.state import ARROW_TYPES, EncoderError

_CANONICAL = r"^(0|-?[1-9][0-9]*)$"
_EXPECTED = {
    "int64": "a whole number of 64 bits",
    "decimal": "a whole number",
    "double": "a number",
    "string": "text",
}


def read_as(values: pa.Array, kind: str, name: str) -> pa.Array:
    """One raw column in the Arrow type of its kind.

    Args:
        values: As they came.
        kind: A key of ``ARROW_TYPES``.
        name: Of the column, for messages.

    Raises:
        EncoderError: The values are of a type that cannot stand for the kind, or one of them is none; with its row.
    """
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    wanted = ARROW_TYPES[kind]
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), wanted)
    if kind.startswith("list<"):
        return _list(values, kind, name)
    if values.type == wanted and kind != "decimal":
        return values
    reader = {"int64": _integers, "decimal": _decimals, "double": _doubles, "string": _texts}[kind]
    read = reader(values, name)
    if read is None:
        raise EncoderError(
            f"column {name!r} is of type {values.type}; expected {_EXPECTED[kind]}{_instead(values.type, kind)}"
        )
    return read


def _list(values: pa.Array, kind: str, name: str) -> pa.Array:
    given = values.type
    if not (pa.types.is_list(given) or pa.types.is_large_list(given) or pa.types.is_fixed_size_list(given)):
        raise EncoderError(f"column {name!r} is of type {given}; expected a list")
    if given == ARROW_TYPES[kind] and kind != "list<decimal>":
        return values
    if not pa.types.is_list(given):
        values = values.cast(pa.list_(given.value_type))
    element = kind.removeprefix("list<").removesuffix(">")
    parts = read_as(values.flatten(), element, name)
    lengths = pc.fill_null(pc.list_value_length(values), 0)
    ends = pc.cumulative_sum(lengths).cast(pa.int32())
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    if values.null_count:
        is_null = pa.concat_arrays([values.is_null(), pa.array([False])])
        offsets = pc.if_else(is_null, pa.scalar(None, pa.int32()), offsets)
    return pa.ListArray.from_arrays(offsets, parts)


def _integers(values: pa.Array, name: str) -> pa.Array | None:
    given = values.type
    if pa.types.is_floating(given):
        return _from_floats(values, name)
    if pa.types.is_integer(given) or pa.types.is_boolean(given) or pa.types.is_decimal(given):
        try:
            return values.cast(pa.int64())
        except pa.ArrowInvalid:
            return _each(values, _long, pa.int64(), name, "int64")
    if _is_text(given):
        return _each(values, _long, pa.int64(), name, "int64")
    return None


def _decimals(values: pa.Array, name: str) -> pa.Array | None:
    given = values.type
    if pa.types.is_floating(given):
        return _from_floats(values, name).cast(pa.string())
    if pa.types.is_integer(given):
        return values.cast(pa.string())
    if _is_text(given):
        values = values.cast(pa.string())
        if pc.all(pc.match_substring_regex(values, _CANONICAL)).as_py() in (True, None):
            return values
    if _is_text(given) or pa.types.is_decimal(given):
        return _each(values, _digits, pa.string(), name, "decimal")
    return None


def _doubles(values: pa.Array, name: str) -> pa.Array | None:
    given = values.type
    if pa.types.is_integer(given) or pa.types.is_floating(given) or pa.types.is_decimal(given):
        return values.cast(pa.float64(), safe=False)
    if _is_text(given):
        return _each(values, to_number, pa.float64(), name, "double")
    return None


def _texts(values: pa.Array, name: str) -> pa.Array | None:
    given = values.type
    # A date is its ISO text, in Spark as here.
    return values.cast(pa.string()) if _is_text(given) or pa.types.is_date(given) else None


def _from_floats(values: pa.Array, name: str) -> pa.Array:
    """Whole numbers that passed through floats, as pandas makes of integers beside nulls; NaN is null."""
    values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values).cast(pa.float64())
    is_exact = pc.and_(pc.equal(values, pc.floor(values)), pc.less(pc.abs(values), EXACT_DOUBLE))
    if pc.all(is_exact).as_py() is False:
        row = pc.index(is_exact, False).as_py()
        value = values[row].as_py()
        why = (
            "an id that passed through floats may be another: send it as text"
            if abs(value) >= EXACT_DOUBLE
            else "expected a whole number"
        )
        raise EncoderError(f"row {row}: column {name!r} = {value!r}: {why}")
    return values.cast(pa.int64())


def _each(
    values: pa.Array, read: Callable[[object], object], dtype: pa.DataType, name: str, kind: str
) -> pa.Array:
    found = []
    for row, value in enumerate(values.to_pylist()):
        # Blanks are null, as where tables are read.
        is_missing = value is None or (isinstance(value, str) and not value.strip(" "))
        found.append(None if is_missing else read(value))
        if found[-1] is None and not is_missing:
            raise EncoderError(f"row {row}: column {name!r} = {value!r}; expected {_EXPECTED[kind]}")
    return pa.array(found, dtype)


def _long(value: object) -> int | None:
    whole = to_integer(value)
    return whole if whole is not None and -(2**63) <= whole < 2**63 else None


def _digits(value: object) -> str | None:
    whole = to_integer(value)
    return None if whole is None else str(whole)


def _is_text(given: pa.DataType) -> bool:
    return bool(pa.types.is_string(given) or pa.types.is_large_string(given))


def _instead(given: pa.DataType, kind: str) -> str:
    if kind == "string" and pa.types.is_integer(given):
        return ": 007 and 7 are two texts"
    return ""
