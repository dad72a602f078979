"""The table of kinds in docs/kinds.md, row by row: in the build, in both interpreters of the encoder, and refused."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from small_logs import small_contract

from feature_eng.contract import Contract, ContractError
from feature_eng.encoder import arrow, expressions
from feature_eng.encoder import spark as spark_encoder
from feature_eng.encoder.agreement import differences
from feature_eng.encoder.fit import fit
from feature_eng.encoder.reading import read_as
from feature_eng.encoder.state import EncoderError, EncoderState
from feature_eng.events import to_events
from feature_eng.examples import to_examples

pytestmark = pytest.mark.spark

BASE = "row string, page int, clicked int"
DAY = datetime.date(2024, 1, 15)

# Column type -> raw values (the last of them null), their vocabulary as ids, and their values as numbers.
READ: dict[str, tuple[str, list[Any], list[Any], list[float | None] | None]] = {
    "tiny": ("tinyint", [3, -1, None], [-1, 3], [3, -1, None]),
    "long": ("bigint", [2**63 - 1, -(2**63), None], [-(2**63), 2**63 - 1], [float(2**63 - 1), float(-(2**63)), None]),
    "unsigned": ("decimal(20,0)", [Decimal(2**63 + 1), Decimal(2), None], ["2", str(2**63 + 1)], [2.0**63, 2, None]),
    "huge": ("decimal(38,0)", [Decimal(10**37), Decimal(-5), None], ["-5", str(10**37)], [1e37, -5, None]),
    "small_decimal": ("decimal(10,0)", [Decimal(7), Decimal(0), None], [0, 7], [7, 0, None]),
    "double": ("double", [5.0, -2.0, float("nan")], [-2, 5], [5, -2, None]),
    "single": ("float", [5.0, 2.0, None], [2, 5], [5, 2, None]),
    "flag": ("boolean", [True, False, None], [0, 1], [1, 0, None]),
    "word": ("string", ["1.5", " 2 ", "  "], ["  ", " 2 ", "1.5"], [1.5, 2, None]),
    "day": ("date", [DAY, datetime.date(1999, 12, 31), None], ["1999-12-31", "2024-01-15"], None),
}  # fmt: skip

# Kind of request -> what stands for the very same values where scores are asked for.
REQUESTED: dict[str, pa.Array] = {
    "tiny": pa.array(["3", "-1", None]),
    "long": pa.array([str(2**63 - 1), str(-(2**63)), ""]),
    "unsigned": pa.array([2**63 + 1, 2, None], pa.uint64()),
    "huge": pa.array([str(10**37), "-05", None]),
    "small_decimal": pa.array([7.0, 0.0, None]),
    "double": pa.array([5, -2, None]),
    "single": pa.array([Decimal(5), Decimal(2), None]),
    "flag": pa.array([True, False, None]),
    "word": pa.array(["1.5", " 2 ", "  "]).dictionary_encode(),
    "day": pa.array([DAY, datetime.date(1999, 12, 31), None]),
}


def frame_of(spark: SparkSession, columns: dict[str, tuple[str, list[Any]]]) -> DataFrame:
    schema = ", ".join([BASE, *(f"{name} {kind}" for name, (kind, _) in columns.items())])
    values = zip(*(values for _, values in columns.values()), strict=True)
    return spark.createDataFrame([(f"r{n}", 1, n % 2, *row) for n, row in enumerate(values)], schema)


def contract_of(features: dict[str, Any], **sections: Any) -> Contract:
    return small_contract(columns={"key": ["row"]}, features=features, **sections)


def examples_of(frame: DataFrame, contract: Contract) -> DataFrame:
    events = to_events({"shown": frame}, contract)
    assert events.rejects.collect() == []
    examples = to_examples(events, contract).withColumn("split", F.lit("train"))
    return spark_encoder.with_row_id(examples, contract)


def by_arrow_as_by_spark(examples: DataFrame, state: EncoderState) -> dict[str, Any]:
    by_spark = expressions.encode(examples, state).toArrow().sort_by("row_id")
    by_arrow = arrow.encode(examples.toArrow().sort_by("row_id"), state, labels=True)
    assert differences(by_spark, by_arrow, state) == []
    return by_arrow


def test_ids_of_every_type_are_exact_in_both_interpreters_and_in_requests(spark: SparkSession) -> None:
    frame = frame_of(spark, {name: (kind, values) for name, (kind, values, _, _) in READ.items()})
    contract = contract_of(
        {name: {"kind": "categorical", "column": name} for name in READ}
        | {f"{name}_hash": {"kind": "categorical", "column": name, "buckets": 1000} for name in READ}
    )
    examples = examples_of(frame, contract)
    state = fit(examples, contract)
    for name, (_, _, vocabulary, _) in READ.items():
        assert state.vocabularies[name].to_pylist() == vocabulary, name
    by_arrow_as_by_spark(examples, state)
    expected = arrow.encode(examples.orderBy("row").toArrow(), state)
    request = pa.table({"page": pa.array([1.0, 1.0, 1.0]), **REQUESTED})
    found = arrow.encode(request, state)
    for name in expected:
        assert found[name].tolist() == expected[name].tolist(), name
    assert all((expected[name][:2] > 0).all() for name in READ)


def test_numbers_of_every_type_are_read(spark: SparkSession) -> None:
    chosen = {name: row for name, row in READ.items() if row[3] is not None}
    frame = frame_of(spark, {name: (kind, values) for name, (kind, values, _, _) in chosen.items()})
    contract = contract_of({name: {"kind": "numeric", "column": name} for name in chosen})
    examples = examples_of(frame, contract)
    rows = examples.orderBy("row").collect()
    for name, (_, _, _, numbers) in chosen.items():
        assert [row[name] if row[name] is None else float(row[name]) for row in rows] == numbers, name
    by_arrow_as_by_spark(examples, fit(examples, contract))


def test_lists_are_taken_as_they_are(spark: SparkSession) -> None:
    columns = {
        "texts": ("array<string>", [["a|b", "", None], [], None]),
        "ids": ("array<bigint>", [[2**62 + 1, 5], [5], None]),
        "big": ("array<decimal(20,0)>", [[Decimal(2**63 + 1), None], [Decimal(1)], None]),
        "halves": ("array<double>", [[1.0, 2.0], [], None]),
        "flags": ("array<boolean>", [[True, False], [True], None]),
    }
    frame = frame_of(spark, columns)
    features = {name: {"kind": "multi_valued", "column": name, "slots": 2} for name in columns}
    hashed = {f"{name}_hash": {**feature, "buckets": 50} for name, feature in features.items()}
    contract = contract_of(features | hashed)
    examples = examples_of(frame, contract)
    state = fit(examples, contract)
    assert {name: keys.to_pylist() for name, keys in state.vocabularies.items()} == {
        "texts": ["", "a|b"], "ids": [5, 2**62 + 1], "big": ["1", str(2**63 + 1)], "halves": [1, 2], "flags": [0, 1],
    }  # fmt: skip
    assert state.raw_types["big"] == "list<decimal>"
    encoded = by_arrow_as_by_spark(examples, state)
    assert sorted(encoded["texts__1"].tolist()) == [-1, -1, 1]
    request = pa.table(
        {
            "page": [1],
            "texts": [["a|b", "", None]],
            "ids": [[str(2**62 + 1), "5"]],
            "big": pa.array([[2**63 + 1, None]], pa.list_(pa.uint64())),
            "halves": [[1, 2]],
            "flags": [[True, False]],
        }
    )
    found = arrow.encode(request, state)
    first = arrow.encode(examples.where("row = 'r0'").toArrow(), state)
    assert {name: values.tolist() for name, values in found.items()} == {
        name: values.tolist() for name, values in first.items()
    }


def test_values_that_are_none_of_their_kind_are_rejects(spark: SparkSession) -> None:
    columns = {
        "id": ("double", [1.5, 1.0, 1.0, 1.0]),
        "number": ("double", [1.0, float("inf"), 1.0, 1.0]),
        "text": ("string", ["1", "1", "0x10", "1"]),
        "list": ("array<double>", [[1.0], [1.0], [1.0], [1.0, 2.5]]),
    }
    contract = contract_of(
        {
            "id": {"kind": "categorical", "column": "id"},
            "number": {"kind": "numeric", "column": "number"},
            "text": {"kind": "bucketed", "column": "text", "num_buckets": 2},
            "list": {"kind": "multi_valued", "column": "list", "slots": 2},
        }
    )
    events = to_events({"shown": frame_of(spark, columns)}, contract)
    assert events.impressions.isEmpty()
    reasons = sorted(row["reason"] for row in events.rejects.collect())
    assert reasons == ["unparsable id", "unparsable list", "unparsable number", "unparsable text"]


CATEGORICAL, NUMERIC = {"kind": "categorical"}, {"kind": "numeric"}
MULTI = {"kind": "multi_valued", "slots": 2}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("decimal(10,2)", CATEGORICAL, 'expected whole numbers or text; write select: {x: "CAST(x AS STRING)"}'),
    ("timestamp", CATEGORICAL, "date_format(x, 'yyyy-MM-dd')"),
    ("timestamp_ntz", NUMERIC, "hour(x)"),
    ("date", NUMERIC, "dayofweek(x)"),
    ("array<string>", CATEGORICAL, "x[0]"),
    ("array<string>", NUMERIC, "x[0]"),
    ("array<timestamp>", MULTI, "is of type timestamp; expected whole numbers or text"),
    ("map<string,int>", CATEGORICAL, "x['key']"),
    ("struct<a:int>", NUMERIC, "x.field"),
    ("binary", CATEGORICAL, "decode(x, 'UTF-8'), or hex(x)"),
    ("int", MULTI, "needs a list, or a text of several values"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "feature", "words"), REFUSED)
def test_types_that_mean_nothing_there_are_refused_before_a_row_is_read(
    spark: SparkSession, kind: str, feature: dict[str, Any], words: str
) -> None:
    frame = spark.createDataFrame([], f"{BASE}, x {kind}")
    with pytest.raises(ContractError) as caught:
        to_events({"shown": frame}, contract_of({"f": {**feature, "column": "x"}}))
    (fault,) = caught.value.faults
    assert fault.startswith("features.f.column: ")
    assert words in fault


def test_an_id_that_is_read_as_a_number_too_is_refused(spark: SparkSession) -> None:
    features = {"a": {**CATEGORICAL, "column": "x"}, "b": {**NUMERIC, "column": "x"}}
    for kind in ("decimal(20,0)", "string", "double"):
        with pytest.raises(ContractError, match=r"features\.a as an id; say types: \{x: integer\}"):
            to_events({"shown": spark.createDataFrame([], f"{BASE}, x {kind}")}, contract_of(features))
    frame = frame_of(spark, {"x": ("string", [str(2**53 + 1), "7"])})
    table = {"path": "x", "format": "csv", "types": {"x": "integer"}}
    examples = examples_of(frame, contract_of(features, source={"tables": {"shown": table}}))
    assert sorted(row["x"] for row in examples.collect()) == [7, 2**53 + 1]


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        (pa.array([1, 2], pa.int64()), "string", "column 'x' is of type int64; expected text: 007 and 7 are two texts"),
        (pa.array(["1", "2.5"]), "int64", "row 1: column 'x' = '2.5'; expected a whole number of 64 bits"),
        (pa.array([1.0, 2.0**53]), "decimal", "row 1: column 'x' = 9007199254740992.0: an id that passed"),
        (pa.array([str(2**63)]), "int64", "row 0: column 'x' = '9223372036854775808'; expected a whole number"),
        (pa.array([True]), "double", "column 'x' is of type bool; expected a number"),
        (pa.array(["x"]), "double", "row 0: column 'x' = 'x'; expected a number"),
        (pa.array([datetime.datetime(2024, 1, 1)]), "string", "column 'x' is of type timestamp[us]; expected text"),
        (pa.array([{"a": 1}]), "int64", "expected a whole number of 64 bits"),
        (pa.array([5]), "list<int64>", "column 'x' is of type int64; expected a list"),
    ],
)  # fmt: skip
def test_what_cannot_stand_for_a_kind_is_one_line(values: pa.Array, kind: str, words: str) -> None:
    with pytest.raises(EncoderError) as caught:
        read_as(values, kind, "x")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
