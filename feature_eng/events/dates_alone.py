"""Tables beside the impressions whose times are dates alone: their rows would come before they came."""

from __future__ import annotations

from pyspark.sql import DataFrame

from feature_eng.contract import Contract, ContractError, Time
from feature_eng.dates import date_of
from feature_eng.events.parting import Events
from feature_eng.events.values import column

_LOOKED_AT = 1_000
"""Rows of a table that are looked at."""
_FEW = 20
"""Fewer rows than these may all be of a day's first second by chance."""


def check_times(events: Events, contract: Contract) -> None:
    """Stop where a table's times are dates and the impressions' are not.

    A date is read as its day's first second. So behaviour features would see a row before it came, and a label's row
    would count for impressions of the day before alone.

    Args:
        events: What a build read.
        contract: What it is built by.

    Raises:
        ContractError: Names what reads such a table, and what makes a date the day's end.
    """
    faults = [
        f"{', '.join(readers)}: the rows of {table!r} are of a day's first second, as dates are read, and would come "
        f"before they came; expected times, or the day's end, as in source.tables.{table}.select: "
        f"{{{reading.column}: \"concat({reading.column}, ' 23:59:59')\"}}"
        for table, reading in contract.related_times.items()
        if (readers := _readers(table, contract)) and _has_dates_alone(events.related[table], reading)
    ]
    own = contract.columns.time_reading
    if faults and own is not None and not _has_dates_alone(events.impressions, own):
        raise ContractError(faults)


def _readers(table: str, contract: Contract) -> list[str]:
    tasks = [f"tasks.{name}" for name, task in contract.tasks.items() if task.table == table]
    return tasks + [f"features.{name}" for name in contract.readers_of(table)]


def _has_dates_alone(rows: DataFrame, reading: Time) -> bool:
    """Whether times seem to be dates: all that are looked at are the first second of a day."""
    at, zone = column(reading.column), reading.zone or "UTC"
    is_first = date_of(at, zone) != date_of(at - 1, zone)
    firsts = [row[0] for row in rows.select(is_first).limit(_LOOKED_AT).collect()]
    return len(firsts) >= _FEW and all(firsts)
