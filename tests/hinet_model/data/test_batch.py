"""Batches: rows sorted by scenario, ids made distinct, nothing lost on the way and back."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation.settings import UserError
from hinet_model.data.batch import Batch, BatchError, BatchLayout, distinct_by_flags, distinct_by_sort


def field(name: str, kind: str, size: int, slots: int = 1, shares: str | None = None) -> dict[str, Any]:
    columns = [f"{name}__{slot}" for slot in range(slots)] if kind == "indices" else [name]
    return {"name": name, "kind": kind, "slots": slots, "size": size, "columns": columns, "shares": shares}


SCHEMA: dict[str, Any] = {
    "fields": [
        field("recent_items", "indices", 5, slots=2, shares="item"),  # shares the rows of a later field
        field("user", "index", 4),
        field("rate", "number", 0),
        field("item", "index", 5),
        field("year", "number", 0),
    ],
    "scenario_names": ["young", "middle", "old"],
    "task_names": ["click", "like"],
}
LAYOUT = BatchLayout.from_schema(SCHEMA)


def columns(num_rows: int = 4) -> dict[str, np.ndarray[Any, Any]]:
    """Four rows that are short enough to follow by eye, or as many copies of them."""
    rows: dict[str, Any] = {
        "row_id": np.array([2**63 - 1, -(2**63), 2**53 + 1, 7]),
        "scenario_index": np.array([2, 0, 2, 0], dtype=np.int32),
        "label__click": np.array([1, 0, 1, 0], dtype=np.float32),
        "label__like": np.array([0, 0, 1, 0], dtype=np.float32),
        "recent_items__0": np.array([4, -1, 0, 1], dtype=np.int32),
        "recent_items__1": np.array([-1, -1, 4, -1], dtype=np.int32),
        "user": np.array([3, 0, 3, 1], dtype=np.int32),
        "rate": np.array([0.5, 0.25, -1, 0], dtype=np.float32),
        "item": np.array([4, 1, 0, 2], dtype=np.int32),
        "year": np.array([1, 2, 3, 4], dtype=np.float32),
    }
    return {name: np.resize(values, num_rows) for name, values in rows.items()}


def test_the_layout_lays_fields_out_one_after_the_other() -> None:
    assert LAYOUT.num_embeddings == 9
    assert (LAYOUT.num_slots, LAYOUT.num_numbers, LAYOUT.num_scenarios, LAYOUT.num_tasks) == (4, 2, 3, 2)
    recent, user, item = LAYOUT.slot_fields
    assert (user.offset, user.positions, user.pooled) == (0, (2,), False)
    assert (item.offset, item.positions, item.pooled) == (4, (3,), False)
    assert (recent.offset, recent.positions, recent.pooled, recent.shares) == (4, (0, 1), True, "item")


def test_the_layout_names_the_columns_to_read_with_their_dtypes() -> None:
    assert LAYOUT.columns == {name: str(values.dtype) for name, values in columns().items()}


def test_the_layout_pickles() -> None:
    assert pickle.loads(pickle.dumps(LAYOUT)) == LAYOUT


def test_rows_are_sorted_by_scenario_and_ids_are_distinct() -> None:
    batch, order = LAYOUT.to_batch(columns())
    assert order.tolist() == [1, 3, 0, 2]
    assert batch.scenario_counts == (2, 0, 2)
    assert batch.scenario_index.tolist() == [0, 0, 2, 2]
    # user rows 0..3, item rows 4..8 (shared by recent_items)
    assert batch.unique_ids.tolist() == [0, 1, 3, 4, 5, 6, 8]
    padding = 7
    assert batch.inverse.tolist() == [
        [padding, padding, 0, 4],
        [4, padding, 1, 5],
        [6, padding, 2, 6],
        [3, 6, 2, 3],
    ]
    assert batch.numbers.tolist() == [[0.25, 2], [0, 4], [0.5, 1], [-1, 3]]
    assert batch.labels.tolist() == [[0, 0], [0, 0], [1, 0], [1, 1]]
    assert batch.row_ids.tolist() == [-(2**63), 7, 2**63 - 1, 2**53 + 1]
    assert batch.global_rows == batch.num_rows == 4
    assert batch.inverse.dtype == batch.unique_ids.dtype == batch.row_ids.dtype == torch.int64
    assert batch.inverse.is_contiguous()


def test_order_undoes_the_sort() -> None:
    batch, order = LAYOUT.to_batch(columns(50))
    restored = np.empty(50, dtype=np.int64)
    restored[order] = batch.row_ids.numpy()
    assert restored.tolist() == columns(50)["row_id"].tolist()


@given(st.lists(st.integers(0, 2), max_size=60))
def test_the_sort_is_stable_and_counts_are_right(scenarios: list[int]) -> None:
    rows = columns(len(scenarios))
    rows["scenario_index"] = np.array(scenarios, dtype=np.int32)
    rows["row_id"] = np.arange(len(scenarios))
    batch, _ = LAYOUT.to_batch(rows)
    assert batch.scenario_counts == tuple(scenarios.count(scenario) for scenario in range(3))
    expected = sorted(range(len(scenarios)), key=lambda row: scenarios[row])
    assert batch.row_ids.tolist() == expected


@given(st.integers(1, 50), st.integers(0, 30), st.integers(0, 4), st.integers(0, 2**32))
def test_flags_and_sort_find_the_same_distinct_ids(size: int, rows: int, slots: int, seed: int) -> None:
    ids = np.random.default_rng(seed).integers(0, size + 1, (rows, slots))
    by_flags, by_sort = distinct_by_flags(ids, size), distinct_by_sort(ids, size)
    for flags, sort in zip(by_flags, by_sort, strict=True):
        assert flags.dtype == sort.dtype == np.int64
        assert flags.tolist() == sort.tolist()
    unique_ids, inverse = by_flags
    assert np.append(unique_ids, size)[inverse].tolist() == ids.tolist()


def test_a_batch_of_no_rows_is_a_batch() -> None:
    batch, order = LAYOUT.to_batch({name: values[:0] for name, values in columns().items()}, global_rows=5)
    assert (batch.num_rows, batch.global_rows, len(order)) == (0, 5, 0)
    assert batch.scenario_counts == (0, 0, 0)
    assert batch.unique_ids.shape == (0,)
    assert batch.inverse.shape == (0, 4)
    assert batch.labels.shape == (0, 2)


def test_scoring_needs_neither_labels_nor_row_ids() -> None:
    rows = columns()
    for name in ("row_id", "label__click", "label__like"):
        del rows[name]
    batch, order = LAYOUT.to_batch(rows)
    assert batch.labels.shape == (4, 0)
    assert batch.row_ids.tolist() == order.tolist()


def test_a_layout_without_id_features_makes_batches() -> None:
    layout = BatchLayout.from_schema({**SCHEMA, "fields": [field("rate", "number", 0)]})
    batch, _ = layout.to_batch(columns())
    assert batch.inverse.shape == (4, 0)
    assert batch.unique_ids.shape == (0,)


def test_moving_a_batch_moves_every_tensor() -> None:
    batch = LAYOUT.to_batch(columns())[0].to("meta")
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 6
    assert all(tensor.is_meta for tensor in tensors)
    assert batch.scenario_counts == (2, 0, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_batches_reach_the_gpu() -> None:
    batch: Batch = LAYOUT.to_batch(columns())[0]
    moved = batch.pin_memory().to("cuda", non_blocking=True)
    assert moved.inverse.is_cuda
    assert moved.inverse.tolist() == batch.inverse.tolist()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("user", [0, 4, 1, 1], r"column 'user' holds 4 at row 1; expected 0 to 3 \(4 indices\)"),
        ("user", [0, 0, -1, 1], "column 'user' holds -1 at row 2; expected 0 to 3"),
        ("recent_items__1", [0, 5, 1, 1], "column 'recent_items__1' holds 5 at row 1; expected -1 to 4"),
        ("recent_items__1", [0, -2, 1, 1], "column 'recent_items__1' holds -2 at row 1; expected -1 to 4"),
        (
            "scenario_index",
            [0, 3, 1, 1],
            r"'scenario_index' holds 3 at row 1; expected 0 to 2 \(3 scenarios\)",
        ),
        ("scenario_index", [-1, 0, 1, 1], "'scenario_index' holds -1 at row 0"),
    ],
)
def test_indices_out_of_range_are_refused_by_column(name: str, values: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LAYOUT.to_batch({**columns(), name: np.array(values, dtype=np.int32)})


def test_other_dtypes_lengths_and_missing_columns_are_refused_by_name() -> None:
    rows = columns()
    with pytest.raises(
        BatchError, match=r"column 'user' has dtype float64 and shape .* one value of int32 a row"
    ):
        LAYOUT.to_batch({**rows, "user": rows["user"].astype(float)})
    with pytest.raises(BatchError, match="column 'user' has 3 rows; expected 4"):
        LAYOUT.to_batch({**rows, "user": rows["user"][:3]})
    with pytest.raises(BatchError, match="column 'label__like' is missing"):
        LAYOUT.to_batch({name: values for name, values in rows.items() if name != "label__like"})
    with pytest.raises(BatchError, match="column 'item' is missing"):
        LAYOUT.to_batch({name: values for name, values in rows.items() if name != "item"})


@pytest.mark.parametrize("name", ["rate", "label__like"])
def test_numbers_that_are_not_finite_are_refused_by_column(name: str) -> None:
    with pytest.raises(BatchError, match=f"column '{name}' holds NaN or infinity"):
        LAYOUT.to_batch({**columns(), name: np.array([0, np.nan, 1, 0], dtype=np.float32)})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (field("user", "index", 4, shares="nobody"), "shares the embedding of 'nobody'"),
        (
            field("user", "index", 4, shares="item"),
            "has 4 indices but shares the embedding of 'item', which has 5",
        ),
        (field("user", "text", 4), "kind 'text'"),
    ],
)
def test_a_schema_that_cannot_be_is_refused(changed: dict[str, Any], message: str) -> None:
    fields = [changed if old["name"] == "user" else old for old in SCHEMA["fields"]]
    with pytest.raises(BatchError, match=message):
        BatchLayout.from_schema({**SCHEMA, "fields": fields})
