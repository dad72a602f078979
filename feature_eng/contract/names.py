"""Names of columns and tables: as the user's data have them, and as the product's tables store them.

Delta tables refuse some characters in the names of columns. The user's own names stand in
messages, in rejects and in what a served model takes; the tables of events and examples
store such characters as ``%`` and their code, as URLs do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

RELATED_EVENTS = "events_"
"""What stands before the name of a raw table beside the impressions, in that of the table that keeps its rows."""

# What Delta refuses; dots and backticks, which Spark reads as its own; and what codes begin with.
_STORED_AS_CODE = re.compile(r"[ ,;{}()=.`%\x00-\x1f]")


def stored_name(name: str) -> str:
    """A column's name in the product's tables; most names are stored as they are."""
    return _STORED_AS_CODE.sub(lambda found: f"%{ord(found[0]):02X}", name)


def quoted(name: str) -> str:
    """A column's exact name as SQL reads it, dots and all."""
    return "`" + name.replace("`", "``") + "`"


def as_key(name: str) -> str:
    """A column's name as a key of a contract, for messages."""
    return name if name.isidentifier() else f"'{name}'"


def alike(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ by case alone, which no Delta table can hold side by side."""
    seen: dict[str, str] = {}
    pairs = []
    for name in dict.fromkeys(names):
        other = seen.setdefault(name.lower(), name)
        if other != name:
            pairs.append((other, name))
    return pairs
