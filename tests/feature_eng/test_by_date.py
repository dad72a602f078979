"""Builds by date: which days are asked for, which they concern, and what is refused."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from small_logs import FEATURES, small_contract

from feature_eng import by_date, delta
from feature_eng.contract import Contract, ContractError
from feature_eng.dates import Dates, around, condition_of, date_of
from feature_eng.snapshot import BUILT_BY, EXAMPLES_VERSION, TABLES

DAY = date(2024, 3, 10)


def test_dates_are_a_day_or_a_span_with_open_ends() -> None:
    assert Dates.of("2024-03-10") == Dates(DAY, DAY)
    assert Dates.of("2024-03-10:") == Dates(DAY, None)
    assert Dates.of(":2024-03-10") == Dates(None, DAY)
    assert Dates.of(":").is_all
    assert [str(Dates.of(text)) for text in ("2024-03-10", "2024-03-10:2024-03-11", ":")] == [
        "2024-03-10", "2024-03-10:2024-03-11", ":",
    ]  # fmt: skip
    for wrong in ("", "today", "2024-13-01", "2024-03-10:2024-03-09", "2024-03-102024-03-11"):
        with pytest.raises(ValueError, match=r"dates|before"):
            Dates.of(wrong)


@pytest.mark.parametrize(
    ("split", "time", "why"),
    [
        ({"method": "time"}, "at", "parts all rows anew"),
        ({"method": "random"}, None, "names no columns.time"),
        ({"method": "random"}, "at", "is no span of dates"),
    ],
)
def test_what_cannot_be_built_day_by_day_is_refused(
    split: dict[str, Any], time: str | None, why: str
) -> None:
    columns = {"key": ["row"], "user": "who", "item": "what", **({"time": time} if time else {})}
    with pytest.raises(ContractError, match=f"^--dates: .*{why}"):
        by_date.dates_of("x", small_contract(split=split, columns=columns))


@pytest.mark.spark
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Los_Angeles"])
def test_the_day_of_a_second_is_that_of_its_zone_and_the_spans_cut_there(
    spark: SparkSession, zone: str
) -> None:
    # Clocks went forward in Los Angeles on March 10 and in Berlin on March 31.
    rows = spark.range(1_709_900_000, 1_712_000_000, 1_777)
    dates = Dates.of("2024-03-10:2024-03-30", zone)
    made = rows.select(
        date_of(F.col("id"), zone).alias("on_date"), (~dates.lack(F.col("id"))).alias("inside")
    )
    assert made.where(F.expr(dates.condition()) != F.col("inside")).isEmpty()
    assert made.where("inside").select("on_date").distinct().count() == 21


def test_labels_of_later_tables_and_attribution_reach_over_days() -> None:
    order = {"table": "orders", "join_on": ["who"], "within": "24h"}
    tables = {name: {"path": "x", "format": "csv"} for name in ("shown", "orders")}
    source = {"reader": "tables", "main": "shown", "tables": tables}
    every = small_contract(source=source, tasks={"order": order})
    last = small_contract(source=source, tasks={"order": {**order, "attribution": "last"}})
    assert by_date.read_for([DAY], every) == {date(2024, 3, day) for day in (10, 11)}
    assert by_date.read_for([DAY], last) == {date(2024, 3, day) for day in (9, 10, 11)}
    # On March 31 clocks go forward in Berlin, so that 24 hours from the day before reach over two midnights.
    before = date(2024, 3, 30)
    assert around([before], 0, 86_400, "Europe/Berlin") == {before, date(2024, 3, 31), date(2024, 4, 1)}
    assert around([before], 0, 86_400, "UTC") == {before, date(2024, 3, 31)}
    assert around([before], 1, 86_401, "UTC") == {date(2024, 3, day) for day in (29, 30, 31)} | {
        date(2024, 4, 1)
    }


def test_what_a_row_may_know_of_reaches_back_as_far_as_windows_and_labels_say() -> None:
    def first(**feature: Any) -> date | None:
        features = {**FEATURES, "seen": {"kind": "rate", "task": "click", **feature}}
        click = {"column": "clicked", "equals": 1, "known_after": "20h"}
        return by_date.told_from(DAY, small_contract(features=features, tasks={"click": click}))

    assert first() is None
    assert first(within="24h") == date(2024, 3, 8)
    assert first(within="3d") == date(2024, 3, 6)


@pytest.mark.spark
def test_a_row_of_another_table_concerns_the_days_that_may_see_it(
    spark: SparkSession, tmp_path: Path
) -> None:
    carts = {"kind": "count", "table": "carts"}
    tables = {name: {"path": "x", "format": "csv"} for name in ("shown", "carts")}

    def contract(**feature: Any) -> Contract:
        source = {"tables": tables, "main": "shown"}
        return small_contract(source=source, features={**FEATURES, "carts": {**carts, **feature}})

    days = [date(2024, 3, day) for day in range(1, 9)]
    rows = spark.createDataFrame(
        [(day.day, "train", "home", 1, day) for day in days],
        "at long, split string, scenario string, label__click int, on_date date",
    )
    for lately in (contract(within="2d"), contract()):
        root = tmp_path / str(lately.fingerprint)
        for name in ("events", "examples", "events_carts"):
            by_date.write(rows, root / name, lately, None)
        properties = {TABLES: json.dumps({"events": 0, "events_carts": 0}), EXAMPLES_VERSION: "0"}
        delta.write(rows, root / "training", properties=properties)
        late = rows.where(F.col("at") == 3).withColumn("at", F.lit(33).cast("long"))
        by_date.write(late, root / "events_carts", lately, condition_of([days[2]]))

        def concerned(version: int, made: Contract = lately, root: Path = root) -> set[date] | None:
            return by_date.concerned(spark, made, str(root), {"events": 0, "events_carts": version}, None)

        assert concerned(0) == set()
        assert concerned(1) == set(days[2:] if lately == contract() else days[2:5])


def test_days_that_go_over_to_another_split_are_found_by_their_seconds() -> None:
    def split(last: str, test: str) -> Any:
        return small_contract(
            split={"method": "dates", "train": [None, last], "test": [test, None], "gap": "2h"}
        )

    before, now = split("2024-03-09", "2024-03-11"), split("2024-03-10", "2024-03-11T01:00:00")
    assert before.fingerprint == now.fingerprint
    moved = by_date.moved([date(2024, 3, day) for day in range(8, 13)], now, by_date.spans_of(before))
    assert moved == {date(2024, 3, day) for day in (10, 11)}


@pytest.mark.spark
def test_days_of_a_release_in_which_rows_meant_something_else_are_refused(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = small_contract()
    rows = spark.createDataFrame([("a", DAY)], "row string, on_date date")
    by_date.write(rows, tmp_path / "events", contract, None)
    assert by_date.goes_on(str(tmp_path), ["events"], contract)
    refusal = r"^--dates: .*events was built by another release, .* meant something else; .* once: --dates :$"
    with monkeypatch.context() as later:
        later.setattr(by_date, "MEANING", by_date.MEANING + 1)
        with pytest.raises(ContractError, match=refusal):
            by_date.goes_on(str(tmp_path), ["events"], contract)
    # Tables of before there was a number named a digest alone, the oldest nothing.
    for before in ({BUILT_BY: by_date.built_by(contract).partition(":")[2]}, {}):
        delta.write(rows, tmp_path / "events", partition_by=["on_date"], properties=before)
        with pytest.raises(ContractError, match=refusal):
            by_date.goes_on(str(tmp_path), ["events"], contract)


@pytest.mark.spark
def test_keys_that_later_days_have_name_the_days_to_build_with_them(spark: SparkSession) -> None:
    schema = "row string, on_date date"
    rows = spark.createDataFrame([("a", DAY), ("b", DAY)], schema)
    later = spark.createDataFrame([("c", date(2024, 3, 11)), ("b", date(2024, 3, 12))], schema)
    dates = Dates(DAY, DAY)
    by_date.refuse_taken(rows, later.where("row = 'c'"), dates, small_contract())
    with pytest.raises(
        ContractError, match=r"1 rows of later days .* expected --dates 2024-03-10:2024-03-12$"
    ):
        by_date.refuse_taken(rows, later, dates, small_contract())
