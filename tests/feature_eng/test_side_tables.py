"""Rows of side tables: chosen by what their columns mean, and refused by name where that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from small_logs import small_contract

from feature_eng.contract import Contract, ContractError
from feature_eng.events import to_events
from feature_eng.events.tables import write_events

pytestmark = pytest.mark.spark

AT = 1_714_600_000  # in May 2024


def contract_of(types: dict[str, str] | None = None, **join: Any) -> Contract:
    tables = {
        "shown": {"path": "shown.csv", "format": "csv"},
        "items": {"path": "items.csv", "format": "csv", "types": types or {}},
    }
    return small_contract(source={"tables": tables, "join": [{"table": "items", "on": "what", **join}]})


def log(
    spark: SparkSession, items: list[tuple[Any, ...]], schema: str, item: Any = "a"
) -> dict[str, DataFrame]:
    """One impression, and the side table."""
    kind = "long" if isinstance(item, int) else "string"
    shown = f"row string, who string, what {kind}, at long, page int, clicked int"
    return {
        "shown": spark.createDataFrame([("r", "u", item, AT, 1, 1)], shown),
        "items": spark.createDataFrame(items, schema).coalesce(1),
    }


def price_of(raw: dict[str, DataFrame], contract: Contract) -> float | None:
    (row,) = to_events(raw, contract).impressions.collect()
    price: float | None = row["price"]
    return price


def faults_of(raw: dict[str, DataFrame], contract: Contract) -> list[str]:
    with pytest.raises(ContractError) as caught:
        to_events(raw, contract)
    return caught.value.faults


@pytest.mark.parametrize(
    ("values", "kind", "declared", "newest"),
    [
        (["9", "10"], "string", "integer", 1),
        (["9.5", "10", None], "string", "number", 1),
        (["v9", "v8", ""], "string", "string", 0),
        (["2024-02-01", "2024-01-31T23:59", " "], "string", None, 0),
        # By moments, the second of which is the later one, and to the nanosecond.
        (["2024-02-01T10:00:00+05:00", "2024-02-01 06:00:00Z"], "string", None, 1),
        (["2024-02-01 06:00:00.123456788", "2024-02-01 06:00:00.123456789"], "string", None, 1),
        ([9, 10], "long", None, 1),
        ([9.0, float("nan"), 10.0], "double", None, 2),
    ],
)  # fmt: skip
def test_the_newest_row_is_so_by_what_its_column_means(
    spark: SparkSession, values: list[Any], kind: str, declared: str | None, newest: int
) -> None:
    items = [("a", float(place), value) for place, value in enumerate(values)]
    raw = log(spark, items, f"what string, price double, revision {kind}")
    contract = contract_of({"revision": declared} if declared else None, newest="revision")
    assert price_of(raw, contract) == float(newest)


def test_text_that_is_no_time_has_no_order_unless_the_contract_says_which(spark: SparkSession) -> None:
    items = [("a", 1.0, "9"), ("a", 2.0, "10"), ("b", 3.0, "2024-01-01"), (None, 4.0, "x")]
    raw = log(spark, items, "what string, price double, `of it` string")
    assert faults_of(raw, contract_of(newest="of it")) == [
        "source.join.0.newest: 2 of 4 rows of 'items' have a 'of it' that cannot be read, as '10'; expected ISO times, "
        "or source.tables.items.types: {'of it': integer}, number, or string for the order of text, or a 'where' that "
        "leaves such rows out"
    ]
    assert faults_of(raw, contract_of({"of it": "integer"}, newest="of it")) == [
        "source.join.0.newest: 1 of 4 rows of 'items' have a 'of it' that cannot be read, as '2024-01-01'; expected "
        "whole numbers, or a 'where' that leaves such rows out"
    ]
    moments = log(spark, [], "what string, price double, at timestamp")
    (fault,) = faults_of(moments, contract_of({"at": "integer"}, newest="at"))
    assert fault.startswith(
        "source.join.0.newest: column 'at' of 'items' is of type timestamp; expected whole"
    )


def test_a_row_that_cannot_be_read_stops_the_build_before_the_row_before_holds_for_it(
    spark: SparkSession, tmp_path: Path
) -> None:
    (tmp_path / "shown.csv").write_text(f"row,who,what,at,page,clicked\nr1,u,a,{AT},1,1\n")
    items = [
        "what,price,since",
        "a,1.0,2024-01-01 00:00:00",
        "a,2.0,2024-04-01 00:00:00 UTC",
        "a,3.0,",
        ",4.0,soon",
    ]
    (tmp_path / "items.csv").write_text("\n".join(items))
    with pytest.raises(ContractError) as caught:
        write_events(spark, contract_of(as_of="since"), str(tmp_path), str(tmp_path / "tables"))
    assert caught.value.faults == [
        "source.join.0.as_of: 1 of 4 rows of 'items' have a 'since' that cannot be read, as '2024-04-01 00:00:00 UTC'; "
        "expected times up to the year 3000, or a 'where' that leaves such rows out"
    ]
    assert not (tmp_path / "tables").exists()
    # Rows without a time, or without a key, say nothing.
    (tmp_path / "items.csv").write_text("\n".join(items).replace(" UTC", ""))
    write_events(spark, contract_of(as_of="since"), str(tmp_path), str(tmp_path / "tables"))
    rows = spark.read.format("delta").load(str(tmp_path / "tables" / "events")).collect()
    assert [row["price"] for row in rows] == [2.0]


@pytest.mark.parametrize("dates", [None, "end"])
def test_a_row_that_has_held_since_before_anyone_counted_is_found(
    spark: SparkSession, dates: str | None
) -> None:
    since = {"column": "since", **({} if dates is None else {"dates": dates})}
    items = [
        ("a", 1.0, "1900-01-01"),
        ("a", 2.0, "1950-01-01"),
        ("b", 3.0, "0001-01-01"),
        ("a", 4.0, "2150-01-01"),
    ]
    for item, price in (("a", 2.0), ("b", 3.0)):
        raw = log(spark, items, "what string, price double, since string", item=item)
        assert price_of(raw, contract_of(as_of=since)) == price


def test_times_and_keys_that_cannot_be_read_are_named_together_with_what_they_seem_to_be(
    spark: SparkSession,
) -> None:
    items = [("5", 1.0, 0), ("x", 2.0, AT * 1000), ("y", 3.0, 1), (None, 4.0, 2)]
    raw = log(spark, items, "what string, price double, since long", item=5)
    assert faults_of(raw, contract_of({"what": "integer"}, as_of="since")) == [
        "source.join.0.on: 2 of 4 rows of 'items' have a 'what' that cannot be read, as 'x'; expected whole numbers, "
        "or a 'where' that leaves such rows out",
        f"source.join.0.as_of: 1 of 4 rows of 'items' have a 'since' that cannot be read, as '{AT * 1000}' (ms since "
        "the epoch, it seems; write as_of: {column: since, unit: ms}); expected times up to the year 3000, or a "
        "'where' that leaves such rows out",
    ]
    # Text that is no number is a key of its own, which no number equals.
    assert price_of(raw, contract_of(as_of={"column": "since", "unit": "ms"})) == 1.0
    halves = log(spark, [(5.0, 1.0), (5.5, 2.0), (float("nan"), 3.0)], "what double, price double", item=5)
    (fault,) = faults_of(halves, contract_of())
    assert fault.startswith(
        "source.join.0.on: 1 of 3 rows of 'items' have a 'what' that cannot be read, as '5.5'; "
    )


def test_keys_of_side_tables_are_one_where_they_are_one_to_the_impressions(spark: SparkSession) -> None:
    schema, items = (
        "what string, price double, since long",
        [("5", 1.0, 100), ("05", 2.0, 200), ("5.0", 3.0, 200)],
    )
    several = (
        "expected one: add as_of: COLUMN (as it was at each row's time), newest: COLUMN, or a 'where' that"
    )
    raw = log(spark, items[:2], schema, item=5)
    assert faults_of(raw, contract_of()) == [
        f"source.join.0: 'items' has 2 different rows for what = 5; {several} leaves one"
    ]
    assert price_of(raw, contract_of(as_of="since")) == 2.0
    assert price_of(raw, contract_of(newest="since")) == 2.0
    (fault,) = faults_of(log(spark, items, schema, item=5), contract_of(as_of="since"))
    assert fault.startswith("source.join.0: 'items' has 2 different rows for what = 5 at one time; ")
    assert price_of(log(spark, items, schema, item="05"), contract_of()) == 2.0
