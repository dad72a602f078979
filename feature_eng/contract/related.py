"""Tables of events beside the impressions: what labels and behaviour features read, and how their times are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from feature_eng.contract.columns import Columns, Time
from feature_eng.contract.features import Behaviour, History
from feature_eng.contract.source import Source
from foundation.settings import suggestion


def other_tables(feature: Behaviour, main: str) -> tuple[str, ...]:
    """Tables that a behaviour feature reads beside the impressions."""
    return tuple(table for table in feature.table or () if table != main)


def tables_and_times(parts: Mapping[str, Any]) -> dict[str, Time | None]:
    """Table -> how its times are read, those of labels first; ``None`` where the contract says nothing of it."""
    columns: Columns | None = parts.get("columns")
    found: dict[str, Time | None] = {}
    for _, table, time in _named_times(parts):
        found[table] = found.get(table) or time
    default = columns.time_reading if columns else None
    return {table: time or default for table, time in found.items()}


def related_faults(parts: Mapping[str, Any]) -> Iterator[str]:
    """Faults of what features and labels say of these tables."""
    source: Source | None = parts.get("source")
    if source is None:
        return
    known: dict[str, Time] = {}
    for where, table, time in _named_times(parts):
        if time is not None and known.setdefault(table, time) != time:
            both = f"{known[table].column!r} and {time.column!r}"
            yield f"{where}.time: {table!r} has two time columns, or two ways to read one: {both}"
    tables = list(source.table_names)
    for name, feature in parts.get("features", {}).items():
        if not isinstance(feature, Behaviour) or feature.table is None:
            if isinstance(feature, Behaviour) and feature.time_given is not None:
                yield f"features.{name}.time: goes with 'table'; impressions have columns.time"
            continue
        where = f"features.{name}.table"
        main = source.main_table
        for table in dict.fromkeys(feature.table):
            if feature.table.count(table) > 1:
                yield f"{where}: names {table!r} twice"
            if table not in tables and table != main:
                expected = f"expected one of {', '.join(tables)}" if tables else "source.tables lists none"
                yield f"{where}: no table is called {table!r}; {expected}{suggestion(table, tables)}"
        others = other_tables(feature, main)
        if feature.time_given is not None and len(others) != 1:
            yield (
                f"features.{name}.time: is of one table beside the impressions, and 'table' names {len(others)}; "
                "expected features of each with its 'time', or columns renamed in source.tables"
            )
        if isinstance(feature, History) and feature.when is not None and main not in feature.table:
            yield (
                f"features.{name}.when: labels are of impressions; expected none, or {main!r} among 'table' "
                f"beside {', '.join(map(repr, others))}"
            )


def _named_times(parts: Mapping[str, Any]) -> Iterator[tuple[str, str, Time | None]]:
    """Where a table is named, the table, and how its times are read, where that is said."""
    for name, task in parts.get("tasks", {}).items():
        if task.table is not None:
            yield f"tasks.{name}", task.table, task.time_reading
    source: Source | None = parts.get("source")
    if source is None or not parts.get("behaviour", True):
        return
    for name, feature in parts.get("features", {}).items():
        if isinstance(feature, Behaviour):
            others = other_tables(feature, source.main_table)
            for table in others:
                yield f"features.{name}", table, feature.time_reading if len(others) == 1 else None
