"""Tables whose times are dates alone stop a build whose impressions have times of day."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from small_logs import FEATURES, small_contract

from feature_eng.contract import ContractError
from feature_eng.events import to_events
from feature_eng.events.dates_alone import check_times

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
    reading = {"column": "ordered_on", "zone": zone}
    timed = [{name: {**one, "time": reading} for name, one in made.items()} for made in (tasks, features)]
    contract = small_contract(
        source={"tables": tables, "main": "shown"},
        tasks={"click": {"column": "clicked", "equals": 1}, **timed[0]},
        features={**FEATURES, **timed[1]},
    )
    dates = spark.range(20).select(
        F.lit(1).cast("long").alias("who"),
        F.date_add(F.lit("2024-03-01"), F.col("id").cast("int")).alias("ordered_on"),
    )
    shown = spark.createDataFrame(
        [(f"r{n:02}", 1, "a", 1_711_000_000 + n, 1, 1.0, 1) for n in range(20)], SHOWN
    )

    def check(orders: DataFrame, shown: DataFrame = shown) -> None:
        check_times(to_events({"shown": shown, "orders": orders}, contract), contract)

    with pytest.raises(ContractError) as caught:
        check(dates)
    assert caught.value.faults == [
        f"{readers}: the rows of 'orders' are of a day's first second, as dates are read, and would come before they "
        "came; expected times, or the day's end, as in source.tables.orders.select: {ordered_on: "
        "\"concat(ordered_on, ' 23:59:59')\"}"
    ]
    check(dates.withColumn("ordered_on", F.expr("concat(ordered_on, ' 23:59:59')")))
    check(dates.limit(19))  # so few may be by chance
    if zone == "UTC":  # and beside impressions of whole days
        check(dates, shown.withColumn("at", F.lit(19_900 * 86_400)))
