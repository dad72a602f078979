"""What only rows can show of a contract stops a build, in one line with what to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from row_counts import row_counts
from small_logs import small_contract

from feature_eng.contract import Contract, ContractError
from feature_eng.events import to_events
from feature_eng.events.advice import RowCount, check_rejects
from feature_eng.events.joining import check_matches, match_counts
from feature_eng.sources.raw import read_raw

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
