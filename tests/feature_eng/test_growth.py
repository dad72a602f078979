"""An encoder that grows: old values keep their indices, new ones get new ones, those unseen for long free theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from small_logs import small_contract

from feature_eng import delta
from feature_eng.contract import ContractError
from feature_eng.encoder import arrow
from feature_eng.encoder import state as states
from feature_eng.encoder.growth import fit_or_grow, grown
from feature_eng.encoder.state import (
    Bucket,
    EncoderError,
    EncoderState,
    Lookup,
    Operation,
    Slots,
    Standardise,
)
from feature_eng.snapshot import ENCODER_PATH

FEATURES: dict[str, Any] = {
    "what": {"kind": "categorical", "column": "what"},
    "who": {"kind": "categorical", "column": "who"},
    "price": {"kind": "numeric", "column": "price"},
    "level": {"kind": "bucketed", "column": "price", "num_buckets": 3},
    "recent": {"kind": "history", "last": 2},
}


def state(what: list[str], who: list[int], **encoder: Any) -> EncoderState:
    """As fitted anew: vocabularies in order."""
    operations: dict[str, Operation] = {
        "what": Lookup("what", "what"),
        "who": Lookup("who", "who"),
        "price": Standardise("price", "none", 0.0, 1.0),
        "level": Bucket("price", (0.0,)),
        "recent": Slots("recent", 2, None, Lookup("what", "what")),
    }
    return EncoderState(
        small_contract(features=FEATURES, encoder={"from": "previous", **encoder}),
        operations,
        {"what": pa.array(what, pa.string()), "who": pa.array(who, pa.int64())},
        {"page": "int64", "what": "string", "who": "int64", "price": "double", "recent": "list<string>"},
    )


def indices(of: EncoderState, what: list[str | None]) -> list[int]:
    rows = len(what)
    table = pa.table(
        {
            "page": [1] * rows,
            "what": what,
            "who": [7] * rows,
            "price": [1.0] * rows,
            "recent": [[one] for one in what],
        }
    )
    encoded = arrow.encode(table, of)
    listed = [-1 if one is None else index for one, index in zip(what, encoded["what"], strict=True)]
    assert encoded["recent__0"].tolist() == listed
    return [int(index) for index in encoded["what"]]


def test_old_values_keep_their_indices_and_new_ones_stand_behind() -> None:
    first = state(["b", "d"], [7])
    second = grown(state(["a", "c", "d"], [3, 7]), first)
    assert indices(first, ["b", "d", "a", None]) == [1, 2, 0, 0]
    assert indices(second, ["b", "d", "a", "c", "z", None]) == [1, 2, 3, 4, 0, 0]
    assert second.vocabularies["who"].to_pylist() == [7, 3]
    third = grown(state(["0", "b"], [7]), second)
    assert indices(third, ["b", "d", "a", "c", "0"]) == [1, 2, 3, 4, 5]
    assert third.ages["what"].to_pylist() == [0, 1, 1, 1, 0]


def test_a_value_unseen_for_long_frees_its_index_for_a_new_one(tmp_path: Path) -> None:
    found = state(["a", "b", "c"], [7], forget_after=2)
    found = grown(state(["a"], [7], forget_after=2), found)
    assert indices(found, ["a", "b", "c"]) == [1, 2, 3]
    found = grown(state(["a"], [7], forget_after=2), found)
    assert indices(found, ["a", "b", "c"]) == [1, 0, 0]
    assert [one.size for one in found.fields if one.name == "what"] == [4]
    found.save(tmp_path / "encoder")
    again = EncoderState.load(tmp_path / "encoder")
    assert again.digest == found.digest
    found = grown(state(["d", "e", "f", "b"], [7], forget_after=2), again)
    assert indices(found, ["a", "d", "e", "f", "b"]) == [1, 2, 3, 4, 5]
    assert found.ages["what"].to_pylist() == [1, 0, 0, 0, 0]


def test_another_column_or_type_begins_anew() -> None:
    first = state(["b"], [7])
    other = EncoderState(
        first.contract,
        {**first.operations, "what": Lookup("else", "what")},
        first.vocabularies,
        first.raw_types,
    )
    fresh = state(["a", "b"], [7])
    assert grown(fresh, EncoderState(first.contract, {}, {}, {})).vocabularies["what"].to_pylist() == [
        "a",
        "b",
    ]
    before = EncoderState(first.contract, {"what": Lookup("else", "what")}, other.vocabularies, {})
    assert grown(fresh, before).vocabularies["what"].to_pylist() == ["a", "b"]


def test_forgetting_needs_something_that_was_kept() -> None:
    with pytest.raises(ContractError, match="'forget_after' goes with 'from: previous'"):
        small_contract(encoder={"forget_after": 3})
    assert small_contract(encoder={"from": "previous"}).fingerprint == small_contract().fingerprint


@pytest.mark.spark
def test_an_encoder_of_another_release_is_not_gone_on_from_and_the_line_says_how_to_begin_anew(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, place = state(["a"], [7]), str(tmp_path / "encoder")
    found.save(place)
    delta.write(spark.range(1), tmp_path / "training", properties={ENCODER_PATH: place})
    monkeypatch.setattr(states, "FORMAT", states.FORMAT + 1)
    with pytest.raises(
        EncoderError, match=r"^encoder.from: .* of format 1; .* --set 'encoder={from: nothing}'$"
    ):
        fit_or_grow(spark.range(1), found.contract, str(tmp_path / "training"), "")
