"""Dates: the days by which events and examples are kept, and those that a build is asked for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import reduce
from zoneinfo import ZoneInfo

from pyspark.sql import Column
from pyspark.sql import functions as F

from feature_eng.contract import to_instant

ON_DATE = "on_date"
"""Column by which tables are partitioned: the day of a row's time; null for a reject without a time."""
DAY_SECONDS = 86_400
_SPAN = re.compile(r"(\d{4}-\d{2}-\d{2})?(?:(:)(\d{4}-\d{2}-\d{2})?)?")


@dataclass(frozen=True)
class Dates:
    """A span of days, both ends included; ``None`` is an open end.

    Args:
        first: The first day.
        last: The last one.
        zone: IANA name of the zone that days are in.
    """

    first: date | None
    last: date | None
    zone: str = "UTC"

    @classmethod
    def of(cls, text: str, zone: str = "UTC") -> Dates:
        """Read ``2024-01-05``, ``2024-01-05:2024-01-07``, ``2024-01-05:``, ``:2024-01-07`` or ``:``.

        Raises:
            ValueError: The text is none of these, or ends before it begins.
        """
        match = _SPAN.fullmatch(text.strip())
        if match is None or not any(match.groups()):
            raise ValueError(f"{text!r} is no span of dates; expected 2024-01-05, or 2024-01-05:2024-01-07")
        try:
            first, last = (date.fromisoformat(part) if part else None for part in (match[1], match[3]))
        except ValueError as error:
            raise ValueError(f"{text!r} is no span of dates ({error})") from None
        if match[2] is None:
            last = first
        if first is not None and last is not None and last < first:
            raise ValueError(f"{text!r} ends before it begins")
        return cls(first, last, zone)

    @property
    def is_all(self) -> bool:
        """Whether both ends are open."""
        return self.first is None and self.last is None

    @property
    def seconds(self) -> tuple[int | None, int | None]:
        """The first and the last second since the epoch."""
        first = None if self.first is None else to_instant(self.first.isoformat(), self.zone)
        return first, None if self.last is None else to_instant(self.last.isoformat(), self.zone, is_end=True)

    def has(self, day: date) -> bool:
        """Whether a day is one of these."""
        return (self.first is None or self.first <= day) and (self.last is None or day <= self.last)

    def lack(self, second: Column) -> Column:
        """Whether seconds since the epoch lie on other days; no second lies on none."""
        first, last = self.seconds
        ends = [] if first is None else [second < F.lit(first)]
        ends += [] if last is None else [second > F.lit(last)]
        return F.coalesce(reduce(Column.__or__, ends, F.lit(False)), F.lit(False))

    def condition(self) -> str:
        """The partitions of these days, in SQL."""
        parts = [
            f"{ON_DATE} {sign} DATE'{end}'"
            for sign, end in ((">=", self.first), ("<=", self.last))
            if end is not None
        ]
        return " AND ".join(parts) or f"{ON_DATE} IS NOT NULL"

    def __str__(self) -> str:
        ends = [end.isoformat() if end else "" for end in (self.first, self.last)]
        return ends[0] if ends[0] == ends[1] and ends[0] else ":".join(ends)


def date_of(second: Column, zone: str) -> Column:
    """The day of seconds since the epoch, whatever zone the session is in."""
    if zone == "UTC":
        return F.date_add(F.lit(date(1970, 1, 1)), F.floor(second / DAY_SECONDS).cast("int"))
    moment = F.expr("TIMESTAMP_NTZ'1970-01-01 00:00:00'") + F.make_dt_interval(secs=second)
    return F.convert_timezone(F.lit("UTC"), F.lit(zone), moment).cast("date")


def last_second(second: Column, zone: str) -> Column:
    """The last second of the day that a second lies in."""
    next_day = F.date_add(date_of(second, zone), 1).cast("string")
    return F.unix_seconds(F.concat(next_day, F.lit(f"T00:00:00 {zone}")).try_cast("timestamp")) - 1


def is_one_of(days: Collection[date]) -> Column:
    """Whether a row lies in one of these partitions."""
    return F.expr(condition_of(days))


def condition_of(days: Collection[date]) -> str:
    """The partitions of some days, in SQL."""
    listed = ", ".join(f"DATE'{day.isoformat()}'" for day in sorted(days))
    return f"{ON_DATE} IN ({listed})" if listed else "false"


def listed(days: Collection[date]) -> str:
    """How a line on some days goes on: ``, from 2024-01-05 to 2024-01-07``."""
    ordered = sorted(days)
    if not ordered:
        return ""
    return f": {ordered[0]}" if len(ordered) == 1 else f", from {ordered[0]} to {ordered[-1]}"


def around(days: Iterable[date], before: int, after: int, zone: str) -> set[date]:
    """Days, and those on which so many seconds before them begin, or after them end."""
    found: set[date] = set()
    for day in days:
        first = _day_of(to_instant(day.isoformat(), zone) - before, zone)
        last = _day_of(to_instant(day.isoformat(), zone, is_end=True) + after, zone)
        found |= {first + timedelta(days=place) for place in range((last - first).days + 1)}
    return found


def _day_of(second: int, zone: str) -> date:
    return datetime.fromtimestamp(second, ZoneInfo(zone)).date()
