"""The sections ``columns`` and ``scenario`` of a contract: columns that have a role."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, model_validator

from feature_eng.contract.section import Section
from feature_eng.contract.values import to_boolean, to_number
from foundation.settings import ConfigError


class Time(Section):
    """A column of times, and how to read it.

    Times and dates of the data's own types need no more than their column, nor do whole seconds since the
    epoch and ISO text.

    Args:
        column: The column.
        unit: Of a number since the epoch.
        format: Spark's pattern of a text or number such as 20240115: ``yyyyMMdd``.
        zone: Time zone of text, dates and times that name none, such as ``Asia/Shanghai``; UTC where no time of a
            contract has one, and else every such time needs its own.
        dates: Of a column of dates alone: rows are of their day's last second (``end``), as what came about in its
            course was not known before, or of its first (``start``), as is what was there from midnight on.
    """

    later: ClassVar[frozenset[str]] = frozenset({"dates"})

    column: str
    unit: Literal["s", "ms", "us", "ns"] | None = None
    format: Annotated[str, Field(min_length=1)] | None = None
    zone: str | None = None
    dates: Literal["start", "end"] | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Time:
        if self.unit and (self.format or self.zone):
            raise ValueError("a number with a 'unit' has no 'format' and no 'zone'")
        faults = [f"format: {self.format!r} {fault}" for fault in _format_faults(self.format or "yyyy")]
        if self.zone is not None:
            try:
                ZoneInfo(self.zone)
            except (KeyError, ValueError, OSError):
                faults.append(f"zone: {self.zone!r} is no time zone; expected one such as 'Asia/Shanghai'")
        if faults:
            raise ConfigError(faults)
        return self


def _format_faults(pattern: str) -> Iterator[str]:
    """What Spark reads without a word, and as other times than were meant."""
    # What is quoted stands for itself; it keeps its length, so that a letter keeps its place.
    letters = re.sub("'[^']*'", lambda literal: "'" * len(literal[0]), pattern)
    if not re.search("[yu]", letters):
        yield "names no year; expected a pattern such as 'yyyy-MM-dd'"
    meant, faults = letters, []
    is_minute_alone = "m" in letters and not re.search("[HhKk]", letters)
    if ("d" in letters or is_minute_alone) and not re.search("[MLD]", letters):
        faults.append("names no month: mm is minutes, MM the month")
        # Minutes that follow an hour are meant.
        meant = re.sub(
            "[HhKk][^A-Za-z]*m+|m+", lambda run: run[0].upper() if run[0][0] == "m" else run[0], meant
        )
    if re.search("[hK]", letters) and "a" not in letters:
        faults.append("names an hour of twelve and not which half of the day: expected HH, or hh with a")
        meant = re.sub("[hK]", "H", meant)
    meant = "".join(own if mark == "'" else mark for own, mark in zip(pattern, meant, strict=True))
    is_sound = meant != pattern and not any(_format_faults(meant))
    for fault in faults:
        yield fault + (f"; did you mean {meant!r}?" if is_sound else "")


class Timed:
    """Mix-in of sections with a column of times, ``time``: its name, or how to read it.

    The field itself is each section's own: a contract's fingerprint depends on its place there.
    """

    if TYPE_CHECKING:
        time_given: str | Time | None

    @property
    def time_reading(self) -> Time | None:
        """How to read the column of times, where one is named."""
        given = self.time_given
        return Time(column=given) if isinstance(given, str) else given

    @property
    def time(self) -> str | None:
        """The column of times, where one is named."""
        reading = self.time_reading
        return reading.column if reading else None


class Columns(Timed, Section):
    """Raw columns of the impression table that have a role.

    Args:
        key: Identifies one example; a repeated key is a reject. Left out: every row is an example, and its
            id is made of its content and of its number among rows of equal content.
        user: Whose behaviour history it is; only what needs one asks for it.
        item: What was shown; only what needs one asks for it.
        time: When: a column's name, or how to read the column.
        position: The row's place in the raw file, which the user-disjoint split needs.
        list: Whose rows of equal value were shown together, a request or a page: evaluation then judges the
            order in each list too.
    """

    later: ClassVar[frozenset[str]] = frozenset({"list"})

    key: tuple[str, ...] = ()
    user: str | None = None
    item: str | None = None
    time_given: str | Time | None = Field(default=None, alias="time")
    position: str | None = None
    list: str | None = None


class ScenarioValues(Section):
    """Raw values that make one scenario: an inclusive range (``null`` = open end), or a list."""

    range: tuple[float | None, float | None] | None = None
    one_of: Annotated[tuple[bool | int | float | str, ...], Field(min_length=1)] | None = Field(
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
        """Whether a raw value belongs to this scenario; numbers compare as numbers, text as text.

        ``true`` and ``false``, however they are written, are also the values 1 and 0 of a column of booleans.
        """
        if value is None:
            return False
        number = to_number(value)
        if self.range is not None:
            low, high = self.range
            return number is not None and (low is None or number >= low) and (high is None or number <= high)
        return any(_equals(value, number, wanted) for wanted in self.one_of or ())


def _equals(value: object, number: float | None, wanted: bool | int | float | str) -> bool:
    truth = to_boolean(wanted)
    if truth is not None and (to_boolean(value) is truth or number == float(truth)):
        return True
    if isinstance(wanted, str):
        return str(value) == wanted
    return not isinstance(wanted, bool) and number is not None and number == wanted


class Scenario(Section):
    """The column that tells scenarios apart; the order of ``values`` is the order of scenario_index."""

    column: str
    values: Annotated[dict[str, ScenarioValues], Field(min_length=1)]
