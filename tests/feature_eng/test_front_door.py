"""The tables that companies have, read right or refused by name."""

from __future__ import annotations

import decimal
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from row_counts import row_counts
from small_logs import small_contract

from feature_eng.behaviour import with_behaviour
from feature_eng.contract import Contract, ContractError
from feature_eng.events import to_events
from feature_eng.events.schemas import check_schemas
from feature_eng.examples import to_examples
from feature_eng.sources.raw import read_raw
from feature_eng.sources.tables import pinned
from feature_eng.split import with_split

pytestmark = pytest.mark.spark

WHAT = {"what": {"kind": "categorical", "column": "what"}}
LOG: dict[str, list[Any]] = {
    "row": ["r1", "r2", "r3"],
    "who": [1, 2, 1],
    "what": ["a", "b", "a"],
    "at": [100, 200, 300],
    "page": [1, 2, 3],
    "clicked": [1, 0, 1],
}


def log(**columns: Any) -> pd.DataFrame:
    """Three rows of a small log, with other columns or some in place of its own."""
    return pd.DataFrame({**LOG, **columns})


def contract_over(tables: dict[str, Any], **sections: Any) -> Contract:
    """The small contract over tables of its own."""
    source = {"tables": tables, **sections.pop("source", {})}
    return small_contract(**{"features": WHAT, "source": source, **sections})


def examples_of(spark: SparkSession, contract: Contract, folder: Path) -> DataFrame:
    raw = read_raw(spark, contract, str(folder))
    return to_examples(to_events(raw, contract), contract)


def labels(examples: DataFrame) -> dict[Any, int]:
    return {row["row"]: row["label__click"] for row in examples.collect()}


@pytest.mark.parametrize("equals", [True, "true", 1])
def test_a_boolean_label_is_true_where_it_is_true(spark: SparkSession, tmp_path: Path, equals: Any) -> None:
    log(clicked=[True, False, None]).to_parquet(tmp_path / "shown.parquet")
    contract = contract_over(
        {"shown": {"path": "shown.parquet", "format": "parquet"}},
        tasks={"click": {"column": "clicked", "equals": equals}},
    )
    raw = read_raw(spark, contract, str(tmp_path))
    events = to_events(raw, contract)
    assert labels(to_examples(events, contract)) == {"r1": 1, "r2": 0}
    assert [row["reason"] for row in events.rejects.collect()] == ["null clicked"]


def test_words_for_true_and_false_in_text_are_labels_too(spark: SparkSession, tmp_path: Path) -> None:
    log(clicked=["True", "false", "maybe"]).to_csv(tmp_path / "shown.csv", index=False)
    contract = contract_over(
        {"shown": {"path": "shown.csv", "format": "csv"}},
        tasks={"click": {"column": "clicked", "equals": True}},
    )
    events = to_events(read_raw(spark, contract, str(tmp_path)), contract)
    assert labels(to_examples(events, contract)) == {"r1": 1, "r2": 0}
    assert [row["reason"] for row in events.rejects.collect()] == ["unparsable clicked"]


def test_a_value_that_a_label_can_never_have_is_refused_by_name(spark: SparkSession, tmp_path: Path) -> None:
    log(clicked=[True, False, True]).to_parquet(tmp_path / "shown.parquet")
    contract = contract_over(
        {"shown": {"path": "shown.parquet", "format": "parquet"}},
        tasks={"click": {"column": "clicked", "equals": "yes"}},
    )
    with pytest.raises(ContractError) as caught:
        to_events(read_raw(spark, contract, str(tmp_path)), contract)
    assert caught.value.faults == [
        "tasks.click.equals: column 'clicked' is of type boolean; expected true or false, not 'yes'"
    ]


BIG = [2**63 + 1, 2, 3]


@pytest.mark.parametrize("kind", ["unsigned", "decimal", "text"])
def test_ids_beyond_64_bits_stay_apart(spark: SparkSession, tmp_path: Path, kind: str) -> None:
    ids: Any = {
        "unsigned": np.array(BIG, dtype="uint64"),
        "decimal": [decimal.Decimal(each) for each in BIG],
        "text": [str(each) for each in BIG],
    }[kind]
    frame = log(row=ids, who=ids, what=ids)
    if kind == "text":
        frame.to_csv(tmp_path / "shown", index=False)
    else:
        frame.to_parquet(tmp_path / "shown")
    table = {"path": "shown", "format": "csv" if kind == "text" else "parquet"}
    contract = contract_over(
        {"shown": table}, columns={"key": ["row"], "user": "who", "item": "what", "time": "at"}
    )
    raw = read_raw(spark, contract, str(tmp_path))
    events = to_events(raw, contract)
    assert row_counts(raw, events, contract) == {"shown": (3, 3, 0)}
    rows = to_examples(events, contract).collect()
    for name in ("row", "who", "what"):
        assert sorted(int(row[name]) for row in rows) == sorted(BIG)


ODD_NAMES = {
    "row": "Row ID",
    "who": "user.id",
    "what": "price (EUR)",
    "at": "at;=",
    "page": "page`s",
    "clicked": "ça,{}",
}


def test_columns_may_have_any_name(spark: SparkSession, tmp_path: Path) -> None:
    log().rename(columns=ODD_NAMES).to_parquet(tmp_path / "shown.parquet")
    contract = contract_over(
        {"shown": {"path": "shown.parquet", "format": "parquet"}},
        columns={"key": ["Row ID"], "user": "user.id", "item": "price (EUR)", "time": "at;="},
        scenario={"column": "page`s", "values": {"home": {"in": [1]}, "search": {"in": [2, 3]}}},
        tasks={"click": {"column": "ça,{}", "equals": 1}},
        features={
            "what": {"kind": "categorical", "column": "price (EUR)"},
            "recent": {"kind": "history", "last": 2},
            "seen": {"kind": "count"},
        },
    )
    events = to_events(read_raw(spark, contract, str(tmp_path)), contract)
    examples = with_behaviour(with_split(to_examples(events, contract), contract), contract)
    examples.write.format("delta").save(str(tmp_path / "examples"))
    events.rejects.write.format("delta").save(str(tmp_path / "rejects"))
    stored = spark.read.format("delta").load(str(tmp_path / "examples"))
    assert stored.columns[:5] == ["Row%20ID", "user%2Eid", "price%20%28EUR%29", "at%3B%3D", "page%60s"]
    rows = sorted(stored.collect())
    assert [(row["Row%20ID"], row["label__click"], row["recent"], row["seen"]) for row in rows] == [
        ("r1", 1, [], 0),
        ("r2", 0, [], 0),
        ("r3", 1, ["a"], 1),
    ]


def test_names_that_differ_by_case_are_two_columns(spark: SparkSession, tmp_path: Path) -> None:
    log(Price=[1, 2, 3], price=[7, 8, 9]).to_parquet(tmp_path / "shown.parquet")
    tables: dict[str, Any] = {"shown": {"path": "shown.parquet", "format": "parquet"}}
    features = {**WHAT, "price": {"kind": "numeric", "column": "price"}}
    contract = contract_over(tables, features=features)
    rows = examples_of(spark, contract, tmp_path).collect()
    assert sorted(row["price"] for row in rows) == [7, 8, 9]
    both = {**features, "listed": {"kind": "numeric", "column": "Price"}}
    with pytest.raises(
        ContractError, match=r"'price' and 'Price' differ by case alone.*'rename' or 'select'"
    ):
        contract_over(tables, features=both)
    tables["shown"]["rename"] = {"Price": "listed_price"}
    both["listed"]["column"] = "listed_price"
    row = examples_of(spark, contract_over(tables, features=both), tmp_path).where("row = 'r1'").first()
    assert row is not None
    assert (row["price"], row["listed_price"]) == (7, 1)


@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Shanghai"])
def test_times_of_pandas_are_read_to_the_second(
    spark: SparkSession, tmp_path: Path, zone: str | None
) -> None:
    times = pd.to_datetime(["2024-01-01 00:00:01.999999999", "2024-01-01 00:00:02.0", None]).tz_localize(zone)
    log(at=times).to_parquet(tmp_path / "shown.parquet")
    contract = contract_over({"shown": {"path": "shown.parquet", "format": "parquet"}})
    events = to_events(read_raw(spark, contract, str(tmp_path)), contract)
    start = 1_704_067_201 - (8 * 3600 if zone == "Asia/Shanghai" else 0)
    assert sorted(row["at"] for row in events.impressions.collect()) == [start, start + 1]
    assert [row["reason"] for row in events.rejects.collect()] == ["null at"]


def test_a_quoted_line_break_is_part_of_its_value(spark: SparkSession, tmp_path: Path) -> None:
    log(what=['say "hi"\nthere', "b", None]).to_csv(tmp_path / "shown.csv", index=False)
    table = {"path": "shown.csv", "format": "csv", "multi_line": True, "csv": {"escape": '"'}}
    contract = contract_over({"shown": table})
    raw = read_raw(spark, contract, str(tmp_path))
    events = to_events(raw, contract)
    assert row_counts(raw, events, contract) == {"shown": (3, 2, 1)}
    assert sorted(row["what"] for row in events.impressions.collect()) == ["b", 'say "hi"\nthere']


def test_tab_separated_files_one_for_each_market(spark: SparkSession, tmp_path: Path) -> None:
    rows_of = {"sales_de.tsv.gz": ["r1", "r2", "r3"], "sales_at new+.tsv": ["s1", "s2", "s3"]}
    for name, rows in rows_of.items():
        log(row=rows).to_csv(tmp_path / name, index=False, sep="\t")
    table = {
        "path": "sales_*",
        "format": "csv",
        "csv": {"delimiter": "\t"},
        "file_column": {"name": "market", "pattern": r"sales_([^.]+)\.tsv"},
    }
    scenario = {"column": "market", "values": {"de": {"in": ["de"]}, "at": {"in": ["at new+"]}}}
    examples = examples_of(spark, contract_over({"shown": table}, scenario=scenario), tmp_path)
    assert sorted((row["scenario"], row["row"]) for row in examples.collect()) == [
        ("at", "s1"), ("at", "s2"), ("at", "s3"), ("de", "r1"), ("de", "r2"), ("de", "r3"),
    ]  # fmt: skip
    (tmp_path / "sales-old.tsv").write_text("x\n")
    table["path"] = "sales*"
    with pytest.raises(
        ContractError, match=r"file_column: .* is not found in the file name 'sales-old\.tsv'"
    ):
        read_raw(spark, contract_over({"shown": table}, scenario=scenario), str(tmp_path))


def test_columns_that_nobody_asked_for_may_be_of_any_kind(spark: SparkSession, tmp_path: Path) -> None:
    frame = spark.createDataFrame(
        [("r1", 1, "a", 1, 1, 1, {"k": 1}, [{"k": "v"}], ("x", 1.0), bytearray(b"\xff"), None)] * 2,
        "row string, who int, what string, at int, page int, clicked int, "
        "m map<string,int>, l array<map<string,string>>, s struct<x:string,y:double>, b binary, n void",
    ).drop("n")
    frame.coalesce(1).write.parquet(str(tmp_path / "shown"))
    contract = contract_over({"shown": {"path": "shown", "format": "parquet"}})
    raw = read_raw(spark, contract, str(tmp_path))
    events = to_events(raw, contract)
    assert row_counts(raw, events, contract) == {"shown": (2, 1, 1)}
    reject = events.rejects.collect()[0]
    assert reject["reason"] == "duplicate key"
    assert json.loads(reject["row"])["m"] == {"k": 1}


def order_contract() -> Contract:
    return contract_over(
        {
            "shown": {"path": "shown.parquet", "format": "parquet"},
            "orders": {"path": "orders.parquet", "format": "parquet"},
        },
        tasks={"order": {"table": "orders", "join_on": ["who"], "within": "1h"}},
    )


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ([5.0, 6.0, None], ["5", "7", None]),
        (["5", "6", None], [5.0, 7.0, None]),
        ([5, 6, 7], ["05", "x", "5.0"]),
        ([decimal.Decimal(5), decimal.Decimal(2**64), None], ["5", str(2**64 + 1), None]),
        (np.array([2**63 + 5, 6, 7], dtype="uint64"), [str(2**63 + 5), str(2**63 + 6), "x"]),
    ],
)
def test_join_keys_are_equal_by_value(spark: SparkSession, tmp_path: Path, mine: Any, theirs: Any) -> None:
    log(who=mine).to_parquet(tmp_path / "shown.parquet")
    pd.DataFrame({"who": theirs, "at": [150] * len(theirs)}).to_parquet(tmp_path / "orders.parquet")
    rows = examples_of(spark, order_contract(), tmp_path).collect()
    assert [row["row"] for row in rows if row["label__order"] == 1] == ["r1"]


def test_ids_that_are_no_whole_numbers_are_rejects(spark: SparkSession, tmp_path: Path) -> None:
    log(who=[5.5, float(2**53), 5.0]).to_parquet(tmp_path / "shown.parquet")
    contract = contract_over({"shown": {"path": "shown.parquet", "format": "parquet"}})
    events = to_events(read_raw(spark, contract, str(tmp_path)), contract)
    assert [row["who"] for row in events.impressions.collect()] == [5]
    assert [row["reason"] for row in events.rejects.collect()] == ["unparsable who"] * 2


def test_a_delta_table_of_any_version_is_a_source(spark: SparkSession, tmp_path: Path) -> None:
    for rows in (log(clicked=[0, 0, 0]), log()):
        spark.createDataFrame(rows).write.format("delta").mode("overwrite").save(str(tmp_path / "shown"))
    table: dict[str, Any] = {"path": "shown", "format": "delta"}
    assert labels(examples_of(spark, contract_over({"shown": table}), tmp_path)) == {
        "r1": 1,
        "r2": 0,
        "r3": 1,
    }
    contract = contract_over({"shown": table})
    versions = pinned(spark, contract.source, str(tmp_path))
    raw = read_raw(spark, contract, str(tmp_path), versions)
    assert versions == {"shown": (1,)}
    spark.createDataFrame(log(clicked=[1, 1, 1])).write.format("delta").mode("append").save(
        str(tmp_path / "shown")
    )
    assert raw["shown"].count() == 3, "what was read does not change"
    table["version"] = 0
    assert labels(examples_of(spark, contract_over({"shown": table}), tmp_path)) == {
        "r1": 0,
        "r2": 0,
        "r3": 0,
    }
    del table["version"]
    table["timestamp"] = "2999-01-01"
    assert pinned(spark, contract_over({"shown": table}).source, str(tmp_path)) == {"shown": (2,)}
    table["timestamp"] = "1999-01-01"
    with pytest.raises(ContractError, match=r"shown cannot be read .*had no version yet at 1999-01-01"):
        read_raw(spark, contract_over({"shown": table}), str(tmp_path))
    del table["timestamp"]
    table["version"] = 9
    with pytest.raises(
        ContractError,
        match=r"shown\.path: shown cannot be read .*version 9.*0, 2",
    ):
        read_raw(spark, contract_over({"shown": table}), str(tmp_path))


def test_a_table_of_the_catalog_is_a_source(spark: SparkSession, tmp_path: Path) -> None:
    name = "default.front_door"
    spark.sql(f"DROP TABLE IF EXISTS {name}")
    spark.createDataFrame(log(clicked=[0, 0, 0])).write.format("delta").saveAsTable(name)
    spark.createDataFrame(log()).write.format("delta").mode("overwrite").saveAsTable(name)
    try:
        newest = contract_over({"shown": {"table": f"spark_catalog.{name}"}})
        versions = pinned(spark, newest.source)
        assert versions == {"shown": (1,)}
        assert labels(examples_of(spark, newest, tmp_path)) == {"r1": 1, "r2": 0, "r3": 1}
        first = contract_over({"shown": {"table": name, "version": 0}})
        assert labels(examples_of(spark, first, tmp_path)) == {"r1": 0, "r2": 0, "r3": 0}
        absent = contract_over({"shown": {"table": "default.absent"}})
        with pytest.raises(ContractError, match=r"shown\.table: default\.absent cannot be read") as caught:
            read_raw(spark, absent, None)
        assert "\n" not in str(caught.value)
    finally:
        spark.sql(f"DROP TABLE {name}")


def side_contract(**join: Any) -> Contract:
    items = {"table": "items", "on": "what", **join}
    return contract_over(
        {
            "shown": {"path": "shown.parquet", "format": "parquet"},
            "users": {"path": "users.csv", "format": "csv"},
            "items": {"path": "items.parquet", "format": "parquet"},
        },
        source={"join": [{"table": "users", "on": ["who"]}, items]},
        features={
            **WHAT,
            "city": {"kind": "categorical", "column": "city"},
            "price": {"kind": "numeric", "column": "price"},
        },
    )


def test_users_and_items_stand_beside_the_log(spark: SparkSession, tmp_path: Path) -> None:
    log(what=["a", "b", "z"]).to_parquet(tmp_path / "shown.parquet")
    (tmp_path / "users.csv").write_text("who,city\n1,Bonn\n1,Bonn\n9,Rome\n,Nowhere\n")
    items = pd.DataFrame(
        {"what": ["a", "a", "b", "b"], "price": [1.0, 2.0, 5.0, 6.0], "since": [0, 100, 201, 150]}
    )
    items.to_parquet(tmp_path / "items.parquet")
    rows = sorted(examples_of(spark, side_contract(as_of="since"), tmp_path).collect())
    assert [(row["row"], row["city"], row["price"]) for row in rows] == [
        ("r1", "Bonn", 2.0),
        ("r2", None, 6.0),
        ("r3", "Bonn", None),
    ]
    newest = sorted(examples_of(spark, side_contract(newest="since"), tmp_path).collect())
    assert [row["price"] for row in newest] == [2.0, 5.0, None]
    with pytest.raises(
        ContractError,
        match=r"join\.1: 'items' has 2 different rows for what = '[ab]'; .* add as_of",
    ):
        examples_of(spark, side_contract(), tmp_path)


def test_a_time_that_is_looked_up_itself_cannot_choose_rows(spark: SparkSession, tmp_path: Path) -> None:
    """Rows of some days, and of side tables those that held, are chosen before the side table is joined."""
    log().drop(columns="at").to_parquet(tmp_path / "shown.parquet")
    (tmp_path / "users.csv").write_text("who,city,at\n1,Bonn,100\n2,Rome,200\n")
    pd.DataFrame({"what": ["a", "b"], "price": [1.0, 2.0], "since": [0, 150]}).to_parquet(
        tmp_path / "items.parquet"
    )
    contract = side_contract(as_of="since")
    raw = read_raw(spark, contract, str(tmp_path))
    check_schemas(raw, contract)
    prices = {row["row"]: row["price"] for row in examples_of(spark, contract, tmp_path).collect()}
    assert prices == {"r1": 1.0, "r2": 2.0, "r3": 1.0}
    told = "columns.time 'at' is a column of 'users'"
    with pytest.raises(ContractError, match=rf"^--dates: {told}; expected one of 'shown', whose rows"):
        check_schemas(raw, contract, by_date=True)
    turned = contract.model_copy(
        update={"source": contract.source.model_copy(update={"join": contract.source.join[::-1]})}
    )
    with pytest.raises(ContractError, match=rf"^source\.join\.0\.as_of: {told} and .* 'users' joined before"):
        check_schemas(raw, turned)
