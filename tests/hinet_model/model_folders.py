"""A small model folder, made without Spark: two scenarios, two tasks, every kind of input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from feature_eng.contract import to_contract
from feature_eng.encoder.arrow import raw_columns
from feature_eng.encoder.state import Bucket, EncoderState, Hash, Lookup, Slots, Standardise
from feature_eng.snapshot import SnapshotRef
from hinet_model.data.batch import BatchLayout
from hinet_model.models.build import build_model
from hinet_model.models.hinet import HiNetSettings
from hinet_model.serving.scorer import save_model_folder

SETTINGS = HiNetSettings(
    embedding_dim=4,
    embedding_std=1.0,
    sub_experts=2,
    sub_expert_dims=[8],
    shared_experts=1,
    specific_experts=1,
    expert_dims=[8],
    tower_dims=[4],
    scenario_embedding_dim=4,
)
BIG_ID = 2**60 + 1
"""An id that a double cannot hold."""
SNAPSHOT = SnapshotRef(
    table="warehouse/movielens/training",
    version=4,
    table_id="id-of-the-table",
    files=(),
    columns=(("row_id", "int64"),),
    schema_hash="ab" * 32,
    contract_name="movielens",
    contract_fingerprint="cd" * 32,
    encoder_path="warehouse/movielens/encoder",
    encoder_digest="ef" * 32,
    scenario_rows={"train": (20, 60, 20)},
)


def encoder_state() -> EncoderState:
    """An encoder with a vocabulary, a hash, slots, a history and a number."""
    contract = to_contract(
        {
            "name": "small",
            "source": {"tables": {name: {"path": f"{name}.csv", "format": "csv"} for name in ("rows", "carts")}},
            "columns": {"key": ["user_id", "item_id"], "user": "user_id", "item": "item_id", "time": "at"},
            "scenario": {
                "column": "age",
                "values": {"young": {"range": [0, 29]}, "old": {"range": [30, 99]}},
            },
            "tasks": {
                "click": {"column": "rating", "greater_than": 3},
                "like": {"column": "rating", "greater_than": 4},
            },
            "features": {
                "user_id": {"kind": "categorical", "column": "user_id"},
                "item_id": {"kind": "categorical", "column": "item_id"},
                "zip": {"kind": "categorical", "column": "zip", "buckets": 8},
                "genres": {"kind": "multi_valued", "column": "genres", "separator": "|", "slots": 2},
                "year": {"kind": "numeric", "column": "year"},
                "recent_items": {"kind": "history", "of": "item", "last": 2},
                "journey": {
                    "kind": "history", "of": "item", "last": 2, "table": ["rows", "carts"], "ages": True, "kinds": True,
                },
            },
            "split": {"method": "time", "fractions": [0.8, 0.1, 0.1]},
        }
    )  # fmt: skip
    ages, kinds = "journey__ages", "journey__kinds"
    return EncoderState(
        contract=contract,
        operations={
            "user_id": Lookup("user_id", "user_id"),
            "item_id": Lookup("item_id", "item_id"),
            "zip": Hash("zip", 8),
            "genres": Slots("genres", 2, "|", Lookup("genres", "genres")),
            "year": Standardise("year", "none", 1990.0, 10.0),
            "recent_items": Slots("recent_items", 2, None, Lookup("item_id", "item_id")),
            "journey": Slots("journey", 2, None, Lookup("item_id", "item_id")),
            ages: Slots(ages, 2, None, Bucket(ages, (2.0, 60.0))),
            kinds: Slots(kinds, 2, None, Lookup(kinds, kinds)),
        },
        vocabularies={
            "user_id": pa.array([1, 2, 3, BIG_ID], pa.int64()),
            "item_id": pa.array([10, 20, 30], pa.int64()),
            "genres": pa.array(["comedy", "drama"], pa.string()),
            kinds: pa.array(["carts", "rows"], pa.string()),
        },
        raw_types={
            "user_id": "int64",
            "item_id": "int64",
            "age": "double",
            "zip": "string",
            "genres": "string",
            "year": "double",
            "recent_items": "list<int64>",
            "journey": "list<int64>",
            ages: "list<int64>",
            kinds: "list<string>",
        },
    )


def raw_rows(state: EncoderState) -> pa.Table:
    """Five rows: both scenarios in mixed order, unknown values, nulls, an empty history."""
    columns: dict[str, list[Any]] = {
        "user_id": [1, BIG_ID, 3, 99, None],
        "item_id": [10, 20, 30, 77, 10],
        "age": [25.0, 40.0, 12.0, 31.0, 29.0],
        "zip": ["12345", "00000", None, "", "99999"],
        "genres": ["comedy", "drama|comedy|western", "", None, "western"],
        "year": [1990.0, None, 2000.5, 1950.0, 1999.0],
        "recent_items": [[20, 30], [], [77], None, [10, 20, 30]],
        "journey": [[20, 30], [], [77], None, [10, 20, 30]],
        "journey__ages": [[1, 90], [], [5000], None, [2, 3, 2**30]],
        "journey__kinds": [["rows", "carts"], [], ["gone"], None, ["carts", "rows", "carts"]],
    }
    schema = pa.schema(raw_columns(state))
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def save_small_model(folder: Path, seed: int = 1, **changed: Any) -> Path:
    """A model folder of random weights, of settings that may be changed."""
    state, settings = encoder_state(), SETTINGS.model_copy(update=changed)
    model = build_model(settings, BatchLayout.from_schema(state.model_schema()), seed=seed)
    return save_model_folder(
        folder, state, settings.model_dump(mode="json"), model.state_dict(), raw_rows(state)
    )
