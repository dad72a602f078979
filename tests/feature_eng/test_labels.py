"""Labels that are not there, or not yet; what they wait for; and that nothing of later times shows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pyspark.sql import Row, SparkSession
from small_logs import FEATURES, small_contract

from feature_eng.behaviour import with_behaviour
from feature_eng.contract import Contract
from feature_eng.data_end import Extent, data_end, extents, remarks
from feature_eng.events import Events, to_events
from feature_eng.examples import to_examples
from feature_eng.split import with_split

pytestmark = pytest.mark.spark

SOURCE = {
    "reader": "tables",
    "tables": {"shown": {"path": "x", "format": "csv"}, "orders": {"path": "y", "format": "csv"}},
}
ORDER: dict[str, Any] = {"table": "orders", "join_on": ["who"], "within": 100}
SHOWN = "row string, who long, what string, at long, page int, price double, clicked int, dwell double"
ORDERS = "who long, at long, amount double"


def shown(
    row: str, at: int, who: int = 1, clicked: int | None = 1, dwell: float | None = 5.0, page: int = 1
) -> Row:
    return Row(row, who, "a", at, page, 1.0, clicked, dwell)


def labels_of(
    spark: SparkSession,
    contract: Contract,
    rows: list[Row],
    orders: list[tuple[int, int, float | None]] = [],  # noqa: B006
    as_of: int | None = None,
) -> dict[str, Row]:
    raw = {"shown": spark.createDataFrame(rows, SHOWN)}
    if any(task.table for task in contract.tasks.values()):
        raw["orders"] = spark.createDataFrame(orders, ORDERS)
    events = to_events(raw, contract)
    examples = to_examples(events, contract, as_of)
    wanted = [name for name in examples.columns if name.startswith(("label__", "known_at__", "is_mature"))]
    return {row["row"]: Row(*(row[name] for name in wanted)) for row in examples.collect()}


def test_a_null_is_label_0_or_a_reject_or_no_label_as_the_task_says(spark: SparkSession) -> None:
    raw = {"shown": spark.createDataFrame([shown("null", 1, clicked=None), shown("one", 2)], SHOWN)}
    for null_is, found in ((0, 0), ("missing", None)):
        task = {"column": "clicked", "equals": 1, "null_is": null_is}
        contract = small_contract(tasks={"click": task})
        events = to_events(raw, contract)
        rows = {row["row"]: row["label__click"] for row in to_examples(events, contract).collect()}
        assert rows == {"null": found, "one": 1}
        assert events.rejects.count() == 0
    contract = small_contract()
    events = to_events(raw, contract)
    assert [row["reason"] for row in events.rejects.collect()] == ["null clicked"]
    assert [row["row"] for row in to_examples(events, contract).collect()] == ["one"]


def test_a_task_has_labels_only_in_its_scenarios(spark: SparkSession) -> None:
    tasks = {
        "click": {"column": "clicked", "equals": 1},
        "long": {"column": "dwell", "at_least": 5, "scenarios": ["search"]},
    }
    found = labels_of(spark, small_contract(tasks=tasks), [shown("home", 1), shown("search", 2, page=2)])
    assert found == {"home": Row(1, None), "search": Row(1, 1)}


def test_an_open_window_has_no_label_and_its_row_is_in_no_split_even_where_a_1_came_early(
    spark: SparkSession,
) -> None:
    contract = small_contract(
        source=SOURCE, tasks={"order": ORDER}, split={"method": "time", "fractions": [0.5, 0.5, 0]}
    )
    rows = [
        shown("closed", 0),
        shown("closed at the end", 100, who=2),
        shown("open", 101, who=3),
        shown("early", 150, who=4),
        shown("end", 200, who=5),
    ]
    orders = [(1, 50, 1.0), (4, 160, 1.0)]
    assert labels_of(spark, contract, rows, orders) == {
        "closed": Row(1, 50, True),
        "closed at the end": Row(0, 200, True),
        "open": Row(None, 201, False),
        "early": Row(1, 160, False),
        "end": Row(None, 300, False),
    }
    events = to_events(
        {"shown": spark.createDataFrame(rows, SHOWN), "orders": spark.createDataFrame(orders, ORDERS)},
        contract,
    )
    parted = with_split(to_examples(events, contract), contract)
    assert {row["row"]: row["split"] for row in parted.collect()} == {
        "closed": "train", "closed at the end": "validation",
        "open": "immature", "early": "immature", "end": "immature",
    }  # fmt: skip
    assert "is_mature" not in parted.columns


def test_the_data_end_where_as_of_says_and_nothing_later_makes_a_label(spark: SparkSession) -> None:
    tasks = {
        "click": {"column": "clicked", "equals": 1},
        "order": ORDER,
        "long": {"column": "dwell", "at_least": 5, "known_after": "dwell"},
    }
    contract = small_contract(source=SOURCE, tasks=tasks)
    rows = [shown("a", 0, who=1), shown("b", 40, who=2, dwell=70.0), shown("c", 141, who=3)]
    orders = [(1, 99, 1.0), (2, 140, 1.0), (3, 150, 1.0)]
    assert labels_of(spark, contract, rows, orders, as_of=139) == {
        "a": Row(1, 1, 1, 99, 5, True),
        "b": Row(1, None, 1, 140, 110, False),
        "c": Row(None, None, None, 241, 146, False),
    }
    assert labels_of(spark, contract, rows, orders, as_of=109)["b"] == Row(1, None, None, 140, 110, False)
    assert labels_of(spark, contract, rows, orders, as_of=140)["b"] == Row(1, 1, 1, 140, 110, True)


def test_a_label_of_the_row_itself_waits_as_long_as_it_is_told_to(spark: SparkSession) -> None:
    task = {"column": "clicked", "equals": 1, "known_after": "1m"}
    rows = [
        shown("closed", 0),
        shown("at the end", 40, who=2, clicked=0),
        shown("open", 41, who=3),
        shown("end", 100, who=4),
    ]
    assert labels_of(spark, small_contract(tasks={"click": task}), rows) == {
        "closed": Row(1, 60, True),
        "at the end": Row(0, 100, True),
        "open": Row(None, 101, False),
        "end": Row(None, 160, False),
    }


def test_a_dwell_that_stands_in_the_log_is_a_label_but_known_only_when_it_has_ended(
    spark: SparkSession,
) -> None:
    task = {"column": "dwell", "at_least": 30, "known_after": "dwell", "null_is": 0}
    contract = small_contract(
        tasks={"long": task},
        features={**FEATURES, "rate": {"kind": "rate", "task": "long", "prior": 0.5, "prior_rows": 2}},
    )
    rows = [
        shown("long", 10, dwell=60.5), shown("unknown", 11, dwell=None), shown("at 71", 71, dwell=0.0),
        shown("at 72", 72, dwell=9.0),
    ]  # fmt: skip
    assert labels_of(spark, contract, rows) == {
        "long": Row(1, 71), "unknown": Row(0, None), "at 71": Row(0, 71), "at 72": Row(0, 81),
    }  # fmt: skip
    events = to_events({"shown": spark.createDataFrame(rows, SHOWN)}, contract)
    examples = with_behaviour(with_split(to_examples(events, contract), contract), contract)
    rates = {row["row"]: row["rate"] for row in examples.collect()}
    # A label whose time nobody knows is never seen; one second after its end the long one is.
    assert rates == {"long": 0.5, "unknown": 0.5, "at 71": 0.5, "at 72": (1 + 1) / (2 + 2)}


def test_a_duration_below_0_and_one_that_is_no_number_are_rejects(spark: SparkSession) -> None:
    contract = small_contract(tasks={"click": {"column": "clicked", "equals": 1, "known_after": "dwell"}})
    rows = [
        shown("good", 1),
        shown("none", 2, dwell=None),
        shown("bad", 3, dwell=-1.0),
        shown("inf", 4, dwell=float("inf")),
    ]
    events = to_events({"shown": spark.createDataFrame(rows, SHOWN)}, contract)
    assert sorted(row["reason"] for row in events.rejects.collect()) == [
        "bad duration in dwell",
        "unparsable dwell",
    ]
    assert sorted(row["row"] for row in events.impressions.collect()) == ["good", "none"]


def test_an_order_counts_for_every_impression_or_the_first_or_the_last_one(spark: SparkSession) -> None:
    rows = [
        shown("too early", 9),
        shown("first", 10),
        shown("tie a", 60),
        shown("tie b", 60),
        shown("after", 111),
        shown("end", 300, who=2),
    ]
    orders = [(1, 110, 1.0), (1, 110, 1.0)]
    found = {}
    for attribution in ("every", "first", "last"):
        contract = small_contract(source=SOURCE, tasks={"order": {**ORDER, "attribution": attribution}})
        labels = labels_of(spark, contract, rows, orders)
        found[attribution] = sorted(row for row, (label, *_) in labels.items() if label == 1)
    assert found == {"every": ["first", "tie a", "tie b"], "first": ["first"], "last": ["tie b"]}


def test_a_sum_over_the_window_is_compared_and_known_when_the_window_has_closed(spark: SparkSession) -> None:
    task = {**ORDER, "sum": "amount", "at_least": 30, "attribution": "last"}
    contract = small_contract(source=SOURCE, tasks={"spent": task})
    rows = [
        shown("ten", 0),
        shown("thirty", 50),
        shown("none", 60, who=2),
        shown("open", 301, who=3),
        shown("end", 400, who=4),
    ]
    orders = [
        (1, 40, 10.0),
        (1, 60, 20.0),
        (1, 60, 20.0),
        (1, 150, -10.0),
        (1, 151, 99.0),
        (3, 302, 99.0),
        (2, 70, None),
    ]
    assert labels_of(spark, contract, rows, orders) == {
        "ten": Row(0, 100, True),
        "thirty": Row(1, 150, True),
        "none": Row(0, 160, True),
        "open": Row(None, 401, False),
        "end": Row(None, 500, False),
    }


BEHAVIOUR: dict[str, Any] = {
    **FEATURES,
    "recent": {"kind": "history", "last": 3},
    "ordered": {"kind": "history", "last": 3, "when": "order"},
    "order_rate": {"kind": "rate", "task": "order"},
    "long_rate": {"kind": "rate", "task": "long"},
    "seen": {"kind": "count", "by": "item"},
}


LOG = [shown(f"r{n:02}", 17 * n, who=n % 3, dwell=float(n * 13 % 70)) for n in range(40)]
BOUGHT = [(n % 3, 17 * n + 30, 1.0) for n in range(0, 34, 4)]
AS_OF = 17 * 39


def built(spark: SparkSession, rows: list[Row], orders: list[Any]) -> dict[str, Row]:
    """Examples of a log with its behaviour, by row."""
    tasks = {"order": ORDER, "long": {"column": "dwell", "at_least": 30, "known_after": "dwell"}}
    contract = small_contract(
        source=SOURCE, tasks=tasks, features=BEHAVIOUR, split={"method": "time", "fractions": [0.6, 0.2, 0.2]}
    )
    raw = {"shown": spark.createDataFrame(rows, SHOWN), "orders": spark.createDataFrame(orders, ORDERS)}
    examples = to_examples(to_events(raw, contract), contract, AS_OF)
    return {row["row"]: row for row in with_behaviour(with_split(examples, contract), contract).collect()}


@pytest.fixture(scope="module")
def before(spark: SparkSession) -> dict[str, Row]:
    """Examples of the log with nothing planted."""
    return built(spark, LOG, BOUGHT)


@pytest.mark.parametrize("planted", ["event", "open window", "dwell"])
def test_what_is_planted_later_changes_no_feature_and_no_label_of_earlier_rows(
    spark: SparkSession, before: dict[str, Row], planted: str
) -> None:
    moment = 400
    later_rows, later_orders = list(LOG), list(BOUGHT)
    if planted == "event":
        later_rows += [shown(f"p{n}", moment + n, who=n % 3) for n in range(5)]
    elif planted == "open window":
        later_rows.append(shown("p", AS_OF - 1, who=0))
        later_orders += [(who, AS_OF + 1, 1.0) for who in range(3)]
    else:
        # As if the dwell of a row before the moment had turned out longer: known only after it.
        place = next(n for n, row in enumerate(LOG) if row[3] > moment - 60 and row[7] + row[3] > moment)
        later_rows[place] = Row(*LOG[place][:7], 500.0)

    after = built(spark, later_rows, later_orders)
    until = AS_OF - 2 if planted == "open window" else moment
    changed = set()
    for name, row in before.items():
        if row["at"] > until:
            continue
        # The row whose own dwell was changed has a label of its own that says so.
        own = ("label__long", "known_at__long") if planted == "dwell" else ()
        same = [column for column in row.asDict() if column not in ("split", *own)]
        if any(row[column] != after[name][column] for column in same):
            changed.add(name)
    assert not changed
    assert sum(row["at"] <= until for row in before.values()) > 20
    assert before["r30"]["order_rate"] is not None
    assert {row["split"] for row in before.values()} == {"train", "validation", "test", "immature"}
    # The plant is no blank: where later rows are there to see it, they do.
    if planted != "open window":
        assert any(row != after[name] for name, row in before.items() if row["at"] > until)


def test_a_null_where_the_task_is_not_rejects_no_row(spark: SparkSession) -> None:
    tasks = {
        "click": {"column": "clicked", "equals": 1},
        "long": {"column": "dwell", "at_least": 5, "scenarios": ["search"]},
    }
    rows = [
        shown("home", 1, dwell=None), shown("search", 2, page=2), shown("unknown", 3, page=2, dwell=None),
        shown("no page", 4, page=9, dwell=None),
    ]  # fmt: skip
    events = to_events({"shown": spark.createDataFrame(rows, SHOWN)}, small_contract(tasks=tasks))
    rejects = {json.loads(row["row"])["row"]: row["reason"] for row in events.rejects.collect()}
    assert rejects == {"unknown": "null dwell", "no page": "null dwell"}
    assert labels_of(spark, small_contract(tasks=tasks), rows) == {"home": Row(1, None), "search": Row(1, 1)}


def test_a_label_and_a_feature_of_one_table_have_the_time_that_either_names(spark: SparkSession) -> None:
    # The orders have no column of the impressions' time.
    orders = spark.createDataFrame([(1, 50)], "who long, ordered_at long")
    order = {"table": "orders", "join_on": ["who"], "within": 100}
    features = {**FEATURES, "orders": {"kind": "count", "table": "orders", "time": "ordered_at"}}
    contract = small_contract(source=SOURCE, tasks={"order": order}, features=features)
    raw = {"shown": spark.createDataFrame([shown("one", 1), shown("end", 400)], SHOWN), "orders": orders}
    found = to_examples(to_events(raw, contract), contract).collect()
    assert {row["row"]: row["label__order"] for row in found} == {"one": 1, "end": None}


def test_a_labels_table_that_ends_long_before_the_data_is_said(spark: SparkSession) -> None:
    contract = small_contract(source=SOURCE, tasks={"order": ORDER})
    rows = [shown(f"r{at}", at) for at in range(0, 10_000, 100)]
    said = {}
    for last in (5_000, 9_800):
        orders = [(1, at, 1.0) for at in range(0, last + 1, 50)]
        raw = {"shown": spark.createDataFrame(rows, SHOWN), "orders": spark.createDataFrame(orders, ORDERS)}
        found = extents(to_events(raw, contract), contract)
        assert found == {"shown": Extent(100, 0, 9_900), "orders": Extent(len(orders), 0, last)}
        assert data_end(found) == 9_900
        said[last] = list(remarks(found, contract))
    end = "data end  1970-01-01 02:45:00 UTC, with the last row of 'shown': later labels are not known"
    assert said[9_800] == [end]
    assert said[5_000][0] == end
    assert "the last row of 'orders' is of 1970-01-01 01:23:20 UTC" in said[5_000][1]
    assert "labels 'order' of later rows are wrongly 0" in said[5_000][1]
    # A few rows far apart are silent for as long by chance.
    assert len(list(remarks({**found, "orders": Extent(3, 0, 5_000)}, contract))) == 1
    assert extents(Events(None, {}, None), small_contract()) == {}  # type: ignore[arg-type]
