"""Times that name no time zone beside times of a zone: all of them say theirs, or none."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from small_logs import FEATURES, small_contract

from feature_eng.contract import Contract, ContractError
from feature_eng.events import to_events
from feature_eng.events.schemas import check_schemas

pytestmark = pytest.mark.spark

NAMES = ("shown", "orders", "searches", "items")
NEW_YORK = "America/New_York"
NOON = 1_714_579_200  # 2024-05-01 12:00 there


def contract_of(
    shown: Any = "at", ordered: Any = "ordered_at", searched: Any = "searched_at", since: Any = "since"
) -> Contract:
    join = {"table": "items", "on": "what", "as_of": since}
    tables = {name: {"path": name, "format": "parquet"} for name in NAMES}
    return small_contract(
        source={"tables": tables, "main": "shown", "join": [join]},
        columns={"key": ["row"], "user": "who", "item": "what", "time": shown},
        tasks={
            "click": {"column": "clicked", "equals": 1},
            "order": {"table": "orders", "join_on": ["who"], "within": "1d", "time": ordered},
        },
        features={
            **FEATURES,
            "moment": {"kind": "categorical", "column": "at"},
            "searches": {"kind": "count", "table": "searches", "time": searched},
        },
    )


def log(spark: SparkSession, **kinds: str) -> dict[str, DataFrame]:
    """One row of each table, its time of the given kind."""
    rows = {
        "shown": "'r' AS row, 1L AS who, 'a' AS what, 1 AS page, 1 AS clicked, {} AS at",
        "orders": "1L AS who, {} AS ordered_at",
        "searches": "1L AS who, {} AS searched_at",
        "items": "'a' AS what, 2.0D AS price, {} AS since",
    }
    made = {"text": "'2024-05-01 12:00:00'", "number": f"{NOON}L", "day": "20240501"}
    made |= {kind: f"CAST({made['text']} AS {kind})" for kind in ("date", "timestamp", "timestamp_ntz")}
    return {
        name: spark.sql(f"SELECT {row.format(made[kinds.get(name, 'text')])}") for name, row in rows.items()
    }


def faults_of(raw: dict[str, DataFrame], contract: Contract) -> list[str]:
    with pytest.raises(ContractError) as caught:
        check_schemas(raw, contract)
    return caught.value.faults


def zoned(column: str, zone: str = NEW_YORK, **reading: str) -> dict[str, str]:
    return {"column": column, "zone": zone, **reading}


def test_times_without_a_zone_beside_times_with_one_are_refused_each_with_what_to_write(
    spark: SparkSession,
) -> None:
    raw = log(spark, orders="date", items="timestamp_ntz")
    told = f"names no time zone while columns.time says '{NEW_YORK}'; write"
    assert faults_of(raw, contract_of(zoned("at"))) == [
        f"tasks.order.time: column 'ordered_at' of 'orders' {told} time: {{column: ordered_at, zone: {NEW_YORK}}}, "
        "or zone: UTC",
        f"features.searches.time: column 'searched_at' of 'searches' {told} time: {{column: searched_at, "
        f"zone: {NEW_YORK}}}, or zone: UTC",
        f"source.join.0.as_of: column 'since' of 'items' {told} as_of: {{column: since, zone: {NEW_YORK}}}, "
        "or zone: UTC",
    ]
    # The other way round, and of numbers and text by a format.
    format = {"format": "yyyyMMdd"}
    turned = contract_of(
        {"column": "at", **format}, zoned("ordered_at"), zoned("searched_at"), zoned("since")
    )
    assert faults_of(log(spark, shown="day"), turned) == [
        "columns.time: column 'at' of 'shown' names no time zone while tasks.order.time says 'America/New_York'; "
        "write time: {column: at, format: yyyyMMdd, zone: America/New_York}, or zone: UTC"
    ]


def test_times_of_a_zone_are_of_one_moment_in_every_table(spark: SparkSession) -> None:
    contract = contract_of(
        zoned("at"), zoned("ordered_at"), zoned("searched_at", "UTC"), zoned("since", "Asia/Tokyo")
    )
    events = to_events(log(spark), contract)
    (shown,), (order,), (search,) = (
        rows.collect() for rows in (events.impressions, events.related["orders"], events.related["searches"])
    )
    assert (shown["at"], order["ordered_at"], search["searched_at"]) == (NOON, NOON, NOON - 4 * 3600)


@pytest.mark.parametrize("kind", ["number", "timestamp"])
def test_times_that_are_moments_by_themselves_need_no_zone(spark: SparkSession, kind: str) -> None:
    check_schemas(log(spark, orders=kind, searches=kind, items=kind), contract_of(zoned("at")))


@pytest.mark.parametrize("reading", [{"unit": "s"}, {"format": "yyyy-MM-dd HH:mm:ss XXX"}])
def test_text_whose_reading_makes_it_a_moment_needs_no_zone(
    spark: SparkSession, reading: dict[str, str]
) -> None:
    others = [{"column": column, **reading} for column in ("ordered_at", "searched_at", "since")]
    check_schemas(log(spark), contract_of(zoned("at"), *others))


def test_where_no_time_has_a_zone_but_utc_all_are_of_utc(spark: SparkSession) -> None:
    for contract in (contract_of(), contract_of(zoned("at", "UTC"))):
        check_schemas(log(spark), contract)
