"""Shaping tables at the scan: where, select, several paths, partitions, and how times are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyspark.sql import SparkSession
from row_counts import row_counts
from small_logs import small_contract

from feature_eng.contract import ContractError, Source, to_contract
from feature_eng.events import to_events
from feature_eng.examples import to_examples
from feature_eng.sources.faults import as_user_errors
from feature_eng.sources.lineage import described
from feature_eng.sources.raw import read_raw
from feature_eng.sources.tables import places_of

pytestmark = pytest.mark.spark

WHAT = {"what": {"kind": "categorical", "column": "what"}}
ROWS = [
    {
        "row": "r1",
        "who": 1,
        "what": "a",
        "at": 100,
        "page": 1,
        "clicked": 1,
        "geo": {"city": "Bonn"},
        "tags": ["x"],
    },
    {"row": "r2", "who": 2, "what": "b", "at": 200, "page": 2, "clicked": 0, "geo": None, "tags": None},
    {
        "row": "r3",
        "who": 1,
        "what": "a",
        "at": 7500,
        "page": 3,
        "clicked": 1,
        "geo": {"city": "Rome"},
        "tags": [],
    },
]


def contract_over(table: dict[str, Any], **sections: Any) -> Any:
    return small_contract(**{"features": WHAT, "source": {"tables": {"shown": table}}, **sections})


def write_json(folder: Path, rows: list[dict[str, Any]] = ROWS) -> dict[str, Any]:
    (folder / "shown.json").write_text("\n".join(json.dumps(row) for row in rows))
    return {"path": "shown.json", "format": "json"}


def faults_of(spark: SparkSession, contract: Any, folder: Path) -> list[str]:
    with pytest.raises(ContractError) as caught:
        to_events(read_raw(spark, contract, str(folder)), contract)
    assert all("\n" not in fault for fault in caught.value.faults)
    return caught.value.faults


def test_select_makes_columns_and_where_leaves_rows_out(spark: SparkSession, tmp_path: Path) -> None:
    table = write_json(tmp_path) | {
        "where": "page < 3 OR geo.city = 'Rome'",
        "select": {
            "where_to": "coalesce(geo.city, 'nowhere')",
            "page": "concat(page, '-', size(coalesce(tags, array())) > 0)",
            "hour": "hour(timestamp_seconds(at))",
        },
    }
    contract = contract_over(
        table,
        scenario={
            "column": "page",
            "values": {"tagged": {"in": ["1-true"]}, "plain": {"in": ["2-false", "3-false"]}},
        },
        features={
            "city": {"kind": "categorical", "column": "where_to"},
            "hour": {"kind": "numeric", "column": "hour"},
        },
        columns={"key": ["row"], "time": "at"},
    )
    raw = read_raw(spark, contract, str(tmp_path))
    events = to_events(raw, contract)
    rows = sorted(to_examples(events, contract).collect())
    assert [(row["row"], row["where_to"], row["hour"], row["scenario"]) for row in rows] == [
        ("r1", "Bonn", 0, "tagged"),
        ("r2", "nowhere", 0, "plain"),
        ("r3", "Rome", 2, "plain"),
    ]
    only = contract_over(table | {"where": "page = 1"}, scenario=contract.scenario.model_dump(by_alias=True))
    raw = read_raw(spark, only, str(tmp_path))
    assert row_counts(raw, to_events(raw, only), only) == {"shown": (1, 1, 0)}


def test_expressions_that_do_not_fit_are_named_together(spark: SparkSession, tmp_path: Path) -> None:
    table = write_json(tmp_path, [row | {"User ID": 1, "user.id": 2} for row in ROWS]) | {
        "select": {
            "a": "wht",
            "b": "hour(at",
            "c": "explode(tags)",
            "d": "sum(page)",
            "e": "rand()",
            "f": "no_function(page)",
            "g": "User ID + 1",
            "h": "user.id + 1",
            "i": "page + geo",
            "fine": "page + 1",
        }
    }
    faults = faults_of(spark, contract_over(table), tmp_path)
    assert [fault.partition(":")[0] for fault in faults] == [
        f"source.tables.shown.select.{name}" for name in "abcdefghi"
    ]
    expected = [
        "'wht' does not fit the table (no column 'wht'; did you mean 'what'?)",
        "missing ')'",
        "makes more or fewer rows",
        "",
        "gives other values at each reading",
        "no_function",
        "write `User ID`, in backticks",
        "write `user.id`, in backticks",
        "page + geo",
    ]
    for fault, words in zip(faults, expected, strict=True):
        assert words in fault
    where = faults_of(spark, contract_over(write_json(tmp_path) | {"where": "pag = 1"}), tmp_path)
    assert where == [
        "source.tables.shown.where: 'pag = 1' does not fit the table (no column 'pag'; did you mean 'page'?)"
    ]


def test_an_expression_that_fails_on_a_row_ends_in_one_line(spark: SparkSession, tmp_path: Path) -> None:
    table = write_json(tmp_path) | {"select": {"page": "CAST(what AS INT)"}}
    contract = contract_over(table)
    with pytest.raises(ContractError) as caught, as_user_errors("the raw tables cannot be read"):
        to_events(read_raw(spark, contract, str(tmp_path)), contract).impressions.collect()
    (fault,) = caught.value.faults
    assert "\n" not in fault
    assert fault.startswith("the raw tables cannot be read: ")
    assert "'a'" in fault
    assert "INT" in fault


def test_a_damaged_file_ends_in_one_line_that_names_it(spark: SparkSession, tmp_path: Path) -> None:
    folder = tmp_path / "shown"
    folder.mkdir()
    pd.DataFrame(ROWS).drop(columns=["geo", "tags"]).to_parquet(folder / "a.parquet")
    whole = (folder / "a.parquet").read_bytes()
    (folder / "b.parquet").write_bytes(whole[: len(whole) // 2])
    contract = contract_over({"path": "shown", "format": "parquet"})
    with pytest.raises(ContractError) as caught, as_user_errors("the raw tables cannot be read"):
        to_events(read_raw(spark, contract, str(tmp_path)), contract).impressions.collect()
    (fault,) = caught.value.faults
    assert "\n" not in fault
    assert "b.parquet" in fault


def test_several_paths_are_put_together_by_names(spark: SparkSession, tmp_path: Path) -> None:
    header = "row,who,what,at,page,clicked\n"
    (tmp_path / "one.csv").write_text(header + "r1,1,a,100,1,1\n")
    (tmp_path / "two.csv").write_text("clicked,page,at,what,who,row,new\n0,2,200,b,2,r2,x\n")
    contract = contract_over({"path": ["one.csv", "two.csv"], "format": "csv"})
    raw = read_raw(spark, contract, str(tmp_path))
    rows = sorted(to_examples(to_events(raw, contract), contract).collect())
    assert [(row["row"], row["what"], row["label__click"]) for row in rows] == [
        ("r1", "a", 1),
        ("r2", "b", 0),
    ]
    lineage = described(raw, contract.source, {"shown": (None, None)})["shown"]
    assert [each.get("files", each.get("from")) for each in lineage] == ["one.csv", "two.csv", 2]
    pd.DataFrame(ROWS[:1]).drop(columns=["geo", "tags"]).to_json(
        tmp_path / "one.json", orient="records", lines=True
    )
    pd.DataFrame([ROWS[1] | {"at": "soon"}])[["row", "at"]].to_json(
        tmp_path / "two.json", orient="records", lines=True
    )
    mixed = contract_over({"path": ["one.json", "two.json"], "format": "json"})
    assert faults_of(spark, mixed, tmp_path) == [
        "source.tables.shown.path: column 'at' is bigint before and string in two.json; expected one type"
    ]


def test_a_glob_of_files_with_another_order_of_columns_is_found_out(
    spark: SparkSession, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text("row,who,what,at,page,clicked\nr1,1,a,100,1,1\nr1b,1,a,100,1,1\n")
    (tmp_path / "b.csv").write_text("clicked,page,at,what,who,row\n0,2,200,b,2,r2\n")
    contract = contract_over({"path": "*.csv", "format": "csv"})
    with (
        pytest.raises(ContractError, match=r"b\.csv") as caught,
        as_user_errors("the raw tables cannot be read"),
    ):
        to_events(read_raw(spark, contract, str(tmp_path)), contract).impressions.collect()
    assert "\n" not in str(caught.value)


def test_folders_of_partitions_make_columns_of_text(spark: SparkSession, tmp_path: Path) -> None:
    for market, row in (("007", "r1"), ("10", "r2")):
        folder = tmp_path / "shown" / f"market={market}"
        folder.mkdir(parents=True)
        (folder / "part.csv").write_text(f"row,who,what,at,page,clicked\n{row},1,a,100,1,1\n")
    features = {"market": {"kind": "categorical", "column": "market"}}
    contract = contract_over({"path": "shown", "format": "csv"}, features=features)
    rows = to_examples(to_events(read_raw(spark, contract, str(tmp_path)), contract), contract).collect()
    assert sorted(row["market"] for row in rows) == ["007", "10"]


def test_a_csv_header_that_names_no_columns_is_refused_with_what_to_write(
    spark: SparkSession, tmp_path: Path
) -> None:
    (tmp_path / "index.csv").write_text(",row,row,at\n0,r1,1,a\n")
    (tmp_path / "bare.csv").write_text("r1;1;a;100;1;1\nr2;2;b;200;2;0\n")
    table: dict[str, Any] = {"path": "index.csv", "format": "csv"}
    path = tmp_path / "index.csv"
    assert faults_of(spark, contract_over(table), tmp_path) == [
        f"source.tables.shown.path: {path} has no name for column 1 in its header line; "
        "name all of them, in order: csv: {columns: [...]}",
        f"source.tables.shown.path: {path} has two columns 'row' in its header line; "
        "name all of them, in order: csv: {columns: [...]}",
    ]
    names = ["row", "who", "what", "at", "page", "clicked"]
    table = {
        "path": "bare.csv",
        "format": "csv",
        "csv": {"delimiter": ";", "header": False, "columns": names},
    }
    contract = contract_over(table)
    raw = read_raw(spark, contract, str(tmp_path))
    assert row_counts(raw, to_events(raw, contract), contract) == {"shown": (2, 2, 0)}


def test_packed_files_that_spark_does_not_unpack_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "shown.zip").write_bytes(b"PK")
    contract = contract_over({"path": "shown.zip", "format": "csv"})
    assert faults_of(spark, contract, tmp_path) == [
        f"source.tables.shown.path: {tmp_path / 'shown.zip'} is packed; unpack it, or pack each file by gzip"
    ]


NOON = 1_705_320_000  # 2024-01-15 12:00:00 UTC
TIMES: dict[str, tuple[Any, list[Any], list[int | None]]] = {
    "milliseconds": ({"unit": "ms"}, [NOON * 1000 + 999, -1, None], [NOON, None, None]),
    "nanoseconds": ({"unit": "ns"}, [NOON * 10**9 + 999_999_999, NOON * 10**9 - 1, None], [NOON, NOON - 1, None]),
    "microseconds in text": ({"unit": "us"}, [str(NOON * 10**6), "1e3", "x"], [NOON, 0, None]),
    "small seconds": ({"unit": "s"}, [20240115, 5, None], [20240115, 5, None]),
    "a date as a number": ({"format": "yyyyMMdd"}, [20240115, 20241315, None], [NOON - 43200, None, None]),
    "a date as a float": ({"format": "yyyyMMdd"}, [20240115.0, 1.5, None], [NOON - 43200, None, None]),
    "text with a format": ({"format": "dd/MM/yyyy HH:mm"}, ["15/01/2024 12:00", "15/01/2024", ""], [NOON, None, None]),
    "text in a zone": (
        {"format": "yyyy-MM-dd HH:mm", "zone": "Asia/Shanghai"}, ["2024-01-15 20:00", "soon", None], [NOON, None, None],
    ),
    "ISO text in a zone": (
        {"zone": "America/New_York"},
        ["2024-01-15 07:00", "2024-01-15T12:00:00Z", "2024-01-15"],
        [NOON, NOON, NOON - 25200],
    ),
    "text with its own zone": (
        {"format": "yyyy-MM-dd HH:mm XXX"}, ["2024-01-15 13:00 +01:00", "x", None], [NOON, None, None],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TIMES)
def test_times_are_read_as_the_contract_says(spark: SparkSession, tmp_path: Path, name: str) -> None:
    reading, values, expected = TIMES[name]
    frame = pd.DataFrame(ROWS).drop(columns=["geo", "tags"])
    # Beside a null pandas would make floats of whole numbers.
    is_whole = all(value is None or isinstance(value, int) for value in values)
    frame["at"] = pd.array(values, dtype="Int64") if is_whole else values
    frame.to_parquet(tmp_path / "shown.parquet")
    contract = contract_over(
        {"path": "shown.parquet", "format": "parquet"},
        columns={"key": ["row"], "time": {"column": "at", **reading}},
    )
    zone = str(spark.conf.get("spark.sql.session.timeZone"))
    spark.conf.set("spark.sql.session.timeZone", "America/Los_Angeles")
    try:
        events = to_events(read_raw(spark, contract, str(tmp_path)), contract)
        found = {row["row"]: row["at"] for row in events.impressions.collect()}
    finally:
        spark.conf.set("spark.sql.session.timeZone", zone)
    assert [found.get(f"r{place + 1}") for place in range(3)] == expected


@pytest.mark.parametrize(
    ("kind", "at"), [("timestamp", NOON), ("timestamp_ntz", NOON), ("date", NOON - 43200), ("string", NOON)]
)
@pytest.mark.parametrize("format", ["parquet", "orc"])
def test_times_of_the_data_s_own_types_need_their_column_alone(
    spark: SparkSession, tmp_path: Path, kind: str, at: int, format: str
) -> None:
    # Spark writes timestamps to Parquet as int96.
    rows = [(row["row"], row["who"], row["what"], row["page"], row["clicked"]) for row in ROWS[:2]]
    frame = spark.createDataFrame(rows, "row string, who int, what string, page int, clicked int")
    time = f"CASE WHEN row = 'r1' THEN CAST('2024-01-15 12:00:00' AS {kind}) END AS at"
    frame.selectExpr("*", time).write.format(format).save(str(tmp_path / "shown"))
    contract = contract_over({"path": "shown", "format": format})
    events = to_events(read_raw(spark, contract, str(tmp_path)), contract)
    assert [row["at"] for row in events.impressions.collect()] == [at]
    assert [row["reason"] for row in events.rejects.collect()] == ["null at"]


def test_numbers_that_seem_to_be_other_times_are_refused_with_what_to_write(
    spark: SparkSession, tmp_path: Path
) -> None:
    values = [20240115, NOON * 1000, NOON * 10**9]
    table = write_json(tmp_path, [row | {"at": value} for row, value in zip(ROWS, values, strict=True)])
    contract = contract_over(table)
    events = to_events(read_raw(spark, contract, str(tmp_path)), contract)
    assert events.impressions.isEmpty()
    assert sorted(row["reason"] for row in events.rejects.collect()) == [
        "bad time in at: a date as a number; write time: {column: at, format: yyyyMMdd}",
        "bad time in at: ms since the epoch, it seems; write time: {column: at, unit: ms}",
        "bad time in at: ns since the epoch, it seems; write time: {column: at, unit: ns}",
    ]


def test_numbers_of_another_unit_than_the_contract_says_are_refused_with_the_right_one(
    spark: SparkSession, tmp_path: Path
) -> None:
    values = [NOON, NOON * 1000, NOON * 10**9]
    table = write_json(tmp_path, [row | {"at": value} for row, value in zip(ROWS, values, strict=True)])
    columns = {"key": ["row"], "user": "who", "item": "what", "time": {"column": "at", "unit": "ms"}}
    contract = contract_over(table, columns=columns)
    events = to_events(read_raw(spark, contract, str(tmp_path)), contract)
    assert [row["at"] for row in events.impressions.collect()] == [NOON]
    # Seconds taken for milliseconds would be days of January 1970, one like the other.
    assert sorted(row["reason"] for row in events.rejects.collect()) == [
        "bad time in at: ns since the epoch, it seems; write time: {column: at, unit: ns}",
        "bad time in at: s since the epoch, it seems; write time: {column: at, unit: s}",
    ]


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        ({"format": "yyyy-QQQQQQQ"}, "is no pattern of Spark's"),
        ({"zone": "Asia/Shanghai"}, "holds numbers since the epoch, which need no 'zone'"),
    ],
)
def test_a_reading_that_does_not_fit_the_column_is_refused(
    spark: SparkSession, tmp_path: Path, reading: dict[str, str], words: str
) -> None:
    contract = contract_over(
        write_json(tmp_path), columns={"key": ["row"], "time": {"column": "at", **reading}}
    )
    (fault,) = faults_of(spark, contract, tmp_path)
    assert fault.startswith("columns.time: ")
    assert words in fault


def test_a_log_without_keys_users_and_items_gets_ids_of_its_rows_content(
    spark: SparkSession, tmp_path: Path
) -> None:
    rows = [*ROWS, ROWS[0], ROWS[0], dict.fromkeys(ROWS[0])]
    table = write_json(tmp_path, rows)
    contract = contract_over(table, columns={})
    raw = read_raw(spark, contract, str(tmp_path))
    events = to_events(raw, contract)
    assert row_counts(raw, events, contract) == {"shown": (6, 5, 1)}
    keys = sorted(row["row_key"] for row in events.impressions.collect())
    assert len(set(keys)) == 5
    write_json(tmp_path, rows[::-1])
    again = to_events(read_raw(spark, contract, str(tmp_path)), contract)
    assert sorted(row["row_key"] for row in again.impressions.collect()) == keys


def test_what_needs_a_user_or_an_item_says_so() -> None:
    mapping = {
        "name": "bare",
        "source": {"tables": {"shown": {"path": "x", "format": "json"}}},
        "columns": {"time": "at", "position": "place"},
        "scenario": {"column": "page", "values": {"home": {"in": [1]}}},
        "tasks": {"click": {"column": "clicked", "equals": 1}},
        "features": {
            "what": {"kind": "categorical", "column": "what"},
            "recent": {"kind": "history", "last": 2},
            "popular": {"kind": "count", "by": "item"},
        },
        "split": {"method": "user_disjoint", "allow_leakage": True},
    }
    with pytest.raises(ContractError) as caught:
        to_contract(mapping)
    assert caught.value.faults == [
        "columns.user: is missing; needed by split.method 'user_disjoint'",
        "columns.item: is missing; needed by split.method 'user_disjoint'",
        "columns.user: is missing; needed by features.recent (history)",
        "columns.item: is missing; needed by features.recent (history)",
        "columns.item: is missing; needed by features.popular (count)",
    ]


def test_the_session_is_told_of_the_stores_that_it_must_see_to() -> None:
    source = Source.model_validate(
        {
            "reader": "tables",
            "tables": {
                "views": {"path": ["views/*.csv", "s3://logs/views"], "format": "csv"},
                "orders": {"path": "hdfs://host/orders", "format": "parquet"},
                "users": {"table": "main.people.users"},
            },
        }
    )
    assert places_of(source, "s3a://logs/today/") == ["s3a://logs/today/views/*.csv", "s3a://logs/views"]
    assert places_of(source, None) == ["s3a://logs/views"]
    assert places_of(source, "/data") == ["s3a://logs/views"]
