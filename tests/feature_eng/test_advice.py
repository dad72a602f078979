"""What only rows can show of a contract stops a build, in one line with what to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from row_counts import row_counts
from small_logs import small_contract

from feature_eng.cells import count_cells
from feature_eng.contract import Contract, ContractError
from feature_eng.events import to_events
from feature_eng.events.advice import RowCount, check_rejects
from feature_eng.events.joining import check_matches, match_counts
from feature_eng.examples import to_examples
from feature_eng.later_rows import check_matches as check_label_matches
from feature_eng.sources.raw import read_raw
from feature_eng.split import with_split

pytestmark = pytest.mark.spark

HEADER = "row,who,what,at,page,clicked,price\n"
GOOD = "r1,1,a,100,1,1,2\n"


def judged(spark: SparkSession, folder: Path, text: str, **table: Any) -> None:
    (folder / "shown.csv").write_text(text)
    contract = small_contract(source={"tables": {"shown": {"path": "shown.csv", "format": "csv", **table}}})
    raw = read_raw(spark, contract, str(folder))
    events = to_events(raw, contract)
    counts = {name: RowCount(*count) for name, count in row_counts(raw, events, contract).items()}
    reasons = events.rejects.groupBy("table", "reason").agg(F.count("*").alias("rows")).collect()
    check_rejects(counts, reasons, events.rejects, contract)


def test_a_line_break_within_quotes_stops_the_build_unless_it_was_spoken_of(
    spark: SparkSession, tmp_path: Path
) -> None:
    broken = HEADER + GOOD + 'r2,1,"a\nb",100,1,1,2\n'
    with pytest.raises(
        ContractError, match=r"tables\.shown: a record ends within quotes.*write multi_line: true"
    ):
        judged(spark, tmp_path, broken)
    judged(spark, tmp_path, broken, multi_line=True)
    judged(spark, tmp_path, broken, multi_line=False)
    judged(spark, tmp_path, HEADER + GOOD + "r2,too short\n")


def test_a_table_of_which_nothing_can_be_used_stops_the_build(spark: SparkSession, tmp_path: Path) -> None:
    rows = "r1,1,a,20240115,1,1,2\nr2,1,a,20240116,1,1,2\nr3,,a,100,1,1,2\n"
    with pytest.raises(ContractError) as caught:
        judged(spark, tmp_path, HEADER + rows)
    assert caught.value.faults == [
        "source: none of the 3 rows of 'shown' can be used (2: bad time in at: a date as a number; "
        "write time: {column: at, format: yyyyMMdd}; 1: null who)"
    ]
    with pytest.raises(ContractError, match="source: 'shown' holds no rows"):
        judged(spark, tmp_path, HEADER)


def side_contract() -> Contract:
    tables = {name: {"path": f"{name}.csv", "format": "csv"} for name in ("shown", "users")}
    return small_contract(
        source={"tables": tables, "join": [{"table": "users", "on": "who"}]},
        features={"city": {"kind": "categorical", "column": "city"}},
    )


def test_a_side_table_in_which_no_row_is_found_stops_the_build(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "shown.csv").write_text(HEADER + GOOD + "r2,2,a,100,1,1,2\n")
    contract = side_contract()
    for users, expected in (
        ("who,city\n1,Bonn\nu2,Rome\n", (1, 2)),
        ("who,city\nu1,Bonn\nu2,Rome\n", (0, 2)),
    ):
        (tmp_path / "users.csv").write_text(users)
        raw = read_raw(spark, contract, str(tmp_path))
        events = to_events(raw, contract)
        counts = match_counts(events.impressions)
        assert counts == {"users": expected}
        if expected[0]:
            check_matches(counts, raw, contract)
    with pytest.raises(ContractError) as caught:
        check_matches(counts, raw, contract)
    assert caught.value.faults == [
        "source.join.0: none of 2 rows found a row of 'users' by who; "
        "there are string '1'; '2' in 'shown' and string 'u1'; 'u2' in 'users'"
    ]


ORDERED = "who string, what string, at bigint, amount double"


def check_orders(spark: SparkSession, orders: list[tuple[str | None, str, int, float]], **rule: Any) -> None:
    """Two impressions, at 100 and 200 s, and orders: labels made, counted and held against the tables."""
    shown = "row string, who bigint, what string, at bigint, page int, price double"
    rows = [("r1", 1, "a", 100, 1, 1.0), ("r2", 2, "b", 200, 2, 1.0)]
    tables = {name: {"path": name, "format": "json"} for name in ("shown", "orders")}
    task = {"table": "orders", "join_on": ["who", "what"], "within": "1m", **rule}
    contract = small_contract(source={"tables": tables}, tasks={"order": task})
    raw = {"shown": spark.createDataFrame(rows, shown), "orders": spark.createDataFrame(orders, ORDERED)}
    events = to_events(raw, contract)
    parted = with_split(to_examples(events, contract, as_of=10_000), contract)
    check_label_matches(events, count_cells(parted, contract)[0], contract)


def test_a_table_of_labels_of_which_no_row_counts_stops_the_build(spark: SparkSession) -> None:
    check_orders(spark, [("1", "a", 160, 1.0)])
    faults = []
    for orders, rule in (
        ([("u1", "a", 160, 1.0)], {}),
        ([("1", "a", 161, 1.0), ("2", "b", 150, 1.0)], {}),
        ([(None, "a", 160, 1.0)], {}),
        # A sum over nothing meets this: every label would be 1.
        ([("1", "b", 160, 1.0)], {"sum": "amount", "at_least": 0}),
    ):
        with pytest.raises(ContractError) as caught:
            check_orders(spark, orders, **rule)
        faults += caught.value.faults
    assert faults == [
        "tasks.order: none of 1 rows of 'orders' belongs to an impression by who, what; "
        "there are bigint, string 1, 'a'; 2, 'b' in 'shown' and string, string 'u1', 'a' in 'orders'",
        "tasks.order: no row of 'orders' lies within 60 s after an impression of equal who, what; of 2 such pairs "
        "the row comes -50 to 61 s after the impression; expected another 'within', or times read in another way",
        "tasks.order: 'orders' has no rows that can be used, so that every label would be 0",
        "tasks.order: none of 1 rows of 'orders' belongs to an impression by who, what; "
        "there are bigint, string 1, 'a'; 2, 'b' in 'shown' and string, string '1', 'b' in 'orders'",
    ]


def test_orders_that_count_but_make_no_label_1_do_not_stop_the_build(spark: SparkSession) -> None:
    check_orders(spark, [("1", "a", 160, 1.0)], sum="amount", at_least=5)
