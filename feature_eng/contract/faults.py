"""Faults between the parts of a contract, which no part can see alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from feature_eng.contract.columns import Columns, Scenario, ScenarioValues
from feature_eng.contract.features import Behaviour, Categorical, Feature, History, Rate
from feature_eng.contract.label_faults import label_faults
from feature_eng.contract.names import alike, stored_name
from feature_eng.contract.related import related_faults
from feature_eng.contract.six_scenarios import SixScenarios
from feature_eng.contract.source import Source
from feature_eng.contract.split import Split
from foundation.settings import ConfigError, suggestion

ROW_KEY = "row_key"
"""Column that identifies an example where the contract names no key."""
RESERVED_COLUMNS = frozenset(
    {"row_id", ROW_KEY, "scenario", "scenario_index", "split", "reason", "is_mature", "row_weight", "on_date"}
)
RESERVED_PREFIXES = ("label__", "known_at__", "joined__")

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_SCENARIO_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class ContractError(ConfigError):
    """A contract that cannot be used, or data that are not what the contract says."""


def cross_faults(parts: Mapping[str, Any], raw: Mapping[str, Any]) -> Iterator[str]:
    """Faults between parts; names are looked up in ``raw``, so that a faulty task still counts as named."""
    task_names = [str(name) for name in raw["tasks"]] if isinstance(raw.get("tasks"), Mapping) else []
    columns: Columns | None = parts.get("columns")
    yield from _name_faults(parts)
    yield from _scenario_faults(parts.get("scenario"))
    yield from _table_faults(parts)
    features: Mapping[str, Feature] = parts.get("features", {})
    # A feature that cannot be read may be the very one a history shares.
    all_readable = len(features) == len(raw.get("features") or ())
    for name, feature in features.items():
        referred = {"when": feature.when} if isinstance(feature, History) else {}
        referred |= {"task": feature.task} if isinstance(feature, Rate) else {}
        for key, task in referred.items():
            if task is not None and task not in task_names:
                expected = ", ".join(task_names)
                hint = suggestion(task, task_names)
                yield f"features.{name}.{key}: no task is called {task!r}; expected one of {expected}{hint}"
        if not isinstance(feature, History) or columns is None or not all_readable:
            continue
        if feature.of == "item" and columns.item is None:
            continue
        if not shared_feature(feature, columns.item, features):
            wanted = f"of column '{columns.item}'" if feature.of == "item" else f"called '{feature.of}'"
            yield f"features.{name}.of: a history shares a categorical feature's vocabulary; none is {wanted}"
    if columns and columns.time is None:
        for reason in time_reasons(parts):
            yield f"columns.time: is missing; needed by {reason}"
    if columns:
        yield from _role_faults(columns, parts)
    split: Split | None = parts.get("split")
    if columns and split and split.method == "user_disjoint" and columns.position is None:
        yield "columns.position: is missing; needed by split.method 'user_disjoint'"
    yield from label_faults(parts, task_names)
    yield from related_faults(parts)


def _role_faults(columns: Columns, parts: Mapping[str, Any]) -> Iterator[str]:
    """Users and items may be left out where nothing needs them."""
    needed: list[tuple[str, str]] = []
    split: Split | None = parts.get("split")
    if split and split.method == "user_disjoint":
        needed += [(role, "split.method 'user_disjoint'") for role in ("user", "item")]
    for name, feature in parts.get("features", {}).items():
        if not (parts.get("behaviour", True) and isinstance(feature, Behaviour)):
            continue
        if feature.by in ("user", "item"):
            needed.append((feature.by, f"features.{name} ({feature.kind})"))
        if isinstance(feature, History) and feature.of == "item":
            needed.append(("item", f"features.{name} ({feature.kind})"))
    for role, reason in needed:
        if getattr(columns, role) is None:
            yield f"columns.{role}: is missing; needed by {reason}"


def _name_faults(parts: Mapping[str, Any]) -> Iterator[str]:
    plain = "expected small letters, digits and single underscores, a letter first"
    for section in ("tasks", "features"):
        for name in parts.get(section, {}):
            if not _NAME.fullmatch(name):
                yield f"{section}.{name}: is not usable as a name; {plain}"
    scenario: Scenario | None = parts.get("scenario")
    for name in scenario.values if scenario else ():
        if not _SCENARIO_NAME.fullmatch(name):
            yield f"scenario.values.{name}: is not usable as a name; expected letters, digits, '_' and '-'"
    raw = _named_columns(parts)
    for where, column in raw:
        stored = stored_name(column).lower()
        if stored in RESERVED_COLUMNS or stored.startswith(RESERVED_PREFIXES):
            yield f"{where}: the column name {column!r} is taken by the product; rename it in the source"
    for one, other in alike(column for _, column in raw):
        yield (
            f"columns {one!r} and {other!r} differ by case alone, which no Delta table can hold; "
            "give one of them another name with 'rename' or 'select' in source.tables"
        )
    for name, feature in parts.get("features", {}).items():
        if name in RESERVED_COLUMNS:
            yield f"features.{name}: the name is taken by the product; expected another"
        elif isinstance(feature, Behaviour):
            taken = {stored_name(column).lower() for _, column in raw} & set(feature.columns(name))
            if taken:
                yield (
                    f"features.{name}: a behaviour feature needs a name that no raw column has, and there is "
                    f"{', '.join(sorted(taken))}"
                )


def _named_columns(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    named: list[tuple[str, str | None]] = []
    columns: Columns | None = parts.get("columns")
    if columns:
        named += [("columns.key", name) for name in columns.key]
        named += [
            (f"columns.{role}", getattr(columns, role))
            for role in ("user", "item", "time", "position", "list")
        ]
    if parts.get("scenario"):
        named.append(("scenario.column", parts["scenario"].column))
    for section in ("tasks", "features"):
        for name, part in parts.get(section, {}).items():
            named.append((f"{section}.{name}.column", getattr(part, "column", None)))
            if isinstance(part, Behaviour) and part.by not in ("user", "item"):
                named.append((f"{section}.{name}.by", part.by))
    for name, task in parts.get("tasks", {}).items():
        named.append((f"tasks.{name}.known_after", task.known_after_column))
    named.append(("weight", parts.get("weight")))
    if parts.get("split"):
        named.append(("split.column", parts["split"].column))
    return [(where, column) for where, column in named if column is not None]


def _scenario_faults(scenario: Scenario | None) -> Iterator[str]:
    named = list(scenario.values.items()) if scenario else []
    for place, (name, values) in enumerate(named):
        for other, others in named[:place]:
            if _overlap(values, others):
                yield f"scenario.values.{name}: overlaps {other!r}; a value belongs to one scenario"


def _overlap(one: ScenarioValues, other: ScenarioValues) -> bool:
    if one.range and other.range:
        lows = [-math.inf if low is None else low for low in (one.range[0], other.range[0])]
        highs = [math.inf if high is None else high for high in (one.range[1], other.range[1])]
        return max(lows) <= min(highs)
    if one.range:
        one, other = other, one
    return any(other.matches(value) for value in one.one_of or ())


def _table_faults(parts: Mapping[str, Any]) -> Iterator[str]:
    source: Source | None = parts.get("source")
    if source is None:
        return
    tables = list(source.table_names)
    if source.reader == "tables" and not tables:
        yield "source.tables: is missing; expected the tables to read"
    if source.reader == "movielens" and source.tables:
        yield "source.tables: the reader 'movielens' knows its own files; expected no tables"
    if source.reader == "six_scenarios":
        yield from _made_log_faults(source, parts.get("scenario"))
    elif source.six_scenarios is not None:
        yield f"source.six_scenarios: the reader {source.reader!r} makes no log; expected reader: six_scenarios"
    if source.reader == "tables" and source.main is not None and source.main not in tables:
        yield f"source.main: no table is called {source.main!r}{suggestion(source.main, tables)}"
    yield from _join_faults(source, parts.get("columns"))
    for name, task in parts.get("tasks", {}).items():
        if task.table is None:
            continue
        where = f"tasks.{name}.table"
        if task.table not in tables:
            expected = f"expected one of {', '.join(tables)}" if tables else "source.tables lists none"
            yield f"{where}: no table is called {task.table!r}; {expected}{suggestion(task.table, tables)}"
        elif task.table == source.main_table:
            yield f"{where}: {task.table!r} holds the impressions; a label of the row itself takes 'column'"


def _join_faults(source: Source, columns: Columns | None) -> Iterator[str]:
    tables = list(source.table_names)
    for place, join in enumerate(source.join):
        where = f"source.join.{place}"
        if join.table not in tables:
            expected = f"expected one of {', '.join(tables)}" if tables else "source.tables lists none"
            yield f"{where}.table: no table is called {join.table!r}; {expected}{suggestion(join.table, tables)}"
        elif join.table == source.main_table:
            yield f"{where}.table: {join.table!r} holds the impressions; expected a side table"
        elif join.table in [earlier.table for earlier in source.join[:place]]:
            yield f"{where}.table: {join.table!r} is joined twice; list its file under a second name"
        if join.as_of is not None and columns is not None and columns.time is None:
            yield f"columns.time: is missing; needed by {where}.as_of"


def _made_log_faults(source: Source, scenario: Scenario | None) -> Iterator[str]:
    if source.tables:
        yield "source.tables: the reader 'six_scenarios' makes its tables; expected none"
    if source.main_table != "impressions":
        yield f"source.main: the made log's impressions are in 'impressions', not in {source.main_table!r}"
    made = (source.six_scenarios or SixScenarios()).scenarios
    if scenario is not None and scenario.column == "scenario_id":
        missing = [
            str(number)
            for number in range(1, made + 1)
            if not any(values.matches(number) for values in scenario.values.values())
        ]
        if missing:
            yield (
                f"scenario.values: of the {made} scenarios that source.six_scenarios makes, "
                f"{', '.join(missing)} are in none"
            )


def time_reasons(parts: Mapping[str, Any]) -> Iterator[str]:
    split: Split | None = parts.get("split")
    if split and split.method in ("time", "dates"):
        yield f"split.method '{split.method}'"
    for name, task in parts.get("tasks", {}).items():
        if task.table is not None:
            yield f"tasks.{name} (label from a table)"
        elif task.is_delayed:
            yield f"tasks.{name}.known_after"
    if parts.get("behaviour", True):
        for name, feature in parts.get("features", {}).items():
            if isinstance(feature, Behaviour):
                yield f"features.{name} ({feature.kind})"


def shared_feature(history: History, item: str | None, features: Mapping[str, Any]) -> str | None:
    for name, feature in features.items():
        is_meant = history.of == name or (history.of == "item" and getattr(feature, "column", None) == item)
        if isinstance(feature, Categorical) and is_meant:
            return name
    return None
