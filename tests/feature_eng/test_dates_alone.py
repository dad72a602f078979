"""Tables whose times are dates alone stop a build whose impressions have times of day."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from small_logs import FEATURES, small_contract

from feature_eng.contract import Contract, ContractError, Time, to_instant
from feature_eng.events import to_events
from feature_eng.events.dates_alone import check_side_times, check_times
from feature_eng.events.times import to_seconds

SHOWN = "row string, who long, what string, at long, page int, price double, clicked int"
TASK = {"order": {"table": "orders", "join_on": ["who"], "within": "24h"}}
FEATURE = {"ordered": {"kind": "count", "table": "orders"}}


@pytest.mark.spark
@pytest.mark.parametrize(
    ("tasks", "features", "zone", "readers"),
    [
        (TASK, {}, "UTC", "tasks.order"),
        ({}, FEATURE, "Asia/Tokyo", "features.ordered"),
        (TASK, FEATURE, "UTC", "tasks.order, features.ordered"),
    ],
    ids=["label", "feature", "both"],
)
def test_dates_that_come_before_they_came_stop_the_build(
    spark: SparkSession, tasks: dict[str, Any], features: dict[str, Any], zone: str, readers: str
) -> None:
    tables = {name: {"path": name, "format": "parquet"} for name in ("shown", "orders")}

    def contract_of(**reading: str) -> Contract:
        time = {"time": {"column": "ordered_on", "zone": zone, **reading}}
        timed = [{name: {**one, **time} for name, one in made.items()} for made in (tasks, features)]
        return small_contract(
            source={"tables": tables, "main": "shown"},
            tasks={"click": {"column": "clicked", "equals": 1}, **timed[0]},
            features={**FEATURES, **timed[1]},
        )

    contract = contract_of()
    dates = spark.range(20).select(
        F.lit(1).cast("long").alias("who"),
        F.date_add(F.lit("2024-03-01"), F.col("id").cast("int")).alias("ordered_on"),
    )
    shown = spark.createDataFrame(
        [(f"r{n:02}", 1, "a", 1_711_000_000 + n, 1, 1.0, 1) for n in range(20)], SHOWN
    )

    def check(orders: DataFrame, shown: DataFrame = shown, contract: Contract = contract) -> None:
        check_times(to_events({"shown": shown, "orders": orders}, contract), contract)

    with pytest.raises(ContractError) as caught:
        check(dates)
    assert caught.value.faults == [
        f"{readers}: the rows of 'orders' are of a day's first second, as dates are read, and would come before they "
        f"came; expected times, or what a date means: time: {{column: ordered_on, zone: {zone}, dates: end}} for the "
        "day's end, or start for its beginning"
    ]
    check(dates.withColumn("ordered_on", F.expr("concat(ordered_on, ' 23:59:59')")))
    for dated in ("start", "end"):
        check(dates, contract=contract_of(dates=dated))
    check(dates.limit(19))  # so few may be by chance
    if zone == "UTC":  # and beside impressions of whole days
        check(dates, shown.withColumn("at", F.lit(19_900 * 86_400)))


@pytest.mark.spark
def test_a_side_table_of_dates_alone_stops_the_build_unless_the_contract_says_what_a_date_means(
    spark: SparkSession,
) -> None:
    schema = "what string, since string, price double"
    dated = [("a", f"2024-03-{1 + n:02}", float(n)) for n in range(20)]
    items = spark.createDataFrame(dated, schema)
    noon = 1_709_899_200  # of March 8
    shown = spark.createDataFrame(
        [(f"r{n:02}", 1, "a", noon + n, 1, 1) for n in range(20)],
        "row string, who long, what string, at long, page int, clicked int",
    )

    def prices(as_of: Any, items: DataFrame = items, shown: DataFrame = shown) -> set[float]:
        tables = {name: {"path": name, "format": "parquet"} for name in ("shown", "items")}
        join = {"table": "items", "on": "what", "as_of": as_of}
        contract = small_contract(source={"main": "shown", "tables": tables, "join": [join]})
        raw = {"shown": shown, "items": items}
        rows = to_events(raw, contract).impressions
        check_side_times(raw, rows, contract)
        return {row["price"] for row in rows.select("price").collect()}

    with pytest.raises(ContractError) as caught:
        prices({"column": "since", "zone": "Asia/Tokyo"})
    assert caught.value.faults == [
        "source.join.0.as_of: the rows of 'items' hold from a day's first second on, as dates are read, so that what "
        "came about on a day would be given to impressions of the hours before; expected times, or what a date means: "
        "as_of: {column: since, zone: Asia/Tokyo, dates: end} for the day's end, or start for its beginning"
    ]
    assert prices({"column": "since", "dates": "start"}) == {7.0}
    assert prices({"column": "since", "dates": "end"}) == {6.0}
    # A first load at one midnight, and a change with a time of day.
    loaded = [(what, "2024-03-01T00:00:00", 1.0) for what in "abcdefghijklmnopqrst"]
    assert prices("since", spark.createDataFrame([*loaded, ("a", "2024-03-08T09:30:00", 2.0)], schema)) == {
        2.0
    }
    # Beside impressions of whole days.
    assert prices("since", shown=shown.withColumn("at", F.lit(19_790 * 86_400))) == {7.0}


@pytest.mark.spark
@pytest.mark.parametrize("zone", [None, "Europe/Berlin", "America/Los_Angeles"])
def test_dates_that_end_are_the_last_second_of_their_day_however_they_are_written(
    spark: SparkSession, zone: str | None
) -> None:
    # Clocks go forward in Los Angeles on March 10 and in Berlin on March 31.
    days = [date(2024, 3, day) for day in (9, 10, 11, 30, 31)]
    written = [(day, day.isoformat(), int(f"{day:%Y%m%d}")) for day in days]
    rows = spark.createDataFrame(written, "a date, b string, c long")
    formats = {"a": None, "b": None, "c": "yyyyMMdd"}
    read = [
        to_seconds(
            F.col(name), rows.schema[name].dataType, Time(column=name, zone=zone, format=format, dates="end")
        )
        for name, format in formats.items()
    ]
    ends = [to_instant(day.isoformat(), zone or "UTC", is_end=True) for day in days]
    assert [tuple(row) for row in rows.select(*read).collect()] == [(end,) * 3 for end in ends]
