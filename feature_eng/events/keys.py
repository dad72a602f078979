"""Keys of raw impressions: which rows have the same one, among themselves and with rows of other days."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import reduce
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from feature_eng import delta
from feature_eng.contract import Contract, quoted
from feature_eng.dates import ON_DATE, Dates, is_one_of
from feature_eng.events.checking import typed_column
from foundation import stores

FEW_KEYS = 500_000
"""So many are sent to all executors, so that other days' keys are read where they are."""


@dataclass(frozen=True)
class Keys:
    """What one reading of the impression table tells of its rows.

    Attributes:
        rows: How many there are.
        with_time: How many have a time that can be read; 0 where times are not read.
        has_repeats: Whether some may have equal keys.
        bounds: The least and the greatest value of each column of the key; empty where there is no key.
    """

    rows: int
    with_time: int
    has_repeats: bool
    bounds: tuple[tuple[Any, Any], ...] = ()


def read_keys(frame: DataFrame, contract: Contract, *, times: bool) -> Keys:
    """Count rows and compare their keys: one reading, and keys alone are shuffled.

    Args:
        frame: The impression table's rows, whose schema has been checked.
        contract: What the columns mean.
        times: Whether to read times too.
    """
    time = contract.columns.time if times else None
    second = F.lit(None) if time is None else typed_column(time, frame, contract)
    typed = _typed_key(frame, contract)
    if not typed:
        counts = frame.agg(F.count(F.lit(1)).alias("rows"), F.count(second).alias("with_time")).collect()[0]
        # A key of a side table is not known yet.
        return Keys(counts["rows"], counts["with_time"], has_repeats=bool(contract.columns.key))
    key = [F.col(f"key__{place}") for place in range(len(typed))]
    rows = frame.select(
        *(one.alias(f"key__{place}") for place, one in enumerate(typed)), second.alias("second")
    )
    counted = rows.groupBy(*key).agg(F.count(F.lit(1)).alias("rows"), F.count("second").alias("with_time"))
    # Rows without a key are rejects anyway.
    is_key = reduce(Column.__and__, (one.isNotNull() for one in key))
    found = counted.agg(
        F.sum("rows").alias("rows"),
        F.sum("with_time").alias("with_time"),
        F.max(F.when(is_key, F.col("rows"))).alias("most"),
        *(F.min(F.when(is_key, one)).alias(f"least__{place}") for place, one in enumerate(key)),
        *(F.max(F.when(is_key, one)).alias(f"greatest__{place}") for place, one in enumerate(key)),
    ).collect()[0]
    bounds = ((found[f"least__{place}"], found[f"greatest__{place}"]) for place in range(len(key)))
    return Keys(
        rows=found["rows"] or 0,
        with_time=found["with_time"] or 0,
        has_repeats=(found["most"] or 0) > 1,
        bounds=tuple(bounds) if found["most"] else (),
    )


def that_meet(
    frame: DataFrame, place: stores.Place, dates: Dates, keys: Keys, contract: Contract
) -> tuple[DataFrame, date, date] | None:
    """Stored impressions of other days that may have keys of raw rows, and the first and the last day of some that do.

    Mostly there are none. That is told by the log where keys grow with time, since it knows the least and greatest of
    each file, and else by a reading of keys alone, those of rejects among the raw rows' ones.

    Args:
        frame: The impression table's rows.
        place: The table of stored impressions, by date.
        dates: The days of the raw rows.
        keys: Of the raw rows.
        contract: What the columns mean.
    """
    typed = _typed_key(frame, contract)
    if typed and not keys.bounds:
        return None  # no row has a key
    version, names = delta.newest_version(place), list(contract.stored_key)
    bounds = dict(zip(names, keys.bounds, strict=False))
    found = delta.partitions_within(place, version, ON_DATE, bounds)
    days = {day for day in found if not dates.has(day)}
    if not days:
        return None
    stored = delta.read(frame.sparkSession, place, version).where(is_one_of(days))
    for name, (least, greatest) in bounds.items():
        stored = stored.where(F.col(quoted(name)).between(F.lit(least), F.lit(greatest)))
    if not typed:
        return stored, min(days), max(days)
    own = frame.select(*(one.alias(name) for one, name in zip(typed, names, strict=True)))
    met = stored.join(F.broadcast(own) if keys.rows <= FEW_KEYS else own, on=names, how="left_semi")
    first, last = met.agg(F.min(ON_DATE), F.max(ON_DATE)).collect()[0]
    return None if first is None else (stored, first, last)


def _typed_key(frame: DataFrame, contract: Contract) -> list[Column]:
    """The key's columns as events have them; none where there is no key, or some are of a side table."""
    names = contract.columns.key
    return [typed_column(name, frame, contract) for name in names] if set(names) <= set(frame.columns) else []
