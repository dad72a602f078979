"""Differences: the days in which two versions of a table by date differ, by its files and then by its rows."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng import delta
from feature_eng.dates import ON_DATE, is_one_of
from feature_eng.digests import digest_of
from foundation import stores


def differing(place: stores.Place, before: int, now: int) -> set[date]:
    """Days whose files differ between two versions."""
    earlier, later = (delta.partitions(place, version, ON_DATE) for version in (before, now))
    return {day for day in {*earlier, *later} - {None} if earlier.get(day) != later.get(day)}


def changed(spark: SparkSession, place: stores.Place, before: int, now: int) -> set[date]:
    """Days whose rows differ between two versions, in whatever order and files they lie."""
    days = differing(place, before, now)
    if not days:
        return set()
    earlier, later = (_digests(delta.read(spark, place, version), days) for version in (before, now))
    return {day for day in days if earlier.get(day) != later.get(day)}


def _digests(rows: DataFrame, days: Collection[date]) -> dict[date, tuple[Any, ...]]:
    digest = digest_of(rows, sorted(name for name in rows.columns if name != ON_DATE))
    counted = rows.where(is_one_of(days)).groupBy(ON_DATE).agg(F.count(F.lit(1)), digest).collect()
    return {row[0]: tuple(row[1:]) for row in counted}
