"""Labels: by the row's own columns, and by later rows inside the attribution window."""

from __future__ import annotations

import pytest
from pyspark.sql import Row, SparkSession
from small_logs import small_contract

from feature_eng.events import to_events
from feature_eng.examples import to_examples

pytestmark = pytest.mark.spark

WITH_ORDERS = {
    "reader": "tables",
    "tables": {"shown": {"path": "x", "format": "csv"}, "orders": {"path": "y", "format": "csv"}},
}
ORDER = {"table": "orders", "join_on": ["who", "what"], "within": "1h"}


def test_a_threshold_or_a_value_makes_the_label(spark: SparkSession) -> None:
    raw = spark.createDataFrame(
        [(1, "u", "a", 2, 3, "buy", None), (2, "u", "b", 3, 4, "look", 1.0), (3, "u", "c", 1, 5, "buy", 1.0)],
        "row int, who string, what string, page int, stars int, did string, price double",
    )
    contract = small_contract(
        columns={"key": ["row"], "user": "who", "item": "what"},
        tasks={
            "good": {"column": "stars", "greater_than": 3},
            "fair": {"column": "stars", "at_least": 3},
            "best": {"column": "stars", "equals": 5},
            "bought": {"column": "did", "equals": "buy"},
        },
    )
    examples = to_examples(to_events({"shown": raw}, contract), contract).orderBy("row").collect()
    assert examples[0] == Row(
        row=1, who="u", what="a", page=2, price=None, scenario="search",
        label__good=0, label__fair=1, label__best=0, label__bought=1,
    )  # fmt: skip
    assert [tuple(row)[4:] for row in examples[1:]] == [
        (1.0, "search", 1, 1, 0, 0),
        (1.0, "home", 1, 1, 1, 1),
    ]


def test_an_order_counts_inside_its_window_and_never_doubles_an_impression(spark: SparkSession) -> None:
    contract = small_contract(source=WITH_ORDERS, tasks={"order": ORDER})
    shown = spark.createDataFrame(
        [
            ("before", 1, "a", 11000, 1, 1.0),
            ("same second", 1, "a", 12000, 1, 1.0),
            ("window's end", 2, "a", 12000 - 3600, 1, 1.0),
            ("too early", 2, "a", 11999 - 3600, 1, 1.0),
            ("too late", 1, "a", 15001, 1, 1.0),
            ("other item", 1, "b", 11000, 1, 1.0),
            ("other user", 3, "a", 11000, 1, None),
            ("still open", 9, "a", 18601, 1, 1.0),
        ],
        "row string, who long, what string, at long, page int, price double",
    )
    # Users are text here and numbers there; two orders of one impression, and one without a user.
    orders = spark.createDataFrame(
        [("1", "a", 12000), ("1", "a", 14000), ("2", "a", 12000), (None, "a", 11500), ("3", "a", None)],
        "who string, what string, at long",
    )
    events = to_events({"shown": shown, "orders": orders}, contract)
    assert sorted((row["table"], row["reason"]) for row in events.rejects.collect()) == [
        ("orders", "null at"),
        ("orders", "null who"),
    ]
    found = {
        row["row"]: (row["label__order"], row["known_at__order"])
        for row in to_examples(events, contract).collect()
    }
    assert found == {
        "before": (1, 12000),
        "same second": (1, 12000),
        "window's end": (1, 12000),
        "too early": (0, 11999),
        "too late": (0, 18601),
        "other item": (0, 14600),
        "other user": (0, 14600),
        "still open": (None, 22201),
    }
    assert to_examples(events, contract).count() == 8


def test_a_log_with_five_scenarios_and_three_tasks_needs_a_contract_and_no_code(spark: SparkSession) -> None:
    contract = small_contract(
        columns={"key": ["who", "at"], "user": "who", "item": "what", "time": "at"},
        source=WITH_ORDERS,
        scenario={"column": "page", "values": {f"page_{n}": {"in": [n]} for n in (5, 3, 1, 2, 4)}},
        tasks={
            "click": {"column": "clicked", "equals": 1},
            "order": ORDER,
            "dwell": {"column": "s", "at_least": 9},
        },
    )
    shown = spark.createDataFrame(
        [
            (7, "a", 10, 1, 1, 9, 1.0),
            (7, "b", 20, 5, 0, 8, 1.0),
            (8, "a", 10, 3, 1, 0, 1.0),
            (8, "a", 11, 6, 1, 0, 1.0),
        ],
        "who long, what string, at long, page int, clicked int, s int, price double",
    )
    orders = spark.createDataFrame([(7, "a", 15)], "who long, what string, at long")
    events = to_events({"shown": shown, "orders": orders}, contract)
    rows = to_examples(events, contract, as_of=4000).orderBy("who", "at").collect()
    assert [
        (row["scenario"], row["label__click"], row["label__order"], row["label__dwell"]) for row in rows
    ] == [("page_1", 1, 1, 1), ("page_5", 0, 0, 0), ("page_3", 1, 0, 0)]
    assert [row["reason"] for row in events.rejects.collect()] == ["unknown scenario in page"]
