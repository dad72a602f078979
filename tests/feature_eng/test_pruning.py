"""Rows of some days are found by the raw column alone, whatever its type, and files without them are not read."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import _parse_datatype_string
from small_logs import small_contract

from feature_eng.contract import Time
from feature_eng.dates import Dates
from feature_eng.events.parting import raw_of
from feature_eng.events.pruning import may_be_within
from feature_eng.events.times import LATEST_SECOND, to_seconds

DAY = 86_400
SPANS = [
    Dates.of("2024-03-10"),
    Dates.of("2024-03-10:", "Pacific/Auckland"),
    Dates.of(":0001-01-02"),
    Dates.of("1970-08-01:1970-12-31"),
]


KINDS: list[tuple[str, dict[str, str]]] = [
    ("bigint", {}), *(("bigint", {"unit": unit}) for unit in ("s", "ms", "us", "ns")), ("int", {}),
    ("decimal(10,0)", {}), ("decimal(38,18)", {"unit": "ms"}),
    ("decimal(38,9)", {"unit": "ns"}), ("double", {}), ("double", {"unit": "ms"}), ("double", {"unit": "ns"}),
    ("timestamp", {}),
    *((kind, {"zone": zone}) for kind in ("timestamp_ntz", "date") for zone in ("Pacific/Kiritimati", "Etc/GMT+12")),
    ("bigint", {"dates": "end"}), ("timestamp", {"dates": "end", "zone": "Pacific/Kiritimati"}),
    ("date", {"dates": "end", "zone": "Europe/Berlin"}), ("double", {"dates": "end", "unit": "ms"}),
]  # fmt: skip


def seconds_about() -> list[int]:
    """Where one thing goes over to another, and seconds about it."""
    edges = {end for dates in SPANS for end in dates.seconds if end is not None}
    edges |= {0, LATEST_SECOND, 19_000_101, 20_240_310, 29_991_231}
    steps = (-DAY, -1, 0, 1, DAY)
    found = {edge + step for edge in edges for step in steps}
    return sorted(found | {1_710_000_000 + place * 5 * DAY for place in range(-4, 5)})


def numbers(per: int, largest: int) -> list[int]:
    of_units = [edge * scale for edge in (10**8, 41 * 10**8) for scale in (1, 10**3, 10**6)]
    whole = [*(second * per for second in seconds_about()), *of_units]
    found = {number + step for number in whole for step in (-1, 0, 1)} | {largest, -largest}
    return sorted(number for number in found if abs(number) <= largest)


def doubles(per: int) -> list[float]:
    whole = [float(number) for number in numbers(per, 2**62)]
    beside = [math.nextafter(number, to) for number in whole for to in (math.inf, -math.inf)]
    return [*whole, *beside, math.nan, math.inf, -math.inf, -0.0]


def moments(zone: tzinfo | None) -> list[datetime]:
    start, micros = datetime(1970, 1, 1, tzinfo=zone), (0, 999_999)
    found = [timedelta(seconds=second, microseconds=micro) for second in seconds_about() for micro in micros]
    low, high = datetime(1, 1, 3, tzinfo=zone) - start, datetime(9999, 12, 29, tzinfo=zone) - start
    return [start + one for one in found if low <= one <= high]


def values_of(kind: str, unit: str | None) -> list[Any]:
    per = {None: 1, "s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    if kind in ("bigint", "int"):
        return numbers(per, 2**63 - 1 if kind == "bigint" else 2**31 - 1)
    if kind.startswith("decimal"):
        precision, scale = map(int, kind[8:-1].split(","))
        whole = [Decimal(number) for number in numbers(per, 10 ** (precision - scale) - 1)]
        return [*whole, *(one + Decimal("0.9999999") for one in whole if scale and abs(one) < 10**19)]
    if kind == "double":
        return doubles(per)
    found = moments(UTC if kind == "timestamp" else None)
    return [one.date() for one in found] if kind == "date" else found


@pytest.mark.spark
def test_rows_of_other_days_alone_are_left_out(spark: SparkSession) -> None:
    values = [values_of(kind, reading.get("unit")) for kind, reading in KINDS]
    schema = ", ".join(f"at_{place} {kind}" for place, (kind, _) in enumerate(KINDS))
    rows = spark.createDataFrame(list(zip_longest(*values)), schema)
    columns = []
    for place, (kind, reading) in enumerate(KINDS):
        at, dtype = f"at_{place}", _parse_datatype_string(kind)
        time = Time(column=at, **reading)
        may_be = [may_be_within(F.col(at), dtype, time, *dates.seconds) for dates in SPANS]
        columns += [
            F.col(at), to_seconds(F.col(at), dtype, time).alias(f"second_{place}"),
            F.array(*(one for one in may_be if one is not None)).alias(f"may_be_{place}"),
        ]  # fmt: skip
    read = rows.select(*columns).collect()
    for place, (kind, reading) in enumerate(KINDS):
        for row in read:
            at, second, may_be = row[f"at_{place}"], row[f"second_{place}"], row[f"may_be_{place}"]
            for dates, kept in zip(SPANS, may_be, strict=True):
                assert kept or not is_wanted(second, dates), (kind, reading, str(dates), at, second)
                # Numbers that seem to be of a coarser unit are kept, and what lies right beside them.
                is_far = second is not None and reading.get("unit", "s") == "s" and not is_near(second, dates)
                assert not (kept and is_far), (kind, reading, str(dates), at, second)


def is_wanted(second: int | None, dates: Dates) -> bool:
    first, last = dates.seconds
    return second is None or ((first is None or first <= second) and (last is None or second <= last))


def is_near(second: int, dates: Dates) -> bool:
    """Whether a second is so near to what is kept that it may be kept too."""
    is_date_number = 19_000_000 < second < 30_000_000
    is_at_an_end = second < 6 * DAY or second > LATEST_SECOND - 6 * DAY
    return (
        is_date_number or is_at_an_end or any(is_wanted(second + step * DAY, dates) for step in range(-6, 7))
    )


@pytest.mark.spark
def test_of_text_and_formats_nothing_is_known(spark: SparkSession) -> None:
    for kind, reading in (("string", {}), ("bigint", {"format": "yyyyMMdd"}), ("float", {}), ("boolean", {})):
        time = Time(column="at", **reading)
        assert may_be_within(F.col("at"), _parse_datatype_string(kind), time, 0, DAY) is None


@pytest.mark.spark
@pytest.mark.parametrize("kind", ["bigint", "timestamp"])
def test_row_groups_without_the_days_are_not_read(spark: SparkSession, tmp_path: Path, kind: str) -> None:
    # Ten days of 100 rows, a row group each; a time is missing on the third, and one on the fifth is in milliseconds.
    seconds: list[int | None] = [1_709_856_000 + row * DAY // 100 for row in range(1000)]
    seconds[250], seconds[450] = None, 1_709_856_000_000
    at = pa.array(seconds, pa.int64())
    if kind == "timestamp":
        at = pa.array([one and one * 10**6 % 10**18 for one in seconds], pa.int64()).cast(
            pa.timestamp("us", "UTC")
        )
    pq.write_table(pa.table({"row": range(1000), "at": at}), tmp_path / "shown.parquet", row_group_size=100)
    raw = {"shown": spark.read.parquet(str(tmp_path))}
    dates = Dates.of("2024-03-15")
    rows = raw_of(raw, small_contract(), dates)["shown"].select("row")
    first, last = dates.seconds
    read = to_seconds(F.col("at"), raw["shown"].schema["at"].dataType, Time(column="at"))
    slow = raw["shown"].where(read.isNull() | read.between(first, last))
    found = [row["row"] for row in rows.collect()]
    assert sorted(found) == sorted(row["row"] for row in slow.select("row").collect())
    assert len(found) == 102
    scan = rows._jdf.queryExecution().executedPlan().collectLeaves().apply(0)
    assert 100 <= scan.metrics().apply("numOutputRows").value() <= 300
