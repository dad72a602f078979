"""The two interpreters of one encoder state, held against each other on generated rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from feature_eng.contract import to_contract
from feature_eng.encoder import arrow, expressions
from feature_eng.encoder import spark as spark_encoder
from feature_eng.encoder.agreement import differences
from feature_eng.encoder.fit import fit
from feature_eng.encoder.state import EncoderState

pytestmark = [pytest.mark.spark, pytest.mark.slow]

CONTRACT = to_contract(
    {
        "name": "fuzz",
        "source": {
            "reader": "tables",
            "main": "log",
            "tables": {name: {"path": f"{name}.csv", "format": "csv"} for name in ("log", "carts")},
        },
        "columns": {"key": ["row"], "user": "user", "item": "item", "time": "at"},
        "scenario": {
            "column": "page",
            "values": {
                "home": {"range": [None, 3]},
                "search": {"range": [4, 10]},
                "cart": {"in": [11, 12.5]},
            },
        },
        "tasks": {"click": {"column": "clicked", "at_least": 1}},
        "features": {
            "user": {"kind": "categorical", "column": "user"},
            "item": {"kind": "categorical", "column": "item", "min_count": 2},
            "user_hash": {"kind": "categorical", "column": "user", "buckets": 7},
            "item_hash": {"kind": "categorical", "column": "item", "buckets": 1000},
            "tags": {"kind": "multi_valued", "column": "tags", "separator": "|", "slots": 3},
            "tags_hash": {
                "kind": "multi_valued",
                "column": "words",
                "separator": ".,",
                "slots": 2,
                "buckets": 5,
            },
            "price": {"kind": "numeric", "column": "price"},
            "price_log": {"kind": "numeric", "column": "price", "transform": "log1p"},
            "price_bucket": {"kind": "bucketed", "column": "price", "num_buckets": 8},
            "stock": {"kind": "numeric", "column": "stock"},
            "stock_bucket": {"kind": "bucketed", "column": "stock", "num_buckets": 4},
            "recent": {"kind": "history", "of": "item", "last": 3},
            "recent_hashed": {"kind": "history", "of": "user_hash", "last": 2},
            "journey": {
                "kind": "history",
                "of": "item",
                "last": 3,
                "table": ["log", "carts"],
                "ages": True,
                "kinds": True,
            },
            "seen": {"kind": "count"},
            "clicks": {"kind": "rate", "task": "click"},
        },
        "split": {"method": "random", "allow_leakage": True},
        "weight": "worth",
    }
)

# Few distinct values, so that train and test share some; and the awkward ones besides.
ITEMS = st.one_of(
    st.sampled_from(["", " ", "a", "A", "ä", "ä", "日本", "🎬", "0", "-0.0", "x\0y"]), st.text(max_size=4)
)
USERS = st.one_of(
    st.sampled_from([0, -1, 1, 2**24 + 1, 2**53 + 1, 2**63 - 1, 2**63 - 2, -(2**63)]),
    st.integers(-(2**63), 2**63 - 1),
)
PRICES = st.one_of(
    st.sampled_from([0.0, -0.0, -1.0, 1e-300, 1e300, -1e300, float("nan"), float("inf"), float("-inf")]),
    st.floats(-1e6, 1e6),
    st.floats(),
)
TAGS = st.lists(st.sampled_from(["", "a", "b", "a b", "Ünï", "\\E", "c", ".", ","]), max_size=6)

AGES = st.sampled_from([1, 2, 3, 4, 63, 64, 2**26 - 1, 2**26, 2**40]) | st.integers(0, 10**6)
JOURNEYS = st.none() | st.lists(
    st.tuples(ITEMS, AGES, st.sampled_from(["log", "carts", "other"])), max_size=5
)

ROW = st.fixed_dictionaries(
    {
        "page": st.sampled_from([-5.0, 0.0, 3.0, 4.0, 9.5, 10.0, 11.0, 12.5]),
        "user": st.none() | USERS,
        "item": st.none() | ITEMS,
        "tags": st.none() | TAGS.map("|".join),
        "words": st.none() | TAGS.map(".,".join),
        "price": st.none() | PRICES,
        "stock": st.none() | USERS,
        "recent": st.none() | st.lists(st.none() | ITEMS, max_size=5),
        "recent_hashed": st.none() | st.lists(st.none() | USERS, max_size=4),
        "journey": JOURNEYS,
        "seen": st.none() | st.integers(0, 2**40),
        "clicks": st.none() | st.floats(0, 1),
        "label__click": st.none() | st.integers(0, 1),
        "row_weight": st.floats(0, 1e30),
    }
)
SCHEMA = pa.schema(
    [
        ("row", pa.int64()), ("split", pa.string()), ("page", pa.float64()), ("user", pa.int64()),
        ("item", pa.string()), ("tags", pa.string()), ("words", pa.string()), ("price", pa.float64()),
        ("stock", pa.int64()), ("recent", pa.list_(pa.string())), ("recent_hashed", pa.list_(pa.int64())),
        ("journey", pa.list_(pa.string())), ("journey__ages", pa.list_(pa.int64())),
        ("journey__kinds", pa.list_(pa.string())), ("seen", pa.int64()), ("clicks", pa.float64()),
        ("label__click", pa.int32()),
        ("row_weight", pa.float64()),
    ]
)  # fmt: skip


def generated_rows(count: int) -> pa.Table:
    rows: list[dict[str, Any]] = []

    @settings(
        max_examples=count,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(ROW)
    def collect(row: dict[str, Any]) -> None:
        place = len(rows)
        names = ("journey", "journey__ages", "journey__kinds")
        slots = row["journey"]
        told = {
            name: None if slots is None else [slot[part] for slot in slots] for part, name in enumerate(names)
        }
        rows.append({**row, **told, "row": place, "split": "test" if place % 4 == 0 else "train"})

    collect()
    assert len(rows) >= count // 2
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def test_spark_and_arrow_give_equal_rows(spark: SparkSession, tmp_path: Path) -> None:
    table = generated_rows(600)
    examples = spark_encoder.with_row_id(spark.createDataFrame(table), CONTRACT)
    state = fit(examples, CONTRACT)
    raw = examples.coalesce(1).toArrow()
    by_spark = expressions.encode(examples, state).toArrow().sort_by("row_id")
    by_arrow = arrow.encode(raw.sort_by("row_id"), state, labels=True)
    assert set(by_spark.column_names) == {*by_arrow, "split"}
    assert all(by_spark.column(name).null_count == 0 for name in by_arrow)
    assert differences(by_spark, by_arrow, state) == []
    written = spark_encoder.encode(examples, state).toArrow().sort_by("row_id")
    assert written.schema.names == ["split", *(name for name, _ in spark_encoder.training_columns(state))]
    assert differences(written, by_arrow, state) == []
    # The comparison means something: values known and unknown, padded and full, were all seen.
    for name in ("user", "item", "recent__0", "price_bucket", "journey__kinds__0"):
        assert 0 in by_arrow[name], name
        assert by_arrow[name].max() > 1, name
    assert -1 in by_arrow["recent__2"]
    assert -1 in by_arrow["label__click"]
    assert by_arrow["recent__2"].max() > 0
    assert np.isfinite(by_arrow["price"]).all()
    # Slot k of all three is of one value, and each bucket of ages is twice as long as the one before.
    padded = by_arrow["journey__2"] == -1
    assert padded.any()
    assert not padded.all()
    assert (padded == (by_arrow["journey__ages__2"] == -1)).all()
    assert (padded == (by_arrow["journey__kinds__2"] == -1)).all()
    ages = pc.list_element(raw.sort_by("row_id")["journey__ages"].filter(pa.array(~padded)), 2).to_numpy()
    expected = [1 + min(26, int(age).bit_length() - 1) if age > 0 else 1 for age in ages]
    assert by_arrow["journey__ages__2"][~padded].tolist() == expected
    state.save(tmp_path)
    assert EncoderState.load(tmp_path).digest == state.digest
    told = {item.name: item.beside for item in state.fields if item.beside}
    assert told == {"journey__ages": "journey", "journey__kinds": "journey"}


def test_a_difference_is_named() -> None:
    by_spark = pa.table({"row_id": [7, 8], "user": pa.array([1, 2], pa.int32())})
    by_arrow = {"row_id": np.array([7, 8]), "user": np.array([1, 3], np.int32)}
    state = EncoderState(CONTRACT, {}, {}, {})
    assert differences(by_spark, by_arrow, state) == ["user: 2 by Spark, 3 by Arrow (row_id 8)"]
    by_arrow["user"] = np.array([1, 2], np.int64)
    assert "int64 (2,) by Arrow" in differences(by_spark, by_arrow, state)[0]
