"""Generated contracts over generated rows: no row is lost, and nothing in the data ends in a traceback."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from pyspark.sql.types import DoubleType, LongType, StringType, StructField, StructType

from feature_eng.contract import Contract, ContractError, to_contract
from feature_eng.events import to_events
from feature_eng.examples import to_examples
from feature_eng.sources.expressions import selected

pytestmark = [pytest.mark.spark, pytest.mark.slow]

# Names of columns: plain ones, and such as people have.
NAMES = ["row", "User ID", "user.id", "price (EUR)", "at", "tab;=", "ç`a", "%20", "Row"]
AWKWARD = [
    "", " ", "NaN", "Infinity", "-inf", "null", "true", "FALSE", "0x1F", "1e400", "1_000", "٣", "+5", "05", "5.0",
    "9223372036854775808", "-9223372036854775809", "2024-01-15", "2024-13-45", "20240115", "12:30", "1700000000000",
    "2024-01-15T10:00:00+25:00", "a|b||c", "\0", "\ud7ff", "😀", '"', "\\", "\n",
]  # fmt: skip
FEW = st.integers(0, 9)
# Mostly values that mean something, so that rows come through; and the awkward ones.
KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "text": (StringType(), FEW.map(str) | FEW.map(str) | st.sampled_from(AWKWARD) | st.text(max_size=5)),
    "whole": (LongType(), FEW | FEW | st.sampled_from([-(2**63), 2**63 - 1, 20240115, 1700000000000])),
    "double": (DoubleType(), FEW.map(float) | FEW.map(float) | st.floats()),
}
FEATURE = st.sampled_from(
    [
        {"kind": "categorical"},
        {"kind": "categorical", "buckets": 7},
        {"kind": "numeric"},
        {"kind": "bucketed", "num_buckets": 3},
        {"kind": "multi_valued", "slots": 2},
    ]
)
LABEL = st.sampled_from(
    [
        {"equals": 1},
        {"equals": True},
        {"equals": "true"},
        {"equals": "5"},
        {"greater_than": 2},
        {"at_least": 0.5},
    ]
)
TIME = st.sampled_from(
    [{}, {"unit": "ms"}, {"unit": "ns"}, {"format": "yyyyMMdd"}, {"zone": "Asia/Shanghai"}]
)
VALUES = st.sampled_from(
    [
        {"low": {"range": [None, 4]}, "high": {"range": [5, None]}},
        {"one": {"in": [1, "a", True]}, "two": {"in": [0, "2024-01-15"]}},
    ]
)


def expect_lines(faults: list[str]) -> None:
    assert faults
    assert all(fault and "\n" not in fault for fault in faults)


@st.composite
def logs(draw: st.DrawFn) -> tuple[dict[str, Any], list[str], list[str], list[tuple[Any, ...]]]:
    """A contract's content, and its table: names, kinds and rows."""
    names = draw(st.permutations(NAMES))
    kinds = [draw(st.sampled_from(sorted(KINDS))) for _ in names]
    column = st.sampled_from(NAMES)
    columns: dict[str, Any] = {"key": draw(st.lists(column, max_size=2, unique=True))}
    for role in ("user", "item"):
        columns[role] = draw(st.none() | st.none() | column)
    if draw(st.integers(0, 2)) == 0:
        columns["time"] = {"column": draw(column), **draw(TIME)}
    content = {
        "name": "fuzz",
        "source": {"tables": {"log": {"path": "log", "format": "parquet"}}},
        "columns": columns,
        "scenario": {"column": draw(column), "values": draw(VALUES)},
        "tasks": {"click": {"column": draw(column), **draw(LABEL)}},
        "features": {
            f"f{place}": {**feature, "column": draw(column)}
            for place, feature in enumerate(draw(st.lists(FEATURE, min_size=1, max_size=3)))
        },
        "split": {"method": "random"},
    }
    row = st.tuples(*(KINDS[kind][1] | KINDS[kind][1] | st.none() for kind in kinds))
    return content, list(names), kinds, draw(st.lists(row, min_size=2, max_size=8))


def test_every_row_is_an_event_or_a_reject_whatever_it_holds(spark: SparkSession) -> None:
    outcomes = {"refused": 0, "read": 0, "rows": 0}

    @settings(
        max_examples=20,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(logs())
    def check(log: tuple[dict[str, Any], list[str], list[str], list[tuple[Any, ...]]]) -> None:
        content, names, kinds, rows = log
        try:
            contract: Contract = to_contract(content)
            schema = StructType(
                [StructField(name, KINDS[kind][0]) for name, kind in zip(names, kinds, strict=True)]
            )
            raw = {"log": spark.createDataFrame(rows, schema).coalesce(1)}
            events = to_events(raw, contract)
        except ContractError as error:
            expect_lines(error.faults)
            outcomes["refused"] += 1
            return
        labelled = to_examples(events, contract).select("label__click", "scenario").collect()
        assert len(rows) == len(labelled) + len(events.rejects.collect())
        assert {row["label__click"] for row in labelled} <= {0, 1}
        assert {row["scenario"] for row in labelled} <= set(content["scenario"]["values"])
        outcomes["read"] += 1
        outcomes["rows"] += len(labelled)

    check()
    # The run means something: contracts of all sorts were read and refused, and rows came through.
    assert outcomes["read"] >= 4
    assert outcomes["refused"] >= 2
    assert outcomes["rows"] >= 2


@settings(max_examples=60, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.text(max_size=12)
    | st.lists(
        st.sampled_from(
            [
                "row",
                "`User ID`",
                "User ID",
                "+",
                "(",
                ")",
                "CAST(",
                " AS INT)",
                "'",
                ",",
                "NULL",
                "1",
                "*",
                ".",
            ]
        ),
        max_size=6,
    ).map("".join)
)
def test_no_expression_ends_in_a_traceback(spark: SparkSession, expression: str) -> None:
    frame = spark.createDataFrame([], "row string, `User ID` bigint")
    try:
        made = selected(frame, {"made": expression}, "source.tables.log.select")
    except ContractError as error:
        expect_lines(error.faults)
    else:
        assert made.columns == ["row", "User ID", "made"]
