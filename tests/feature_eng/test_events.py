"""Raw rows to events: nothing is lost, and every reject says why."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DecimalType, StringType
from row_counts import row_counts
from small_logs import FEATURES, small_contract

from feature_eng.contract import ContractError, to_number
from feature_eng.contract.values import to_integer
from feature_eng.events import number, scenario_index_column, to_events
from feature_eng.events.keys import Keys, read_keys
from feature_eng.events.values import whole_number

pytestmark = pytest.mark.spark

SCHEMA = "row string, who long, what string, at string, page string, clicked string, price string"


def test_every_row_is_an_event_or_a_reject_with_its_reason(spark: SparkSession) -> None:
    raw = spark.createDataFrame(
        [
            ("good", 1, "a", "100", "1", "1", "2.5"),
            ("no price", 1, "a", "100", "2", "0", None),
            (None, 1, "a", "100", "1", "1", "2"),
            ("no user", None, "a", "100", "1", "1", "2"),
            ("blank item", 1, " ", "100", "1", "1", "2"),
            ("bad price", 1, "a", "100", "1", "1", "cheap"),
            ("no label", 1, "a", "100", "1", None, "2"),
            ("no time", 1, "a", None, "1", "1", "2"),
            ("bad time", 1, "a", "noon", "1", "1", "2"),
            ("time of day", 1, "a", "12:30:00", "1", "1", "2"),
            ("milliseconds", 1, "a", "1700000000000", "1", "1", "2"),
            ("no page", 1, "a", "100", None, "1", "2"),
            ("new page", 1, "a", "100", "4", "1", "2"),
            ("good", 1, "a", "99", "1", "0", "1"),
            ("good", 1, "a", "99", "9", "0", "1"),
            (None, None, None, None, None, None, None),
        ],
        SCHEMA,
    )
    contract = small_contract()
    events = to_events({"shown": raw}, contract)
    assert sorted(events.impressions.collect()) == [
        Row(row="good", who=1, what="a", at=99, page="1", price=1.0, clicked=0.0),
        Row(row="no price", who=1, what="a", at=100, page="2", price=None, clicked=0.0),
    ]
    rejects = events.rejects.collect()
    assert {row["table"] for row in rejects} == {"shown"}
    found = [(json.loads(row["row"])["row"], row["reason"]) for row in rejects]
    assert sorted(found, key=str) == sorted(
        [
            ("good", "duplicate key"),
            ("good", "unknown scenario in page"),
            (None, "null row"),
            ("no user", "null who"),
            ("blank item", "null what"),
            ("bad price", "unparsable price"),
            ("no label", "null clicked"),
            ("no time", "null at"),
            ("bad time", "bad time in at"),
            ("time of day", "bad time in at"),
            (
                "milliseconds",
                "bad time in at: ms since the epoch, it seems; write time: {column: at, unit: ms}",
            ),
            ("no page", "null page"),
            ("new page", "unknown scenario in page"),
            (None, "null row"),
        ],
        key=str,
    )
    assert row_counts({"shown": raw}, events, contract) == {"shown": (16, 2, 14)}
    assert read_keys(raw, contract, times=True) == Keys(16, 11, True, (("bad price", "time of day"),))
    keyless = raw.where("row IS NULL").unionByName(raw.where("row IS NULL"))
    assert read_keys(keyless, contract, times=True) == Keys(4, 2, False, ())


def test_times_are_seconds_since_the_epoch_whatever_the_session_zone(spark: SparkSession) -> None:
    times = {
        "seconds": ("86400", 86400),
        "date": ("1970-01-02", 86400),
        "no zone": ("1970-01-02 00:00:01", 86401),
        "utc": ("1970-01-02T00:00:01Z", 86401),
        "offset": ("1970-01-02T01:00:00+01:00", 86400),
        "fraction": ("1970-01-02T00:00:00.9", 86400),
    }
    rows = [(name, 1, "a", text, "1", "1", None) for name, (text, _) in times.items()]
    raw = spark.createDataFrame(rows, SCHEMA)
    zone = spark.conf.get("spark.sql.session.timeZone")
    assert zone is not None
    spark.conf.set("spark.sql.session.timeZone", "America/New_York")
    try:
        impressions = to_events({"shown": raw}, small_contract()).impressions.collect()
    finally:
        spark.conf.set("spark.sql.session.timeZone", zone)
    assert {row["row"]: row["at"] for row in impressions} == {name: at for name, (_, at) in times.items()}


def test_whole_numbers_are_bigint_and_ids_beyond_double_survive(spark: SparkSession) -> None:
    source = {
        "reader": "tables",
        "tables": {
            "shown": {
                "path": "x",
                "format": "csv",
                "types": {"row": "integer", "page": "integer", "what": "string"},
            }
        },
    }
    rows = [("9007199254740993", 1, "01", "5", "2", "1", "3"), ("1.5", 1, "a", "5", "1", "1", "1")]
    events = to_events({"shown": spark.createDataFrame(rows, SCHEMA)}, small_contract(source=source))
    assert events.impressions.collect() == [
        Row(row=9007199254740993, who=1, what="01", at=5, page=2, price=3.0, clicked=1.0)
    ]
    assert [row["reason"] for row in events.rejects.collect()] == ["unparsable row"]


def test_columns_the_data_lack_are_named_all_at_once(spark: SparkSession) -> None:
    raw = spark.createDataFrame([("a", 1, "1", 3.0)], "row string, who long, pages string, price double")
    contract = small_contract(
        split={"method": "time"},
        features={
            "what": {"kind": "categorical", "column": "what"},
            "recent": {"kind": "history", "last": 2},
        },
    )
    with pytest.raises(ContractError) as caught:
        to_events({"shown": raw}, contract)
    assert caught.value.faults == [
        "columns.item: the table 'shown' has no column 'what'",
        "columns.time: the table 'shown' has no column 'at'; needed by split.method 'time', "
        "features.recent (history)",
        "scenario.column: the table 'shown' has no column 'page'; did you mean 'pages'?",
        "tasks.click.column: the table 'shown' has no column 'clicked'",
        "features.what.column: the table 'shown' has no column 'what'",
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"a": {"in": [1, 18]}, "b": {"in": ["home", "7", 2.5]}, "c": {"range": [30, 34]}},
        {"a": {"range": [None, 24]}, "b": {"range": [25, 34.5]}, "c": {"range": [35, None]}},
    ],
)
def test_spark_and_python_agree_on_the_scenario_of_every_value(
    spark: SparkSession, values: dict[str, object]
) -> None:
    contract = small_contract(scenario={"column": "page", "values": values})
    texts = [
        "1",
        "18",
        " 18 ",
        "18.0",
        "1.8e1",
        "home",
        "Home",
        "7",
        "7.0",
        "2.5",
        "34",
        "34.7",
        "-5",
        "99",
        "",
        "x",
    ]
    texts += ["nan", "inf", "1d", "0x12", "1e999", "٣", "24\n", ".5", "5.", "+3"]
    page_types: list[tuple[str, list[object]]] = [
        ("string", [None, *texts]),
        ("long", [None, 1, 18, 24, 25, 34, 35, 2**62]),
        ("double", [None, 1.0, 2.5, 18.0, 34.5, 34.6, 1e300, float("nan"), float("inf"), -0.0]),
    ]
    for dtype, given in page_types:
        frame = spark.createDataFrame([(value,) for value in given], f"page {dtype}").coalesce(1)
        found = frame.select(
            scenario_index_column(contract).alias("untyped"),
            scenario_index_column(contract, frame.schema["page"].dataType).alias("typed"),
        ).collect()
        expected = [contract.scenario_index(value) for value in given]
        assert [row["untyped"] for row in found] == expected
        assert [row["typed"] for row in found] == expected


def test_spark_and_python_read_the_same_numbers(spark: SparkSession) -> None:
    texts = [
        None,
        "1",
        " 1 ",
        "1.5e-3",
        ".5",
        "5.",
        "1e999",
        "-1e999",
        "NaN",
        "1_000",
        "1f",
        "",
        "٣",
        "1\n",
        "- 1",
    ]
    frame = spark.createDataFrame([(text,) for text in texts], "text string").coalesce(1)
    assert [row["read"] for row in frame.select(number(F.col("text")).alias("read")).collect()] == [
        to_number(text) for text in texts
    ]


def test_whole_numbers_that_were_doubles_before_they_were_text_are_none(spark: SparkSession) -> None:
    read = {
        "9007199254740993": 9007199254740993,
        "9007199254740991.0": 9007199254740991,
        "-9.007199254740991e15": -9007199254740991,
        "9007199254740993.0": None,
        "1.2345678901234568e+18": None,
        "9223372036854775807": 2**63 - 1,
        "1.5": None,
    }
    too_large = ["9223372036854775808", "-9223372036854775809"]
    frame = spark.createDataFrame([(text,) for text in [*read, *too_large]], "text string").coalesce(1)
    found = frame.select(whole_number(F.col("text"), StringType()).alias("read")).collect()
    assert [row["read"] for row in found] == [*read.values(), None, None]
    assert [to_integer(text) for text in read] == list(read.values())
    assert [to_integer(text) for text in too_large] == [2**63, -(2**63) - 1]  # of any size
    decimals = spark.createDataFrame([(Decimal(text),) for text in read], "exact decimal(30,2)").coalesce(1)
    found = decimals.select(whole_number(F.col("exact"), DecimalType(30, 2)).alias("read")).collect()
    exact = [Decimal(text) for text in read]
    assert [row["read"] for row in found] == [int(one) if one == int(one) else None for one in exact]
    assert [row["read"] for row in found] == [to_integer(one) for one in exact]


def test_which_of_equal_keys_stays_and_made_keys_do_not_depend_on_the_order_of_rows(
    spark: SparkSession,
) -> None:
    # Spark's hash passes over nulls: to it the rows of each pair are the same.
    schema = (
        "row string, who long, what string, at long, page int, clicked int, price double, old_price double"
    )
    rows = [
        ("r", 1, "a", 5, 1, 1, 3.0, None), ("r", 1, "a", 5, 1, 1, None, 3.0),
        ("s", 1, "a", 5, 1, None, 1.0, None), ("s", 1, "a", 5, 1, 1, None, None),
    ]  # fmt: skip
    task = {"column": "clicked", "equals": 1, "null_is": "missing"}
    features = {**FEATURES, "old": {"kind": "numeric", "column": "old_price"}}
    for columns in ({"key": ["row"], "user": "who", "time": "at"}, {"user": "who", "time": "at"}):
        contract = small_contract(columns=columns, features=features, tasks={"click": task})
        found = []
        for order in (rows, rows[::-1]):
            events = to_events({"shown": spark.createDataFrame(order, schema).coalesce(1)}, contract)
            found.append(sorted(events.impressions.collect(), key=str))
        assert found[0] == found[1], columns
        assert len(found[0]) == (2 if "key" in columns else 4)
