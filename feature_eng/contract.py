"""The data contract: what a raw log means, as data.

A contract names the scenario column and its values, the label rules, the features and
the split. A new data set is a new contract, not new code. Reading one needs no Spark.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, field_validator, model_validator

from feature_eng.settings import ConfigError, Settings, faults_of, read_yaml, suggestion, with_overrides

SPLITS: tuple[str, str, str] = ("train", "validation", "test")
RESERVED_COLUMNS = frozenset({"row_id", "scenario", "scenario_index", "split", "reason"})
RESERVED_PREFIXES = ("label__", "known_at__")

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_SCENARIO_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_DURATION = re.compile(r"(\d+)\s*([smhd]?)")
_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class ContractError(ConfigError):
    """A contract that cannot be used, or data that are not what the contract says."""


def to_number(value: object) -> float | None:
    """Read a raw value as a number; ``None`` when it is not a finite one.

    The Spark side reads numbers by the same rule (plain decimal notation, blanks around
    it allowed), so that a value means the same in training and in serving.
    """
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        return float(value.strip(" ")) if _NUMBER.fullmatch(value.strip(" ")) else None
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


class Table(Settings):
    """One raw table of a generic log.

    Args:
        path: File or folder, relative to the source folder or the current directory.
        format: How it is written; CSV files have a header line.
        types: Types of columns that the format does not carry (CSV columns are strings otherwise).
        rename: Raw name -> name used in the contract.
    """

    path: str
    format: Literal["csv", "json", "parquet"]
    types: dict[str, Literal["integer", "number", "string"]] = Field(default_factory=dict)
    rename: dict[str, str] = Field(default_factory=dict)


class Source(Settings):
    """Which reader gives the raw tables, and which of them holds the impressions.

    Args:
        reader: ``movielens`` knows its files; ``tables`` reads what ``tables`` lists.
        tables: Name -> table, for the reader ``tables``.
        main: Name of the impression table; the first listed when left out.
    """

    reader: Literal["movielens", "tables"]
    tables: dict[str, Table] = Field(default_factory=dict)
    main: str | None = None

    @property
    def main_table(self) -> str:
        """Name of the table whose rows are the impressions."""
        return self.main or next(iter(self.tables), "impressions")


class Columns(Settings):
    """Raw columns of the impression table that have a role.

    Args:
        key: Identifies one example; a repeated key is a reject.
        user: Whose behaviour history it is.
        item: What was shown.
        time: When; whole seconds since the epoch, or ISO text.
        position: The row's place in the raw file, which the user-disjoint split needs.
    """

    key: Annotated[tuple[str, ...], Field(min_length=1)]
    user: str
    item: str
    time: str | None = None
    position: str | None = None


class ScenarioValues(Settings):
    """Raw values that make one scenario: an inclusive range (``null`` = open end), or a list."""

    range: tuple[float | None, float | None] | None = None
    one_of: Annotated[tuple[int | float | str, ...], Field(min_length=1)] | None = Field(
        default=None, alias="in"
    )

    @model_validator(mode="after")
    def _exactly_one_form(self) -> ScenarioValues:
        if (self.range is None) == (self.one_of is None):
            raise ValueError("expected exactly one of 'range: [low, high]' and 'in: [values]'")
        if self.range is not None:
            low, high = self.range
            if low is not None and high is not None and low > high:
                raise ValueError(f"range [{low:g}, {high:g}] is empty; expected low <= high")
        return self

    def matches(self, value: object) -> bool:
        """Whether a raw value belongs to this scenario; numbers compare as numbers, text as text."""
        number = to_number(value)
        if self.range is not None:
            low, high = self.range
            return number is not None and (low is None or number >= low) and (high is None or number <= high)
        return any(
            value == wanted if isinstance(wanted, str) else number is not None and number == wanted
            for wanted in self.one_of or ()
        )


class Scenario(Settings):
    """The column that tells scenarios apart; the order of ``values`` is the order of scenario_index."""

    column: str
    values: Annotated[dict[str, ScenarioValues], Field(min_length=1)]


class Task(Settings):
    """How a label comes about: by a value of the row itself, or by a later row of another table.

    Args:
        column: Column of the impression; with exactly one of ``greater_than``, ``at_least``, ``equals``.
        table: Table in which a row with equal ``join_on`` columns makes the label 1.
        join_on: Columns by which impression and later row belong together.
        within: Attribution window after the impression, both ends included.
        time: The table's time column; the impression's time column name when left out.
    """

    column: str | None = None
    greater_than: float | None = None
    at_least: float | None = None
    equals: int | float | str | None = None
    table: str | None = None
    join_on: tuple[str, ...] = ()
    within: Seconds | None = None
    time: str | None = None

    @model_validator(mode="after")
    def _exactly_one_form(self) -> Task:
        rules = [rule for rule in (self.greater_than, self.at_least, self.equals) if rule is not None]
        if (self.column is None) == (self.table is None):
            raise ValueError("expected exactly one of 'column' and 'table'")
        if self.column is not None:
            if len(rules) != 1:
                raise ValueError("expected exactly one of 'greater_than', 'at_least', 'equals'")
            if self.join_on or self.within is not None or self.time is not None:
                raise ValueError("'join_on', 'within' and 'time' go with 'table', not with 'column'")
        else:
            if rules:
                raise ValueError("'greater_than', 'at_least', 'equals' go with 'column', not with 'table'")
            if not self.join_on or self.within is None:
                raise ValueError("a label from a table needs 'join_on' and 'within'")
        return self

    @property
    def is_delayed(self) -> bool:
        """Whether the label is known only some time after the impression."""
        return self.table is not None


class Categorical(Settings):
    """One raw value -> one index: by a vocabulary fitted on train, or by hash when ``buckets`` is given."""

    kind: Literal["categorical"]
    column: str
    min_count: Positive = 1
    buckets: Positive | None = None


class MultiValued(Settings):
    """Text of several values -> ``slots`` indices, the first ones kept."""

    kind: Literal["multi_valued"]
    column: str
    separator: Annotated[str, Field(min_length=1)] = "|"
    slots: Positive
    min_count: Positive = 1
    buckets: Positive | None = None


class Numeric(Settings):
    """A number, standardised on train (after ``log1p`` when so asked)."""

    kind: Literal["numeric"]
    column: str
    transform: Literal["none", "log1p"] = "none"


class Bucketed(Settings):
    """A number -> the index of its bucket between quantiles of train."""

    kind: Literal["bucketed"]
    column: str
    num_buckets: Annotated[int, Field(ge=2)]


class History(Settings):
    """The user's last items strictly before the row's time, newest first.

    Args:
        of: ``item``, or the categorical feature whose column and vocabulary it shares.
        last: How many are kept.
        when: Only those whose label of this task was 1, and known before the row's time.
    """

    kind: Literal["history"]
    of: str = "item"
    last: Positive
    when: str | None = None


class Count(Settings):
    """How many rows the user (or the item) had strictly before the row's time."""

    kind: Literal["count"]
    by: Literal["user", "item"] = "user"


class Rate(Settings):
    """Share of label 1 among labels known strictly before the row's time.

    Smoothed as ``(positives + prior * prior_rows) / (labels + prior_rows)``. The prior is
    a constant of the contract: one computed from data would tell of the future.
    """

    kind: Literal["rate"]
    task: str
    by: Literal["user", "item"] = "user"
    prior: Annotated[float, Field(ge=0, le=1)] = 0.5
    prior_rows: Annotated[float, Field(gt=0)] = 10.0


Behaviour = History | Count | Rate
Raw = Categorical | MultiValued | Numeric | Bucketed
Feature = Raw | Behaviour


class Split(Settings):
    """How examples are parted into train, validation and test; fractions in that order."""

    method: Literal["time", "random", "user_disjoint"]
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0

    @field_validator("fractions")
    @classmethod
    def _sum_to_one(cls, fractions: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(fractions) < 0 or fractions[0] == 0 or abs(sum(fractions) - 1) > 1e-9:
            raise ValueError(f"{list(fractions)} are not shares; expected three that sum to 1, train above 0")
        return fractions


class Contract(Settings):
    """A checked data contract. Orders of scenarios, tasks and features are the orders everywhere.

    Args:
        behaviour: ``False`` leaves out history, count and rate features as a group.
    """

    name: str
    source: Source
    columns: Columns
    scenario: Scenario
    tasks: Annotated[dict[str, Task], Field(min_length=1)]
    all_features: dict[str, Annotated[Feature, Field(discriminator="kind")]] = Field(
        alias="features", min_length=1
    )
    behaviour: bool = True
    split: Split

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Contract:
        parts = {alias: getattr(self, name) for name, alias in _field_aliases()}
        faults = list(_cross_faults(parts, parts))
        if faults:
            raise ContractError(faults)
        return self

    @property
    def scenario_names(self) -> tuple[str, ...]:
        """Scenario names; a name's place is its scenario_index."""
        return tuple(self.scenario.values)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Task names in label and head order."""
        return tuple(self.tasks)

    @cached_property
    def features(self) -> Mapping[str, Feature]:
        """Features in use, by name: all, or all but behaviour when that is switched off."""
        return {
            name: feature
            for name, feature in self.all_features.items()
            if self.behaviour or not isinstance(feature, Behaviour)
        }

    @property
    def behaviour_features(self) -> Mapping[str, Behaviour]:
        """The features in use that are computed from what came before."""
        return {name: feature for name, feature in self.features.items() if isinstance(feature, Behaviour)}

    @property
    def feature_columns(self) -> tuple[str, ...]:
        """Raw columns that features in use read, each once, in feature order."""
        columns = (feature.column for feature in self.features.values() if not isinstance(feature, Behaviour))
        return tuple(dict.fromkeys(columns))

    @property
    def raw_columns(self) -> tuple[str, ...]:
        """Raw columns of the impression table that examples carry, each once."""
        columns = self.columns
        roles = (
            *columns.key,
            columns.user,
            columns.item,
            columns.time,
            columns.position,
            self.scenario.column,
        )
        return tuple(dict.fromkeys(name for name in (*roles, *self.feature_columns) if name is not None))

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything the contract says, in canonical JSON."""
        content = self.model_dump(mode="json", by_alias=True)
        # Order carries meaning for scenarios, tasks and features, so keys are not sorted.
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    @property
    def time_reasons(self) -> tuple[str, ...]:
        """What needs a time column, by name; empty when nothing does."""
        parts = {alias: getattr(self, name) for name, alias in _field_aliases()}
        return tuple(_time_reasons(parts))

    @property
    def requires_time(self) -> bool:
        """Whether anything in the contract needs to know when a row happened."""
        return bool(self.time_reasons)

    def scenario_index(self, value: object) -> int | None:
        """Index of the scenario a raw value belongs to, ``None`` for an unknown one."""
        for index, values in enumerate(self.scenario.values.values()):
            if values.matches(value):
                return index
        return None

    def shared_feature(self, history: History) -> str:
        """Name of the categorical feature whose column and vocabulary a history shares."""
        name = _shared_feature(history, self.columns.item, self.all_features)
        assert name is not None, "checked when the contract was read"
        return name

    def history_column(self, history: History) -> str:
        """Raw column a history collects."""
        feature = self.all_features[self.shared_feature(history)]
        assert isinstance(feature, Categorical)
        return feature.column


def load_contract(path: str | Path, overrides: Sequence[str] = ()) -> Contract:
    """Read and check a contract.

    Args:
        path: YAML file, see ``conf/contracts/movielens.yml``.
        overrides: ``"split.method=random"``, ``"behaviour=false"`` and the like.

    Raises:
        ContractError: Every fault, one line each.
    """
    try:
        mapping, faults = with_overrides(read_yaml(path), overrides)
    except ConfigError as error:
        raise ContractError(error.faults) from None
    try:
        contract = to_contract(mapping, str(path))
    except ContractError as error:
        raise ContractError(faults + error.faults) from None
    if faults:
        raise ContractError(faults)
    return contract


def to_contract(mapping: Mapping[str, Any], where: str = "contract") -> Contract:
    """Check a mapping of plain values as a contract.

    Raises:
        ContractError: Every fault, one line each, also those between parts of which some are faulty.
    """
    try:
        return Contract.model_validate(dict(mapping))
    except ValidationError as error:
        faults = faults_of(Contract, mapping, error, where)
        faults += [fault for fault in _cross_faults(_readable_parts(mapping), mapping) if fault not in faults]
        raise ContractError(faults) from None


def _field_aliases() -> list[tuple[str, str]]:
    return [(name, field.alias or name) for name, field in Contract.model_fields.items()]


def _readable_parts(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a faulty contract that can be read, so that faults between them are found too."""
    sections: dict[str, Any] = {
        "source": Source, "columns": Columns, "scenario": Scenario, "split": Split, "behaviour": bool,
        "tasks": Task, "features": Annotated[Feature, Field(discriminator="kind")],
    }  # fmt: skip
    parts: dict[str, Any] = {}
    for name, schema in sections.items():
        given = mapping.get(name)
        adapter: TypeAdapter[Any] = TypeAdapter(schema)
        if name in ("tasks", "features"):
            entries = given.items() if isinstance(given, Mapping) else ()
            parts[name] = {
                key: part for key, value in entries if (part := _readable(adapter, value)) is not None
            }
        elif (part := _readable(adapter, given)) is not None:
            parts[name] = part
    return parts


def _readable(adapter: TypeAdapter[Any], value: Any) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError:
        return None


def _cross_faults(parts: Mapping[str, Any], raw: Mapping[str, Any]) -> Iterator[str]:
    """Faults between parts; names are looked up in ``raw``, so that a faulty task still counts as named."""
    task_names = [str(name) for name in raw["tasks"]] if isinstance(raw.get("tasks"), Mapping) else []
    columns: Columns | None = parts.get("columns")
    yield from _name_faults(parts)
    yield from _scenario_faults(parts.get("scenario"))
    yield from _table_faults(parts)
    features: Mapping[str, Feature] = parts.get("features", {})
    for name, feature in features.items():
        referred = {"when": feature.when} if isinstance(feature, History) else {}
        referred |= {"task": feature.task} if isinstance(feature, Rate) else {}
        for key, task in referred.items():
            if task is not None and task not in task_names:
                expected = ", ".join(task_names)
                hint = suggestion(task, task_names)
                yield f"features.{name}.{key}: no task is called {task!r}; expected one of {expected}{hint}"
        if isinstance(feature, History) and columns and not _shared_feature(feature, columns.item, features):
            wanted = f"of column '{columns.item}'" if feature.of == "item" else f"called '{feature.of}'"
            yield f"features.{name}.of: a history shares a categorical feature's vocabulary; none is {wanted}"
    if columns and columns.time is None:
        for reason in _time_reasons(parts):
            yield f"columns.time: is missing; needed by {reason}"
    split: Split | None = parts.get("split")
    if columns and split and split.method == "user_disjoint" and columns.position is None:
        yield "columns.position: is missing; needed by split.method 'user_disjoint'"


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
        if column in RESERVED_COLUMNS or column.startswith(RESERVED_PREFIXES):
            yield f"{where}: the column name {column!r} is taken by the product; rename it in the source"
    for name, feature in parts.get("features", {}).items():
        if name in RESERVED_COLUMNS:
            yield f"features.{name}: the name is taken by the product; expected another"
        elif isinstance(feature, Behaviour) and name in {column for _, column in raw}:
            yield f"features.{name}: a behaviour feature needs a name that no raw column has"


def _named_columns(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    named: list[tuple[str, str | None]] = []
    columns: Columns | None = parts.get("columns")
    if columns:
        named += [("columns.key", name) for name in columns.key]
        named += [
            (f"columns.{role}", getattr(columns, role)) for role in ("user", "item", "time", "position")
        ]
    if parts.get("scenario"):
        named.append(("scenario.column", parts["scenario"].column))
    for section in ("tasks", "features"):
        for name, part in parts.get(section, {}).items():
            named.append((f"{section}.{name}.column", getattr(part, "column", None)))
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
    tables = list(source.tables)
    if source.reader == "tables" and not tables:
        yield "source.tables: is missing; expected the tables to read"
    if source.reader == "movielens" and tables:
        yield "source.tables: the reader 'movielens' knows its own files; expected no tables"
    if source.reader == "tables" and source.main is not None and source.main not in tables:
        yield f"source.main: no table is called {source.main!r}{suggestion(source.main, tables)}"
    for name, task in parts.get("tasks", {}).items():
        if task.table is None:
            continue
        where = f"tasks.{name}.table"
        if task.table not in tables:
            expected = f"expected one of {', '.join(tables)}" if tables else "source.tables lists none"
            yield f"{where}: no table is called {task.table!r}; {expected}{suggestion(task.table, tables)}"
        elif task.table == source.main_table:
            yield f"{where}: {task.table!r} holds the impressions; a label of the row itself takes 'column'"


def _time_reasons(parts: Mapping[str, Any]) -> Iterator[str]:
    split: Split | None = parts.get("split")
    if split and split.method == "time":
        yield "split.method 'time'"
    for name, task in parts.get("tasks", {}).items():
        if task.is_delayed:
            yield f"tasks.{name} (label from a table)"
    if parts.get("behaviour", True):
        for name, feature in parts.get("features", {}).items():
            if isinstance(feature, Behaviour):
                yield f"features.{name} ({feature.kind})"


def _shared_feature(history: History, item: str, features: Mapping[str, Any]) -> str | None:
    for name, feature in features.items():
        is_meant = history.of == name or (history.of == "item" and getattr(feature, "column", None) == item)
        if isinstance(feature, Categorical) and is_meant:
            return name
    return None
