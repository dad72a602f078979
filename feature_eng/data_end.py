"""The data's end: the second up to which labels are known, where no ``as_of`` says so.

It is that of the last row of all tables that labels come from. A table that was delivered up to an earlier day would
make labels 0 of what it does not say, and so would a row whose clock ran ahead: nothing else would show either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from feature_eng.contract import Contract
from feature_eng.events import Events, column

_SILENCE = 20
"""Mean gaps between a table's rows; a silence of as many is no chance, be it at night."""


@dataclass(frozen=True)
class Extent:
    """A table of events.

    Attributes:
        rows: How many it has.
        first, last: Their seconds since the epoch.
    """

    rows: int
    first: int
    last: int


def extents(events: Events, contract: Contract) -> dict[str, Extent]:
    """Each table that labels wait for, the impressions among them; none without rows, and none where no label waits."""
    if not any(task.is_delayed for task in contract.tasks.values()):
        return {}
    assert contract.columns.time is not None, "checked by the contract"
    later = [task.table for task in contract.tasks.values() if task.table is not None]
    found = [_extent(events.impressions, contract.source.main_table, contract.columns.time)]
    found += [
        _extent(events.related[table], table, contract.related_times[table].column)
        for table in dict.fromkeys(later)
    ]
    rows = reduce(DataFrame.unionByName, found).collect()
    return {row["table"]: Extent(row["rows"], row["first"], row["last"]) for row in rows if row["rows"]}


def data_end(found: Mapping[str, Extent]) -> int | None:
    """Second of the last row of all; ``None`` where nothing waits for it."""
    return max((one.last for one in found.values()), default=None)


def remarks(found: Mapping[str, Extent], contract: Contract) -> Iterator[str]:
    """Where the data end, and which labels' tables had been silent for longer by then than chance has it."""
    if not found:
        return
    last = max(found, key=lambda table: found[table].last)
    end = found[last].last
    yield f"data end  {_utc(end)}, with the last row of {last!r}: later labels are not known"
    for name, task in contract.tasks.items():
        one = found.get(task.table or "")
        if one is None or task.within is None:
            continue
        silence = end - one.last
        if silence > task.within and silence * one.rows > _SILENCE * (one.last - one.first):
            day = datetime.fromtimestamp(one.last, UTC).date()
            yield (
                f"careful   the last row of {task.table!r} is of {_utc(one.last)}: if it was delivered up to there "
                f"alone, labels {name!r} of later rows are wrongly 0; then build --as-of {day}, or when it is whole"
            )


def _extent(rows: DataFrame, table: str, time: str) -> DataFrame:
    at = column(time)
    return rows.agg(
        F.lit(table).alias("table"),
        F.count("*").alias("rows"),
        F.min(at).alias("first"),
        F.max(at).alias("last"),
    )


def _utc(second: int) -> str:
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%d %H:%M:%S} UTC"
