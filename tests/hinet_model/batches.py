"""Random layouts and batches for tests of the model side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hinet_model.data.batch import PADDING, Batch, BatchLayout
from hinet_model.nn.embedding import FusedEmbedding

VOCABULARY = 12


def make_layout(
    num_scenarios: int = 3, num_tasks: int = 2, widths: Mapping[str, int] | None = None
) -> BatchLayout:
    """A layout of `make_schema`."""
    return BatchLayout.from_schema(make_schema(num_scenarios, num_tasks), widths)


def make_schema(num_scenarios: int = 3, num_tasks: int = 2) -> dict[str, Any]:
    """Two plain id features, a multi-valued one, a history sharing the first one's rows, two numbers."""
    fields = [
        {
            "name": "item",
            "kind": "index",
            "slots": 1,
            "size": VOCABULARY,
            "columns": ["item"],
            "shares": None,
        },
        {"name": "age", "kind": "number", "slots": 1, "size": 0, "columns": ["age"], "shares": None},
        {"name": "city", "kind": "index", "slots": 1, "size": 5, "columns": ["city"], "shares": None},
        _slots("genres", 3, 6, None),
        _slots("recent", 2, VOCABULARY, "item"),
        {"name": "rate", "kind": "number", "slots": 1, "size": 0, "columns": ["rate"], "shares": None},
    ]
    return {
        "fields": fields,
        "scenario_names": [f"s{i}" for i in range(num_scenarios)],
        "task_names": [f"t{j}" for j in range(num_tasks)],
    }


def _slots(name: str, slots: int, size: int, shares: str | None) -> dict[str, Any]:
    columns = [f"{name}__{k}" for k in range(slots)]
    return {
        "name": name,
        "kind": "indices",
        "slots": slots,
        "size": size,
        "columns": columns,
        "shares": shares,
    }


def make_columns(layout: BatchLayout, scenarios: Sequence[int], seed: int = 0) -> dict[str, np.ndarray]:
    """Random rows of the given scenarios, in the given order, as training-table columns."""
    random = np.random.default_rng(seed)
    num_rows = len(scenarios)
    columns: dict[str, np.ndarray] = {
        "row_id": np.arange(num_rows, dtype=np.int64),
        "scenario_index": np.asarray(scenarios, dtype=np.int32),
    }
    for field in layout.slot_fields:
        used = random.integers(0, len(field.columns) + 1, num_rows)
        for slot, name in enumerate(field.columns):
            index = random.integers(0, field.size, num_rows).astype(np.int32)
            columns[name] = np.where(used > slot, index, PADDING).astype(np.int32) if field.pooled else index
    for name in layout.number_columns:
        columns[name] = random.normal(size=num_rows).astype(np.float32)
    for name in layout.label_columns:
        columns[name] = random.integers(0, 2, num_rows).astype(np.float32)
    return columns


def make_batch(layout: BatchLayout, scenarios: Sequence[int], seed: int = 0) -> Batch:
    """A batch of random rows of the given scenarios."""
    return layout.to_batch(make_columns(layout, scenarios, seed))[0]


def sorted_batch(layout: BatchLayout) -> tuple[Batch, dict[str, np.ndarray]]:
    """A batch of random rows of three scenarios, and its columns in the batch's order.

    Fields that tell of another's slots use the same ones as that.
    """
    columns = make_columns(layout, [0, 1, 2] * 6)
    names = {field.name: field.columns for field in layout.slot_fields}
    for field in layout.slot_fields:
        if field.beside is None:
            continue
        for own, other in zip(field.columns, names[field.beside], strict=True):
            used, known = columns[other] != PADDING, np.maximum(columns[own], 0)
            columns[own] = np.where(used, known, PADDING).astype(np.int32)
    columns = take(columns, np.argsort(columns["scenario_index"], kind="stable").tolist())
    return layout.to_batch(columns)[0], columns


def take(columns: dict[str, np.ndarray], rows: Sequence[int]) -> dict[str, np.ndarray]:
    """The same columns, only the given rows in the given order."""
    return {name: values[list(rows)] for name, values in columns.items()}


def value_of(embedding: FusedEmbedding, layout: BatchLayout, name: str, index: int) -> torch.Tensor:
    """What the table has for a value of a feature, all its parts."""
    field = next(field for field in layout.slot_fields if field.name == name)
    first = field.offset + index * field.parts
    return embedding.weight[first : first + field.parts].flatten()
