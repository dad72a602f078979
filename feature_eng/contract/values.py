"""How single values of a contract and of raw data are read: numbers, lengths of time."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator, Field

# Plain decimal notation; Java reads this pattern the same way.
NUMBER_PATTERN = r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?"
_NUMBER = re.compile(NUMBER_PATTERN, re.ASCII)
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


def _seconds(value: object) -> object:
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match:
        return int(match[1]) * _UNIT_SECONDS[match[2]]
    if isinstance(value, str):
        raise ValueError(f"{value!r} is not a length of time; expected seconds or '30m', '24h', '7d'")
    return value


Seconds = Annotated[int, Field(gt=0), BeforeValidator(_seconds)]
Positive = Annotated[int, Field(ge=1)]
