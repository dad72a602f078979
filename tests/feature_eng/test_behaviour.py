"""Behaviour: strictly before the row, and nothing else."""

from __future__ import annotations

import random
from typing import Any

import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from small_logs import FEATURES, small_contract

from feature_eng.behaviour import with_behaviour
from feature_eng.contract import Contract

pytestmark = pytest.mark.spark

BEHAVIOUR: dict[str, Any] = {
    **FEATURES,
    "recent": {"kind": "history", "last": 2},
    "recent_clicked": {"kind": "history", "last": 2, "when": "click"},
    "seen": {"kind": "count"},
    "click_rate": {"kind": "rate", "task": "click", "prior": 0.5, "prior_rows": 2},
    "item_seen": {"kind": "count", "by": "item"},
}
NAMES = [name for name in BEHAVIOUR if name not in FEATURES]
CONTRACT = small_contract(features=BEHAVIOUR)
SCHEMA = (
    "row string, who long, what string, at long, page int, price double, scenario string, label__click int"
)


def examples_of(spark: SparkSession, rows: list[tuple[str, int, str, int, int]]) -> DataFrame:
    full = [(row, who, what, at, 1, None, "home", click) for row, who, what, at, click in rows]
    return spark.createDataFrame(full, SCHEMA)


def values_of(examples: DataFrame, contract: Contract = CONTRACT) -> dict[str, Row]:
    names = list(contract.behaviour_features)
    return {
        row["row"]: Row(*(row[name] for name in names))
        for row in with_behaviour(examples, contract).collect()
    }


def test_a_row_sees_what_came_strictly_before_it_newest_first(spark: SparkSession) -> None:
    examples = examples_of(
        spark,
        [
            ("first", 1, "a", 10, 1),
            ("tie 1", 1, "b", 20, 0),
            ("tie 2", 1, "c", 20, 1),
            ("later", 1, "a", 30, 1),
            ("last", 1, "d", 40, 0),
            ("other", 2, "a", 25, 0),
        ],
    )
    assert values_of(examples) == {
        "first": Row([], [], 0, 0.5, 0),
        "tie 1": Row(["a"], ["a"], 1, (1 + 1) / (1 + 2), 0),
        "tie 2": Row(["a"], ["a"], 1, (1 + 1) / (1 + 2), 0),
        "later": Row(["c", "b"], ["c", "a"], 3, (2 + 1) / (3 + 2), 2),
        "last": Row(["a", "c"], ["a", "c"], 4, (3 + 1) / (4 + 2), 0),
        "other": Row([], [], 0, 0.5, 1),
    }
    columns = with_behaviour(examples, CONTRACT).columns
    assert columns == [*examples.columns, *NAMES]


def test_planted_future_events_change_nothing(spark: SparkSession) -> None:
    draw = random.Random(7)
    rows = [
        (f"r{n}", draw.randrange(3), draw.choice("abc"), draw.randrange(30), draw.randrange(2))
        for n in range(60)
    ]
    planted = [(f"p{n}", who, what, at, 1) for n, (_, who, what, at, _) in enumerate(rows) if at >= 12]
    until = {row for row, _, _, at, _ in rows if at <= 12}
    before = values_of(examples_of(spark, rows))
    after = values_of(examples_of(spark, rows + planted))
    assert planted
    assert len(until) > 10
    assert {row: after[row] for row in until} == {row: before[row] for row in until}


def test_behaviour_equals_a_slow_loop_over_all_pairs_of_rows(spark: SparkSession) -> None:
    draw = random.Random(3)
    rows = [
        (f"r{n:02}", draw.randrange(3), draw.choice("abcd"), draw.randrange(25), draw.randrange(2))
        for n in range(80)
    ]

    def slow(row: tuple[str, int, str, int, int]) -> Row:
        mine = [other for other in rows if other[1] == row[1] and other[3] < row[3]]
        mine.sort(key=lambda other: (other[3], other[0]), reverse=True)
        clicked = [other for other in mine if other[4]]
        return Row(
            [other[2] for other in mine[:2]],
            [other[2] for other in clicked[:2]],
            len(mine),
            (len(clicked) + 1) / (len(mine) + 2),
            sum(other[2] == row[2] and other[3] < row[3] for other in rows),
        )

    assert values_of(examples_of(spark, rows)) == {row[0]: slow(row) for row in rows}


def test_behaviour_by_any_column_in_a_window_and_in_the_rows_own_scenario(spark: SparkSession) -> None:
    contract = small_contract(
        features={
            **FEATURES,
            "seen_by_price": {"kind": "count", "by": "price"},
            "recent_of_item": {"kind": "history", "of": "buyer", "by": "item", "last": 2},
            "buyer": {"kind": "categorical", "column": "who"},
            "seen_here": {"kind": "count", "per_scenario": True},
            "clicked_lately": {
                "kind": "rate",
                "task": "click",
                "prior": 0.5,
                "prior_rows": 2,
                "within": "10s",
            },
        }
    )
    rows = [
        # row, who, what, at, page, price, scenario, click
        ("a", 1, "x", 0, 1, 2.0, "home", 1),
        ("b", 1, "x", 5, 2, 2.0, "search", 1),
        ("c", 2, "x", 6, 3, None, "search", 0),
        ("d", 1, "y", 10, 3, 2.0, "search", 0),
        ("e", 1, "x", 15, 1, None, "home", 0),
    ]
    assert values_of(spark.createDataFrame(rows, SCHEMA), contract) == {
        "a": Row(0, [], 0, 0.5),
        "b": Row(1, [1], 0, 2 / 3),
        "c": Row(0, [1, 1], 0, 0.5),
        "d": Row(2, [], 1, 3 / 4),
        # What is null is like nothing else; ten seconds ago is within ten seconds.
        "e": Row(0, [2, 1], 1, 2 / 4),
    }


def test_a_label_from_a_later_table_is_seen_only_once_it_could_be_known(spark: SparkSession) -> None:
    contract = small_contract(
        source={
            "reader": "tables",
            "tables": {"shown": {"path": "x", "format": "csv"}, "orders": {"path": "y", "format": "csv"}},
        },
        tasks={"order": {"table": "orders", "join_on": ["who"], "within": 100}},
        features={
            "what": {"kind": "categorical", "column": "what"},
            "recent": {"kind": "history", "last": 9},
            "ordered": {"kind": "history", "last": 9, "when": "order"},
            "order_rate": {"kind": "rate", "task": "order", "prior": 0.5, "prior_rows": 2},
        },
    )
    schema = "row string, who long, what string, at long, page int, label__order int, known_at__order long"
    examples = spark.createDataFrame(
        [
            ("bought at 50", 1, "a", 10, 1, 1, 50),
            ("never bought", 1, "b", 20, 1, 0, 120),
            ("at 50", 1, "c", 50, 1, 0, 150),
            ("at 51", 1, "d", 51, 1, 0, 151),
            ("at 120", 1, "e", 120, 1, 0, 220),
            ("at 121", 1, "f", 121, 1, 0, 221),
        ],
        schema,
    )
    found = values_of(examples, contract)
    assert found["at 50"] == Row(["b", "a"], [], 0.5)
    assert found["at 51"] == Row(["c", "b", "a"], ["a"], 2 / 3)
    assert found["at 120"] == Row(["d", "c", "b", "a"], ["a"], 2 / 3)
    assert found["at 121"] == Row(["e", "d", "c", "b", "a"], ["a"], 2 / 4)


def test_without_behaviour_the_examples_stay_as_they_are(spark: SparkSession) -> None:
    contract = small_contract(features=BEHAVIOUR, behaviour=False)
    examples = examples_of(spark, [("a", 1, "a", 1, 1)])
    assert with_behaviour(examples, contract).collect() == examples.collect()
