"""Tables beside the impressions whose times are dates alone: their rows would come before they came."""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from feature_eng.contract import Contract, ContractError, Time
from feature_eng.dates import date_of
from feature_eng.events.parting import Events
from feature_eng.events.times import as_written, to_seconds
from feature_eng.events.values import column, raw_column

_LOOKED_AT = 1_000
"""Rows of a table of events that are looked at."""
_FEW = 20
"""Fewer rows than these may all be of a day's first second by chance."""


def check_times(events: Events, contract: Contract) -> None:
    """Stop where a table's times are dates and the impressions' are not, and the contract does not say what they mean.

    A date is read as its day's first second. So behaviour features would see a row before it came, and a label's row
    would count for impressions of the day before alone.

    Args:
        events: What a build read.
        contract: What it is built by.

    Raises:
        ContractError: Names what reads such a table, and what makes a date the day's end.
    """
    _refuse(
        [
            f"{', '.join(readers)}: the rows of {table!r} are of a day's first second, as dates are read, and would "
            f"come before they came; expected times, or what a date means: {_choice('time', reading)}"
            for table, reading in contract.related_times.items()
            if (readers := _readers(table, contract))
            and reading.dates is None
            and _has_dates_alone(events.related[table], reading)
        ],
        events.impressions,
        contract,
    )


def check_side_times(raw: Mapping[str, DataFrame], impressions: DataFrame, contract: Contract) -> None:
    """The same of side tables with ``as_of``: what came about on a day would be given to rows of the hours before.

    All their rows are looked at, since those of a first load often are of one midnight, and later ones are not.

    Args:
        raw: The raw tables.
        impressions: As a build has stored them.
        contract: What it is built by.

    Raises:
        ContractError: Names the side table, and what makes a date the day's end, or its beginning.
    """
    faults = []
    for place, join in enumerate(contract.source.join):
        reading = join.as_of_time
        if reading is None or reading.dates is not None:
            continue
        rows = raw[join.table]
        at = to_seconds(raw_column(reading.column), rows.schema[reading.column].dataType, reading)
        found = rows.select(_is_first(at, reading).alias("first")).agg(
            F.count("first").alias("rows"), F.bool_and("first").alias("all")
        )
        counted = found.collect()[0]
        if counted["rows"] >= _FEW and counted["all"]:
            faults.append(
                f"source.join.{place}.as_of: the rows of {join.table!r} hold from a day's first second on, as dates "
                "are read, so that what came about on a day would be given to impressions of the hours before; "
                f"expected times, or what a date means: {_choice('as_of', reading)}"
            )
    _refuse(faults, impressions, contract)


def _choice(key: str, reading: Time) -> str:
    """What to write in a contract."""
    return f"{as_written(key, reading, dates='end')} for the day's end, or start for its beginning"


def _refuse(faults: list[str], impressions: DataFrame, contract: Contract) -> None:
    own = contract.columns.time_reading
    if faults and own is not None and not _has_dates_alone(impressions, own):
        raise ContractError(faults)


def _readers(table: str, contract: Contract) -> list[str]:
    tasks = [f"tasks.{name}" for name, task in contract.tasks.items() if task.table == table]
    return tasks + [f"features.{name}" for name in contract.readers_of(table)]


def _has_dates_alone(rows: DataFrame, reading: Time) -> bool:
    """Whether times seem to be dates: all that are looked at are the first second of a day."""
    is_first = _is_first(column(reading.column), reading)
    firsts = [row[0] for row in rows.select(is_first).limit(_LOOKED_AT).collect()]
    return len(firsts) >= _FEW and all(firsts)


def _is_first(second: Column, reading: Time) -> Column:
    """Whether a second is the first one of a day."""
    zone = reading.zone or "UTC"
    return date_of(second, zone) != date_of(second - 1, zone)
