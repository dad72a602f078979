"""Behaviour told by other tables than the impressions: equal to a slow loop, refused by name where it cannot be."""

from __future__ import annotations

import random
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from row_counts import row_counts
from small_logs import FEATURES, small_contract

from feature_eng.behaviour import check_told, with_behaviour
from feature_eng.contract import Contract, ContractError
from feature_eng.events import Events, to_events
from feature_eng.events.quiet import quiet_tables
from feature_eng.examples import to_examples
from feature_eng.later_rows import check_matches

SHOWN = "row string, who long, what string, at long, page int, price double, clicked int"
CARTS = "who string, what string, at long, page int"
SEARCHES = "who long, searched_at long"
TABLES = {name: {"path": name, "format": "parquet"} for name in ("shown", "carts", "searches")}
TOLD: dict[str, Any] = {
    "carted": {"kind": "history", "of": "item", "table": "carts", "last": 2, "within": "8s"},
    "searched": {"kind": "count", "table": "searches", "time": "searched_at"},
    "item_carts": {"kind": "count", "table": "carts", "by": "item", "within": 5},
    "carts_here": {"kind": "count", "table": "carts", "per_scenario": True},
    "touched": {"kind": "history", "table": ["shown", "carts"], "last": 4, "ages": True, "kinds": True},
    "liked_or_carted": {"kind": "history", "table": ["carts", "shown"], "last": 3, "when": "click"},
    "seen": {"kind": "count"},
}


def contract_of(**features: Any) -> Contract:
    source = {
        "tables": {**TABLES, "carts": {**TABLES["carts"], "types": {"who": "integer"}}},
        "main": "shown",
    }
    return small_contract(source=source, features={**FEATURES, **(features or TOLD)})


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[tuple[Any, ...]]]:
    draw = random.Random(11)
    shown = [
        (f"r{n:02}", draw.randrange(4), draw.choice("abc"), 100 + draw.randrange(25), draw.randrange(1, 4), 1.0,
         draw.randrange(2))
        for n in range(60)
    ]  # fmt: skip
    carts = [
        (f" {draw.randrange(4)}", draw.choice("abd"), 95 + draw.randrange(30), draw.randrange(1, 4))
        for _ in range(40)
    ]
    searches = [(draw.randrange(5), 95 + draw.randrange(30)) for _ in range(30)]
    return {"shown": shown, "carts": carts, "searches": searches}


@pytest.fixture(scope="module")
def raw(spark: SparkSession, drawn: dict[str, list[tuple[Any, ...]]]) -> dict[str, DataFrame]:
    schemas = {"shown": SHOWN, "carts": CARTS, "searches": SEARCHES}
    return {name: spark.createDataFrame(rows, schemas[name]) for name, rows in drawn.items()}


def slow(row: tuple[Any, ...], drawn: dict[str, list[tuple[Any, ...]]]) -> dict[str, Any]:
    """What a row may know, by looking at all rows of all tables."""
    _, who, what, at, page, *_ = row
    # Of one second rows of the other table are the newer, then the greater key or item.
    shown = [
        (other[3], 0, other[0], other[2], other[6]) for other in drawn["shown"] if other[1] == who and other[3] < at
    ]  # fmt: skip
    carts = [
        (other[2], 1, other[1], other[1], 1)
        for other in drawn["carts"]
        if int(other[0]) == who and other[2] < at
    ]
    both = sorted(shown + carts, reverse=True)
    recent = [cart for cart in sorted(carts, reverse=True) if cart[0] >= at - 8]
    return {
        "carted": [item for *_, item, _ in recent[:2]],
        "searched": sum(other[0] == who and other[1] < at for other in drawn["searches"]),
        "item_carts": sum(other[1] == what and at - 5 <= other[2] < at for other in drawn["carts"]),
        "carts_here": sum(
            int(other[0]) == who and other[2] < at and (other[3] == 1) == (page == 1)
            for other in drawn["carts"]
        ),
        "touched": [item for *_, item, _ in both[:4]],
        "touched__ages": [at - then for then, *_ in both[:4]],
        "touched__kinds": [("shown", "carts")[table] for _, table, *_ in both[:4]],
        "liked_or_carted": [item for *_, item, counts in both if counts][:3],
        "seen": len(shown),
    }


def computed(rows: DataFrame) -> DataFrame:
    return rows.sparkSession.createDataFrame(rows.toArrow())


@pytest.mark.spark
def test_what_other_tables_tell_equals_a_slow_loop_over_all_rows(
    raw: dict[str, DataFrame], drawn: dict[str, list[tuple[Any, ...]]], capsys: pytest.CaptureFixture[str]
) -> None:
    contract = contract_of()
    events = to_events(raw, contract)
    assert row_counts(raw, events, contract) == {
        "shown": (60, 60, 0),
        "carts": (40, 40, 0),
        "searches": (30, 30, 0),
    }
    examples = computed(to_examples(events, contract))
    related = {name: computed(rows) for name, rows in events.related.items()}
    expected = {row[0]: slow(row, drawn) for row in drawn["shown"]}
    built = computed(with_behaviour(examples, contract, related=related))
    names = contract.behaviour_columns
    assert {row["row"]: {name: row[name] for name in names} for row in built.collect()} == expected
    for name in names:
        assert len({str(row[name]) for row in expected.values()}) > 2, name
    check_told(built, events, contract)
    # A join that matches few rows is seen.
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name in ("carted", "searched"):
        told = sum(bool(row[name]) for row in expected.values())
        assert [name, contract.features[name].table[0], str(told), str(60 - told)] in lines


@pytest.mark.spark
def test_a_table_that_tells_nothing_stops_the_build_by_name(raw: dict[str, DataFrame]) -> None:
    contract = contract_of(
        carted={"kind": "count", "table": "carts"},
        searched={"kind": "count", "table": "searches", "time": "searched_at", "within": 1},
        touched={"kind": "history", "table": ["shown", "carts"], "last": 4},
    )

    empty = "carted long, searched long, touched array<string>"
    told_nothing = raw["shown"].sparkSession.createDataFrame([(0, 0, ["a"])], empty)

    def faults(carts: DataFrame, searches: DataFrame) -> list[str]:
        events = to_events({**raw, "carts": carts, "searches": searches}, contract)
        with pytest.raises(ContractError) as caught:
            check_told(told_nothing, events, contract)
        return caught.value.faults

    strangers = raw["carts"].limit(1).withColumn("who", F.lit("77"))
    early = (
        raw["searches"].limit(1).select(F.lit(1).cast("long").alias("who"), F.lit(50).alias("searched_at"))
    )
    stranger, far = faults(strangers, early)
    assert stranger.startswith(
        "features.carted, features.touched: none of 1 rows of 'carts' has the who of an impression; there are bigint "
    )
    assert stranger.endswith(" in 'shown' and bigint 77 in 'carts'")
    assert far == (
        "features.searched: no row of 'searches' lies within 1 s before a row of equal who; expected another "
        "'within', or times read in another way"
    )
    late = (
        raw["searches"].limit(1).select(F.lit(1).cast("long").alias("who"), F.lit(500).alias("searched_at"))
    )
    none, after = faults(strangers.where("false"), late)
    assert none == (
        "features.carted, features.touched: 'carts' has no rows that can be used, so that every row would be told "
        "nothing"
    )
    assert after.startswith(
        "features.searched: every row of 'searches' comes after the last impression of equal who"
    )


@pytest.mark.spark
def test_a_table_without_rows_may_be_to_come_and_one_of_rejects_alone_is_a_mistake(
    raw: dict[str, DataFrame], capsys: pytest.CaptureFixture[str]
) -> None:
    order = {"table": "orders", "join_on": ["who"], "within": 5, "time": "searched_at"}
    tables = {**TABLES, "orders": {"path": "orders", "format": "parquet"}}
    told = {
        "carted": {"kind": "count", "table": "carts"},
        "touched": {"kind": "count", "table": ["shown", "carts"]},
    }
    contract = small_contract(
        source={"tables": tables, "main": "shown"},
        tasks={"click": {"column": "clicked", "equals": 1}, "order": order},
        features={**FEATURES, **told},
    )
    carts = raw["carts"].withColumn("who", F.col("who").cast("long"))
    none = {"carts": carts.where("false"), "orders": raw["searches"].where("false")}
    examples = raw["shown"].sparkSession.createDataFrame([(0, 1)], "carted long, touched long")
    events = to_events({**raw, **none}, contract)
    quiet = quiet_tables(events, contract)
    assert quiet == {"carts", "orders"}
    assert capsys.readouterr().out == (
        "events    'carts' has no rows yet, which tell features.carted, features.touched\n"
        "events    'orders' has no rows yet, which tell tasks.order\n"
    )
    check_told(examples, events, contract, quiet)
    check_matches(events, [], contract, quiet)
    with pytest.raises(ContractError, match="'orders' has no rows that can be used"):
        check_matches(events, [], contract)
    rejected = {**none, "carts": carts.withColumn("at", F.lit("soon"))}
    assert quiet_tables(to_events({**raw, **rejected}, contract), contract) == {"orders"}


@pytest.mark.spark
def test_a_history_of_a_column_without_values_stops_the_build_by_name(raw: dict[str, DataFrame]) -> None:
    contract = contract_of(
        query={"kind": "categorical", "column": "query"},
        queries={
            "kind": "history", "of": "query", "table": "searches", "time": "searched_at", "last": 2,
        },
    )  # fmt: skip
    spark = raw["shown"].sparkSession
    searches = spark.createDataFrame([(1, 90, None)], "who long, searched_at long, query string")
    shown = spark.createDataFrame([("r", 1, "a", 100, 1, 1.0, 1, "hat")], f"{SHOWN}, query string")
    events = to_events({**raw, "shown": shown, "searches": searches}, contract)
    built = with_behaviour(to_examples(events, contract), contract, related=events.related)
    with pytest.raises(ContractError) as caught:
        check_told(built, events, contract)
    assert caught.value.faults == [
        "features.queries: no row of 'searches' before a row of equal who has a value in 'query'; expected another "
        "column, or its values read in another way"
    ]


@pytest.mark.spark
def test_an_id_with_a_fraction_is_not_the_whole_number_below_it(raw: dict[str, DataFrame]) -> None:
    spark = raw["shown"].sparkSession
    contract = contract_of(
        hour={"kind": "numeric", "column": "page"},
        by_page={"kind": "count", "table": "searches", "time": "searched_at", "by": "page"},
    )
    searches = spark.createDataFrame([(1.0, 90), (1.5, 90), (2.0, 90)], "page double, searched_at long")
    shown = spark.createDataFrame([("r", 1, "a", 100, 1, 1.0, 1)], SHOWN)
    events = to_events({**raw, "shown": shown, "searches": searches}, contract)
    built = with_behaviour(to_examples(events, contract), contract, related=events.related)
    assert built.first()["by_page"] == 1


@pytest.mark.spark
def test_columns_and_rows_that_cannot_tell_are_refused_by_name(raw: dict[str, DataFrame]) -> None:
    def faults(**changed: DataFrame) -> list[str]:
        with pytest.raises(ContractError) as caught:
            to_events({**raw, **changed}, contract_of())
        return caught.value.faults

    assert faults(carts=raw["carts"].withColumnRenamed("what", "product"), searches=raw["searches"].drop("who")) == [
        f"features.{name}: the table {table!r} has no column {column!r}; a column of it that means the same takes "
        f"the name by source.tables.{table}.rename"
        for table, name, column in (
            ("carts", "carted.of", "what"), ("carts", "item_carts.by", "what"), ("carts", "touched.of", "what"),
            ("carts", "liked_or_carted.of", "what"), ("searches", "searched.by", "who"),
        )
    ]  # fmt: skip
    assert faults(searches=raw["searches"].withColumn("who", F.col("who").cast("string"))) == [
        "features.searched.by: column 'who' is string in 'searches' and bigint in 'shown'; say "
        "source.tables.searches.types: {who: integer}, or string of shown"
    ]
    carts = raw["carts"].limit(1)
    odd = carts.withColumn("who", F.lit(" ")).unionByName(carts.withColumn("page", F.lit(9)))
    odd = odd.unionByName(carts.withColumn("at", F.lit(None).cast("long")))
    events: Events = to_events({**raw, "carts": raw["carts"].unionByName(odd)}, contract_of())
    assert {row["reason"] for row in events.rejects.collect()} == {
        "null who", "unknown scenario in page", "null at",
    }  # fmt: skip
    assert events.related["carts"].count() == 40


@pytest.mark.parametrize(
    ("feature", "fault"),
    [
        (
            {"kind": "rate", "task": "click", "table": "carts"},
            r"a rate is of a task's labels, which impressions alone",
        ),
        (
            {"kind": "count", "table": "cart"},
            r"features\.x\.table: no table is called 'cart'; .* did you mean 'carts'",
        ),
        ({"kind": "count", "table": ["carts", "carts"]}, r"features\.x\.table: names 'carts' twice"),
        (
            {"kind": "history", "last": 2, "when": "click", "table": "carts"},
            r"features\.x\.when: labels are of imp",
        ),
        (
            {"kind": "history", "last": 2, "table": "carts", "kinds": True},
            r"'kinds' tells tables apart; exp",
        ),
        ({"kind": "count", "time": "at"}, r"features\.x\.time: goes with 'table'"),
        (
            {"kind": "count", "table": ["carts", "searches"], "time": "at"},
            r"features\.x\.time: is of one table",
        ),
    ],
)
def test_what_another_table_cannot_tell_is_a_fault_of_the_contract(
    feature: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ContractError, match=fault):
        contract_of(x=feature)


def test_one_table_has_one_time() -> None:
    searched = {"kind": "count", "table": "searches", "time": "searched_at"}
    both = contract_of(x=searched, y={"kind": "count", "table": "searches", "by": "item"})
    assert both.related_times["searches"].column == "searched_at"
    with pytest.raises(ContractError, match=r"features\.y\.time: 'searches' has two time columns.*'at'"):
        contract_of(x=searched, y={**searched, "time": "at"})
    assert contract_of(x={"kind": "count", "table": "shown"}).related_times == {}
