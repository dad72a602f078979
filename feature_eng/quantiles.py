"""Exact quantiles of any number of rows: no reducer sees them all, and how rows lie makes no difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

_WHICH, _VALUE, _ROWS, _PART, _UPTO = "which__", "value__", "rows__", "part__", "upto__"


def quantiles(rows: DataFrame, wanted: Mapping[str, tuple[Column, Sequence[float]]]) -> dict[str, list[Any]]:
    """For each share the least value that at least this share of the values does not exceed.

    Equal values are counted where they lie, so that what is shuffled are distinct values. Those are parted by ranges; a
    rank then lies in one range, which its sum of rows before it tells.

    Args:
        rows: Read once.
        wanted: Name -> values, all of one type, and shares in [0, 1]; nulls are passed over.

    Returns:
        Name -> a value for each share; none where all values are null.
    """
    if not wanted:
        return {}
    names = list(wanted)
    listed = F.array(
        *(
            F.struct(F.lit(place).alias(_WHICH), wanted[name][0].alias(_VALUE))
            for place, name in enumerate(names)
        )
    )
    counted = (
        rows.select(F.explode(listed).alias("one"))
        .select("one.*")
        .where(F.col(_VALUE).isNotNull())
        .groupBy(_WHICH, _VALUE)
        .agg(F.count(F.lit(1)).alias(_ROWS))
        .repartitionByRange(_WHICH, _VALUE)
        .select("*", F.spark_partition_id().alias(_PART))
        .persist(StorageLevel.MEMORY_AND_DISK)
    )
    try:
        return _chosen(counted, [wanted[name][1] for name in names], names)
    finally:
        counted.unpersist()


def _chosen(
    counted: DataFrame, shares: Sequence[Sequence[float]], names: Sequence[str]
) -> dict[str, list[Any]]:
    parts = counted.groupBy(_WHICH, _PART).agg(F.sum(_ROWS).alias(_ROWS)).orderBy(_WHICH, _PART).collect()
    totals = [sum(part[_ROWS] for part in parts if part[_WHICH] == which) for which in range(len(names))]
    ranks = [
        [max(1, math.ceil(share * total)) for share in of] if total else []
        for of, total in zip(shares, totals, strict=True)
    ]
    conditions = []
    before = dict.fromkeys(range(len(names)), 0)
    starts: dict[tuple[int, int], int] = {}
    for part in parts:
        which, place, count = part[_WHICH], part[_PART], part[_ROWS]
        starts[which, place] = before[which]
        for rank in sorted({rank for rank in ranks[which] if before[which] < rank <= before[which] + count}):
            inside = F.lit(rank - before[which]).between(F.col(_UPTO) - F.col(_ROWS) + 1, F.col(_UPTO))
            conditions.append((F.col(_WHICH) == which) & (F.col(_PART) == place) & inside)
        before[which] += count
    if not conditions:
        return {name: [] for name in names}
    running = Window.partitionBy(_PART, _WHICH).orderBy(_VALUE).rowsBetween(Window.unboundedPreceding, 0)
    hits = (
        counted.withColumn(_UPTO, F.sum(_ROWS).over(running))
        .where(reduce(Column.__or__, conditions))
        .collect()
    )
    found: dict[str, list[Any]] = {}
    for which, name in enumerate(names):
        # (last rank of the value among all, value), in order.
        mine = sorted(
            (starts[which, hit[_PART]] + hit[_UPTO], hit[_VALUE]) for hit in hits if hit[_WHICH] == which
        )
        found[name] = [next(value for last, value in mine if rank <= last) for rank in ranks[which]]
    return found
