"""The encoder's state, what it is fitted on, and its Arrow interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from feature_eng.contract import Contract, to_contract
from feature_eng.encoder import arrow
from feature_eng.encoder.fit import fit
from feature_eng.encoder.state import (
    Bucket,
    EncoderError,
    EncoderState,
    Hash,
    Lookup,
    Operation,
    Slots,
    Standardise,
)

BIG = 2**63 - 1


def a_contract(**features: dict[str, Any]) -> Contract:
    return to_contract(
        {
            "name": "shop",
            "source": {"reader": "tables", "tables": {"log": {"path": "log.csv", "format": "csv"}}},
            "columns": {"key": ["row"], "user": "user", "item": "item", "time": "at"},
            "scenario": {"column": "page", "values": {"home": {"in": ["h"]}, "search": {"in": ["s"]}}},
            "tasks": {"click": {"column": "clicked", "at_least": 1}},
            "features": {"item": {"kind": "categorical", "column": "item"}, **features},
            "split": {"method": "random", "allow_leakage": True},
        }
    )


CONTRACT = a_contract(
    tag={"kind": "multi_valued", "column": "tags", "slots": 2},
    price={"kind": "numeric", "column": "price"},
    level={"kind": "bucketed", "column": "price", "num_buckets": 3},
    zip={"kind": "categorical", "column": "zip", "buckets": 10},
    recent={"kind": "history", "of": "item", "last": 2},
)


def a_state() -> EncoderState:
    operations: dict[str, Operation] = {
        "item": Lookup("item", "item"),
        "tag": Slots("tags", 2, "|", Lookup("tags", "tag")),
        "price": Standardise("price", "none", 10.0, 2.0),
        "level": Bucket("price", (5.0, 10.0)),
        "zip": Hash("zip", 10),
        "recent": Slots("recent", 2, None, Lookup("item", "item")),
    }
    vocabularies = {"item": pa.array([-7, 5, BIG - 1, BIG]), "tag": pa.array(["", "a", "ä"])}
    raw_types = {
        "page": "string", "item": "int64", "tags": "string", "price": "double",
        "zip": "string", "recent": "list<int64>",
    }  # fmt: skip
    return EncoderState(CONTRACT, operations, vocabularies, raw_types)


def raw_table(**columns: Any) -> pa.Table:
    given = {
        "page": ["h", "s", "h"],
        "item": [5, None, BIG],
        "tags": ["a||ä|a", "new", None],
        "price": [14.0, None, float("nan")],
        "zip": ["90210", "", None],
        "recent": [[BIG - 1, 6, 5], [], None],
        **columns,
    }
    types = dict(arrow.raw_columns(a_state()))
    return pa.table(
        {name: v if isinstance(v, pa.Array) else pa.array(v, types[name]) for name, v in given.items()}
    )


def test_arrow_encodes_each_kind_of_feature() -> None:
    encoded = arrow.encode(raw_table(), a_state())
    assert {name: values.tolist() for name, values in encoded.items()} == {
        "scenario_index": [0, 1, 0],
        "item": [2, 0, 4],
        "tag__0": [2, 0, -1],
        "tag__1": [3, -1, -1],
        "price": [2.0, 0.0, 0.0],
        "level": [3, 0, 0],
        "zip": [1 + zlib.crc32(b"90210") % 10, 1, 0],
        "recent__0": [3, -1, -1],
        "recent__1": [0, -1, -1],
    }
    assert {str(values.dtype) for name, values in encoded.items() if name != "price"} == {"int32"}
    assert encoded["price"].dtype == np.float32


def test_rows_encode_alike_alone_and_in_slices() -> None:
    table, state = raw_table(), a_state()
    whole = arrow.encode(table, state)
    for row in range(table.num_rows):
        alone = arrow.encode(table.slice(row, 1), state)
        assert {name: values.tolist() for name, values in alone.items()} == {
            name: [values[row].tolist()] for name, values in whole.items()
        }
    assert all(len(values) == 0 for values in arrow.encode(table.slice(0, 0), state).values())


def test_a_row_of_an_unknown_scenario_is_named() -> None:
    with pytest.raises(EncoderError, match=r"row 1: page = 'basket'.*expected one of home, search"):
        arrow.encode(raw_table(page=["h", "basket", "s"]), a_state())
    with pytest.raises(EncoderError, match="row 2: page = None"):
        arrow.encode(raw_table(page=["h", "h", None]), a_state())


def test_ids_that_passed_through_floats_are_exact_or_refused() -> None:
    exact = arrow.encode(raw_table(item=pa.array([5.0, float("nan"), -7.0])), a_state())
    assert exact["item"].tolist() == [2, 0, 1]
    with pytest.raises(EncoderError, match=r"row 1: column 'item' = 9007199254740992\.0.*floats.*as text"):
        arrow.encode(raw_table(item=pa.array([5.0, 2.0**53, 7.0])), a_state())
    with pytest.raises(EncoderError, match=r"row 2: column 'item' = 7\.5: expected a whole number"):
        arrow.encode(raw_table(item=pa.array([5.0, None, 7.5])), a_state())


def test_narrower_types_are_widened() -> None:
    table = raw_table(
        item=pa.array([5, None, -7], pa.int16()),
        zip=pa.array(["90210", "", None]).dictionary_encode(),
        price=pa.array([14, None, 10], pa.int32()),
    )
    encoded = arrow.encode(table, a_state())
    assert encoded["item"].tolist() == [2, 0, 1]
    assert encoded["price"].tolist() == [2.0, 0.0, 0.0]
    assert encoded["zip"].tolist() == arrow.encode(raw_table(), a_state())["zip"].tolist()


def test_a_missing_column_is_named() -> None:
    with pytest.raises(EncoderError, match="column 'zip' is missing"):
        arrow.encode(raw_table().drop(["zip"]), a_state())


def test_a_saved_state_loads_as_it_was(tmp_path: Path) -> None:
    state = a_state()
    state.save(tmp_path / "encoder")
    state.save(tmp_path / "encoder")
    loaded = EncoderState.load(tmp_path / "encoder")
    assert (loaded.digest, loaded.fingerprint) == (state.digest, CONTRACT.fingerprint)
    assert loaded.model_schema() == state.model_schema() == json.loads(json.dumps(state.model_schema()))
    assert arrow.encode(raw_table(), loaded)["item"].tolist() == [2, 0, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


def test_fields_say_what_the_model_needs() -> None:
    fields = {field.name: field for field in a_state().fields}
    assert list(fields) == list(CONTRACT.features)
    assert (fields["item"].size, fields["tag"].size, fields["zip"].size, fields["level"].size) == (
        5,
        4,
        11,
        4,
    )
    assert (fields["recent"].kind, fields["recent"].slots, fields["recent"].shares) == ("indices", 2, "item")
    assert fields["recent"].size == fields["item"].size
    assert fields["recent"].columns == ("recent__0", "recent__1")
    assert (fields["price"].kind, fields["price"].size, fields["price"].shares) == ("number", 0, None)


@pytest.mark.parametrize("damage", ["vocabulary", "json", "missing", "format"])
def test_a_damaged_state_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "encoder"
    a_state().save(folder)
    settings = folder / "encoder.json"
    if damage == "vocabulary":
        pq.write_table(pa.table({"key": [1, 2, 3, 4]}), folder / "vocabularies" / "item.parquet")
    elif damage == "json":
        settings.write_text(settings.read_text().replace('"mean": 10.0', '"mean": 11.0'))
    elif damage == "missing":
        (folder / "vocabularies" / "tag.parquet").unlink()
    else:
        settings.write_text(settings.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(EncoderError, match=r"damaged|not a whole encoder|format 9"):
        EncoderState.load(folder)


def test_another_state_is_not_written_over(tmp_path: Path) -> None:
    state = a_state()
    state.save(tmp_path / "encoder")
    other = EncoderState(
        state.contract, state.operations, {**state.vocabularies, "item": pa.array([1])}, state.raw_types
    )
    with pytest.raises(EncoderError, match="holds another encoder"):
        other.save(tmp_path / "encoder")


def test_encoding_needs_no_spark() -> None:
    program = (
        "import sys; sys.modules['pyspark'] = None; "
        "import feature_eng.encoder.arrow, feature_eng.snapshot, feature_eng.contract, foundation.job"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.spark
def test_the_encoder_learns_from_training_rows_alone(spark: SparkSession) -> None:
    rows = [
        ("train", "h", 5, "a|b", 1.0, "z", [7]),
        ("train", "s", BIG, "b", 3.0, "z", [5]),
        ("train", "s", 5, None, None, None, None),
        ("test", "h", 9, "only_in_test", 1000.0, "y", [9]),
        ("validation", "h", 8, "c", -1000.0, "y", [8]),
    ]
    schema = (
        "split string, page string, item bigint, tags string, price double, zip string, recent array<bigint>"
    )
    examples = spark.createDataFrame(rows, schema)
    state = fit(examples, CONTRACT)
    assert state.vocabularies["item"].to_pylist() == [5, BIG]
    assert state.vocabularies["tag"].to_pylist() == ["a", "b"]
    assert state.operations["price"] == Standardise("price", "none", 2.0, 1.0)
    assert fit(examples.repartition(3), CONTRACT).digest == state.digest
    encoded = arrow.encode(examples.coalesce(1).toArrow(), state)
    assert encoded["item"].tolist() == [1, 2, 1, 0, 0]
    assert encoded["tag__0"].tolist() == [1, 2, -1, 0, 0]
    assert encoded["recent__0"].tolist() == [0, 1, -1, 0, 0]


@pytest.mark.spark
def test_rare_values_and_constant_numbers_are_handled(spark: SparkSession) -> None:
    contract = a_contract(
        tag={"kind": "multi_valued", "column": "tags", "slots": 2, "min_count": 2},
        price={"kind": "numeric", "column": "price"},
    )
    rows = [("train", "h", 1, "a|b", 4.0), ("train", "h", 1, "b|c", 4.0), ("train", "h", 2, "", None)]
    examples = spark.createDataFrame(
        rows, "split string, page string, item bigint, tags string, price double"
    )
    state = fit(examples, contract)
    assert state.vocabularies["tag"].to_pylist() == ["b"]
    assert state.operations["price"] == Standardise("price", "none", 4.0, 1.0)


@pytest.mark.spark
def test_columns_of_unfit_types_are_named_together(spark: SparkSession) -> None:
    rows = [("train", "h", 1.5, 3, "cheap", "z", [1.5])]
    schema = (
        "split string, page string, item double, tags int, price string, zip string, recent array<double>"
    )
    with pytest.raises(EncoderError) as caught:
        fit(spark.createDataFrame(rows, schema), CONTRACT)
    for name in ("features.item: column 'item' is of type double", "features.tag", "features.price"):
        assert name in str(caught.value)


@pytest.mark.spark
def test_no_training_rows_is_said(spark: SparkSession) -> None:
    contract = a_contract()
    with pytest.raises(EncoderError, match="no training rows"):
        fit(spark.createDataFrame([("test", "h", 1)], "split string, page string, item bigint"), contract)


def weighted_state() -> EncoderState:
    state = a_state()
    contract = state.contract.model_copy(update={"weight": "worth"})
    return EncoderState(contract, state.operations, state.vocabularies, state.raw_types)


def test_a_missing_label_is_minus_1_and_a_weight_goes_with_the_labels() -> None:
    table = raw_table().append_column("label__click", pa.array([1, None, 0], pa.int32()))
    table = table.append_column("row_weight", pa.array([0.0, 2.5, 1e-3]))
    encoded = arrow.encode(table, weighted_state(), labels=True)
    assert encoded["label__click"].tolist() == [1.0, -1.0, 0.0]
    assert encoded["row_weight"].tolist() == [0.0, 2.5, float(np.float32(1e-3))]
    assert encoded["label__click"].dtype == encoded["row_weight"].dtype == np.float32
    assert "row_weight" not in arrow.encode(table, a_state(), labels=True)
    assert "row_weight" not in arrow.encode(table, weighted_state())


def test_the_model_is_told_of_weights_and_shifts_only_where_there_are_any() -> None:
    assert set(a_state().model_schema()) == {"fields", "scenario_names", "task_names"}
    assert weighted_state().model_schema()["row_weights"] is True
    mapping = {**CONTRACT.model_dump(mode="json", by_alias=True), "sampling": {
        "keep_negatives": 0.25, "by_scenario": {"search": 1.0}, "correction": "shift",
    }}  # fmt: skip
    sampled = EncoderState(to_contract(mapping), {}, {}, {})
    assert sampled.model_schema()["shift"] == {"task": 0, "kept_negatives": [0.25, 1.0]}
    assert "row_weights" not in sampled.model_schema()


@pytest.mark.spark
def test_what_was_learned_of_no_numbers_is_learned_anew_and_all_else_is_kept(spark: SparkSession) -> None:
    contract = a_contract(
        price={"kind": "numeric", "column": "price"},
        weight={"kind": "numeric", "column": "weight"},
        stock={"kind": "bucketed", "column": "stock", "num_buckets": 2},
        size={"kind": "bucketed", "column": "size", "num_buckets": 2},
    )
    schema = "split string, page string, item bigint, price double, weight double, stock double, size double"
    first = [("train", "h", 1, None, 1.0, None, 1.0), ("train", "h", 1, None, 5.0, None, 5.0)]
    later = [("train", "h", 1, 10.0, 7.0, 10.0, 7.0), ("train", "h", 1, 20.0, 9.0, 20.0, 9.0)]
    before = fit(spark.createDataFrame(first, schema), contract)
    assert before.operations["price"] == Standardise("price", "none", 0.0, 1.0)
    assert before.operations["stock"] == Bucket("stock", ())
    rows = spark.createDataFrame([*first, *later], schema)
    now, fresh = fit(rows, contract, before), fit(rows, contract)
    for name in ("price", "stock"):
        assert now.operations[name] == fresh.operations[name] != before.operations[name]
    for name in ("weight", "size"):
        assert now.operations[name] == before.operations[name] != fresh.operations[name]
