"""Requests get the features that the build gave the same rows; what they lack is told by name."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from small_logs import FEATURES, small_contract

from feature_eng.behaviour import with_behaviour
from feature_eng.contract import Contract
from feature_eng.events import Events, to_events
from feature_eng.examples import to_examples
from feature_eng.requests import RequestError, with_features

pytestmark = pytest.mark.spark

SHOWN = "row string, who string, what string, at long, page int, price double, clicked int, dwell double"


def contract() -> Contract:
    features: dict[str, Any] = {
        **FEATURES,
        "recent": {"kind": "history", "last": 3},
        "ordered": {"kind": "history", "last": 2, "when": "order"},
        "seen": {"kind": "count", "by": "item"},
        "click_rate": {"kind": "rate", "task": "click", "prior": 0.5, "prior_rows": 2},
        "order_rate": {"kind": "rate", "task": "order", "by": "item"},
        "orders": {"kind": "count", "table": "orders"},
        "carted": {
            "kind": "history",
            "table": ["carts", "shown"],
            "last": 3,
            "within": "20s",
            "ages": True,
            "kinds": True,
        },
    }
    tables = {
        "shown": {"path": "x", "format": "csv", "types": {"who": "integer"}},
        "orders": {"path": "y", "format": "csv"},
        "carts": {"path": "z", "format": "csv"},
    }
    return small_contract(
        source={"reader": "tables", "tables": tables},
        columns={"key": ["row"], "user": "who", "item": "what", "time": {"column": "at", "unit": "ms"}},
        tasks={
            "click": {"column": "clicked", "equals": 1, "known_after": "dwell"},
            "order": {
                "table": "orders", "join_on": ["who"], "within": 40, "time": {"column": "at", "unit": "ms"},
            },
        },
        features=features,
    )  # fmt: skip


@pytest.fixture(scope="module")
def raw(spark: SparkSession) -> dict[str, DataFrame]:
    draw = random.Random(5)
    start = 1_000_000_000
    rows = [
        (f"r{n:02}", f"0{draw.randrange(4)}", draw.choice("abc"), (start + draw.randrange(60)) * 1000,
         draw.randrange(1, 4), 1.0, draw.randrange(2), float(draw.randrange(9)))
        for n in range(70)
    ]  # fmt: skip
    orders = [(draw.randrange(4), (start + draw.randrange(110)) * 1000) for _ in range(9)]
    carts = [(draw.randrange(5), draw.choice("abd"), (start + draw.randrange(60)) * 1000) for _ in range(30)]
    return {
        "carts": spark.createDataFrame(carts, "who long, what string, at long"),
        "shown": spark.createDataFrame(rows, SHOWN),
        "orders": spark.createDataFrame(orders, "who long, at long"),
    }


@pytest.fixture(scope="module")
def events(raw: dict[str, DataFrame]) -> Events:
    return to_events(raw, contract())


def test_requests_get_what_the_build_gave_the_same_rows(raw: dict[str, DataFrame], events: Events) -> None:
    names = contract().behaviour_columns
    as_of = 1_000_000_070
    examples = to_examples(events, contract(), as_of)
    built = with_behaviour(examples, contract(), related=events.related)
    expected = {row["row"]: [row[name] for name in names] for row in built.collect()}
    asked = raw["shown"].drop("clicked", "dwell").withColumn("from_where", F.lit("rest"))
    made = with_features(asked, events, examples, contract())
    # One pass for items, one for users.
    assert made._jdf.queryExecution().executedPlan().toString().count("MapInArrow") == 2
    found = made.collect()
    assert {row["row"]: [row[name] for name in names] for row in found} == expected
    assert len(expected) == 70
    assert "from_where" not in made.columns
    assert {type(row["who"]) for row in found} == {int}
    for place, name in enumerate(names):
        assert len({str(values[place]) for values in expected.values()}) > 2, name


def test_rows_after_the_log_see_all_of_it_and_do_not_see_each_other(
    raw: dict[str, DataFrame], events: Events
) -> None:
    asked = raw["shown"].select(
        "who", F.lit("a").alias("what"), F.lit(2_000_000_000_000).alias("at"), "page", "price"
    )
    found = with_features(asked, events, to_examples(events, contract()), contract()).collect()
    assert {row["seen"] for row in found} == {raw["shown"].where("what = 'a'").count()}


def test_what_requests_lack_is_told_by_name(raw: dict[str, DataFrame], events: Events) -> None:
    asked = raw["shown"].drop("who", "price")
    with pytest.raises(RequestError, match=r"column 'who' is missing\n.*column 'price' is missing$"):
        with_features(asked, events, to_examples(events, contract()), contract())
    strange = raw["shown"].withColumn("at", F.when(F.col("row") != "r05", F.col("at")))
    with pytest.raises(RequestError, match=r"^requests: 1 rows have no usable value in 'at'$"):
        with_features(strange, events, to_examples(events, contract()), contract())


def test_ids_of_another_kind_are_read_as_the_events_have_them_or_refused(spark: SparkSession) -> None:
    features = {**FEATURES, "seen": {"kind": "count"}, "recent": {"kind": "history", "last": 3}}
    contract = small_contract(features=features)
    schema = "row string, who {}, what {}, at long, page int, price double, clicked int"

    def seen(log: list[Any], of: tuple[str, str], asked: tuple[Any, ...], kinds: tuple[str, str]) -> Any:
        rows = [("r1", *log[0], 100, 1, 1.0, 1), ("r2", *log[1], 200, 1, 2.0, 1)]
        events = to_events({"shown": spark.createDataFrame(rows, schema.format(*of))}, contract)
        requests = "row string, who {}, what {}, at long, page int, price string".format(*kinds)
        made = with_features(
            spark.createDataFrame([("q", *asked)], requests), events, to_examples(events, contract), contract
        )
        (row,) = made.collect()
        return row["seen"], row["price"], len(row["recent"])

    text, numbers = ("string", "string"), ("long", "decimal(38,0)")
    log: list[Any] = [("007", "012"), ("007", "013")]
    assert seen(log, text, ("007", "012", 300, 1, ""), text) == (2, None, 2)
    with pytest.raises(
        RequestError, match=r"'who' is of type bigint; expected text, .*\n.*'what' is of type bigint"
    ):
        seen(log, text, (7, 12, 300, 1, "1.5"), ("long", "int"))
    log = [(7, Decimal(12)), (7, Decimal(13))]
    assert seen(log, numbers, (" 7", "12", 300, 1, "1.5"), text) == (2, 1.5, 2)
    assert seen(log, numbers, ("7.0", "12", 300, 1, "  "), text) == (2, None, 2)
    assert seen(log, numbers, (float("nan"), 12, 300, 1, None), ("double", "int")) == (0, None, 0)
    with pytest.raises(RequestError, match=r"^requests: 1 rows have no usable value in 'who'$"):
        seen(log, numbers, ("abc", "12", 300, 1, "1.5"), text)
