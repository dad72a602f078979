"""The two interpreters of one encoder state, held against each other on generated rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
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
        "source": {"reader": "tables", "tables": {"log": {"path": "log.csv", "format": "csv"}}},
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
        ("seen", pa.int64()), ("clicks", pa.float64()), ("label__click", pa.int32()),
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
        rows.append({**row, "row": place, "split": "test" if place % 4 == 0 else "train"})

    collect()
    assert len(rows) >= count // 2
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def test_spark_and_arrow_give_equal_rows(spark: SparkSession) -> None:
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
    for name in ("user", "item", "recent__0", "price_bucket"):
        assert 0 in by_arrow[name], name
        assert by_arrow[name].max() > 1, name
    assert -1 in by_arrow["recent__2"]
    assert -1 in by_arrow["label__click"]
    assert by_arrow["recent__2"].max() > 0
    assert np.isfinite(by_arrow["price"]).all()


def test_a_difference_is_named() -> None:
    by_spark = pa.table({"row_id": [7, 8], "user": pa.array([1, 2], pa.int32())})
    by_arrow = {"row_id": np.array([7, 8]), "user": np.array([1, 3], np.int32)}
    state = EncoderState(CONTRACT, {}, {}, {})
    assert differences(by_spark, by_arrow, state) == ["user: 2 by Spark, 3 by Arrow (row_id 8)"]
    by_arrow["user"] = np.array([1, 2], np.int64)
    assert "int64 (2,) by Arrow" in differences(by_spark, by_arrow, state)[0]
