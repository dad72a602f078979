"""The sections of a data contract: source, columns, scenario, tasks, features, split."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from foundation.settings import Settings

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
        if value is None:
            return False
        number = to_number(value)
        if self.range is not None:
            low, high = self.range
            return number is not None and (low is None or number >= low) and (high is None or number <= high)
        return any(
            str(value) == wanted if isinstance(wanted, str) else number is not None and number == wanted
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
