"""How single values of a contract and of raw data are read: numbers, lengths of time."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, Field

# Plain decimal notation; Java reads this pattern the same way.
NUMBER_PATTERN = r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?"
_NUMBER = re.compile(NUMBER_PATTERN, re.ASCII)
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_DURATION = re.compile(r"(\d+)\s*([smhd]?)", re.ASCII)
_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def to_number(value: object) -> float | None:
    """Read a raw value as a number; ``None`` when it is not a finite one.

    The Spark side reads numbers by the same rule (plain decimal notation, blanks around
    it allowed), so that a value means the same in training and in serving.
    """
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value.strip(" ")):
            return None
        value = value.strip(" ")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def to_boolean(value: object) -> bool | None:
    """Read a raw value as a truth value: a boolean, or the words true and false; ``None`` for others."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip(" ").lower())
    return None


def to_integer(value: object) -> int | None:
    """Read a raw value as a whole number, of any size; ``None`` when it is none.

    Whole text is read as such: by way of a double, ids above 2^53 would collide.
    """
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip(" ")):
        return int(value.strip(" "))
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else None
    number = to_number(value)
    return int(number) if number is not None and number.is_integer() else None


def _seconds(value: object) -> object:
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match:
        return int(match[1]) * _UNIT_SECONDS[match[2]]
    if isinstance(value, str):
        raise ValueError(f"{value!r} is not a length of time; expected seconds or '30m', '24h', '7d'")
    return value


Seconds = Annotated[int, Field(gt=0), BeforeValidator(_seconds)]
Positive = Annotated[int, Field(ge=1)]
