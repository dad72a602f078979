"""How single values of a contract and of raw data are read: numbers, lengths of time."""

from __future__ import annotations

import math
import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field

# Plain decimal notation; Java reads this pattern the same way.
NUMBER_PATTERN = r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?"
_NUMBER = re.compile(NUMBER_PATTERN, re.ASCII)
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_DURATION = re.compile(r"(\d+)\s*([smhd]?)", re.ASCII)
_ISO = re.compile(r"\d{4}-\d{2}-\d{2}(?P<time>[T ].+)?", re.ASCII)
EXACT_DOUBLE = 2.0**53
"""Whole numbers below it are exact in a double; the next one may stand for its neighbour."""
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

    Whole text is read as such: by way of a double, ids above 2^53 would collide. So would those that were doubles
    before they were text, such as 1.2345678901234568e+18, which are none.
    """
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip(" ")):
        return int(value.strip(" "))
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else None
    number = to_number(value)
    is_exact = number is not None and number.is_integer() and abs(number) < EXACT_DOUBLE
    return int(number) if number is not None and is_exact else None


def as_seconds(value: object) -> int | None:
    """A length of time in seconds, from a whole number or ``30m``, ``24h``, ``7d``; ``None`` for other text."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        return int(match[1]) * _UNIT_SECONDS[match[2]] if match else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def to_instant(text: str, zone: str = "UTC", *, is_end: bool = False) -> int:
    """Seconds since the epoch of a date or a date with a time of day, in ISO notation.

    Args:
        text: A date stands for its first second, or as an end for its last one.
        zone: IANA name of the zone that a text without an offset is in.
        is_end: Whether a date stands for its last second.

    Raises:
        ValueError: The text is neither.
    """
    match = _ISO.fullmatch(text.strip())
    try:
        moment = datetime.fromisoformat(match[0] if match else "")
    except ValueError:
        raise ValueError(f"{text!r} is not a date; expected 2022-04-08, or 2022-04-08T12:30:00") from None
    if match and match["time"] is None and is_end:
        # The next midnight of the zone, whatever the length of this day.
        moment = datetime.combine(moment.date() + timedelta(days=1), time())
        return int(moment.replace(tzinfo=ZoneInfo(zone)).timestamp()) - 1
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=ZoneInfo(zone))
    return math.floor(moment.timestamp())


def _seconds(value: object) -> object:
    if isinstance(value, str) and as_seconds(value) is None:
        raise ValueError(f"{value!r} is not a length of time; expected seconds or '30m', '24h', '7d'")
    return as_seconds(value) if isinstance(value, str) else value


def _iso(value: object) -> object:
    # YAML reads an unquoted date as one.
    text = value.isoformat() if isinstance(value, date) else value
    if not isinstance(text, str):
        raise ValueError(f"{value!r} is not a date; expected 2022-04-08, or 2022-04-08T12:30:00")
    to_instant(text)
    return text


Seconds = Annotated[int, Field(gt=0), BeforeValidator(_seconds)]
Positive = Annotated[int, Field(ge=1)]
IsoDate = Annotated[str, BeforeValidator(_iso)]
"""A date, or a date with a time of day, as text."""
