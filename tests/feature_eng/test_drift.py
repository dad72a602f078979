"""Drift: two builds are compared by what means the same in both, and the contract's limits stop the second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from small_logs import small_contract

from feature_eng import drift
from feature_eng.contract import Contract
from feature_eng.encoder.state import Bucket, EncoderState, Lookup, Slots, Standardise
from feature_eng.snapshot import CellCount

LIMITS = {"rows": 1.5, "labels": 1.5, "nulls": 0.05, "unknown": 0.2, "psi": 0.1}


def contract(limits: dict[str, Any] | None = None) -> Contract:
    features = {
        "what": {"kind": "categorical", "column": "what"},
        "price": {"kind": "numeric", "column": "price"},
        "level": {"kind": "bucketed", "column": "level", "num_buckets": 4},
        "recent": {"kind": "history", "last": 2},
    }
    return small_contract(features=features, **({"drift": limits} if limits else {}))


def state(limits: dict[str, Any] | None = None) -> EncoderState:
    lookup = Lookup("what", "what")
    return EncoderState(
        contract(limits),
        {
            "what": lookup,
            "price": Standardise("price", "none", 0.0, 1.0),
            "level": Bucket("level", (1.0, 2.0)),
            "recent": Slots("recent", 2, None, lookup),
        },
        {"what": pa.array(sorted(str(item) for item in range(50)))},
        {"page": "int64", "what": "string", "price": "double", "level": "int64", "recent": "list<string>"},
    )


def sample(
    rows: int = 5000, seed: int = 0, items: int = 50, price: float = 0.0, nulls: float = 0.0
) -> pa.Table:
    draw = np.random.default_rng(seed)
    what = [None if one < nulls else str(int(items * two**2)) for one, two in draw.random((rows, 2))]
    return pa.table(
        {
            "page": draw.integers(1, 3, rows),
            "what": pa.array(what, pa.string()),
            "price": draw.normal(price, 1.0, rows),
            "level": draw.integers(0, 9, rows),
            "recent": pa.array([[item] if item else [] for item in what], pa.list_(pa.string())),
        }
    )


def cells(home: int = 1000, clicked: int = 300) -> list[CellCount]:
    return [
        CellCount("home", "train", home, (home,), (clicked,), home, home),
        CellCount("search", "train", 500, (400,), (100,), 500, 500),
    ]


def compared(
    now: pa.Table, now_cells: list[CellCount], limits: dict[str, Any] | None = None
) -> dict[tuple[str, str], drift.Measure]:
    of = state(limits)
    before = drift.profile(sample(), of, cells())
    looks = drift.profile(now, of, now_cells)
    return {(one.kind, one.name): one for one in drift.measures(before, looks, now, of)}


def test_builds_of_one_population_lie_close() -> None:
    found = compared(sample(seed=1), cells(1100, 320), LIMITS)
    assert not any(one.is_beyond for one in found.values())
    drift.check(list(found.values()))
    assert {kind for kind, _ in found} == {"rows", "labels", "nulls", "unknown", "psi"}
    assert found["rows", "home"] == drift.Measure("rows", "home", 1000.0, 1100.0, False)
    assert found["labels", "click in search"].now == 0.25
    assert max(one.now for (kind, _), one in found.items() if kind == "psi") < 0.01


@pytest.mark.parametrize(
    ("changed", "counted", "beyond"),
    [
        ({}, {"home": 100, "clicked": 30}, {("rows", "home")}),
        ({}, {"clicked": 100}, {("labels", "click in home")}),
        ({"nulls": 0.1}, {}, {("nulls", "what")}),
        ({"price": 1.0}, {}, {("psi", "price")}),
        (
            {"items": 100},
            {},
            {("psi", "what"), ("psi", "recent"), ("unknown", "what"), ("unknown", "recent")},
        ),
    ],
)
def test_a_drifted_build_is_stopped_by_name(
    changed: dict[str, Any], counted: dict[str, int], beyond: set[tuple[str, str]]
) -> None:
    found = compared(sample(seed=1, **changed), cells(**counted), LIMITS)
    assert {place for place, one in found.items() if one.is_beyond} == beyond
    with pytest.raises(drift.DriftError) as caught:
        drift.check(list(found.values()))
    lines = str(caught.value).splitlines()
    assert len(lines) == len(beyond) + 1
    assert "--accept-drift" in lines[-1]
    # Without limits the same is shown and stops nobody.
    shown = compared(sample(seed=1, **changed), cells(**counted))
    assert [one.now for one in shown.values()] == [one.now for one in found.values()]
    drift.check(list(shown.values()))


def test_a_task_that_loses_all_its_labels_in_a_scenario_is_beyond_any_limit_of_labels() -> None:
    home, search = cells()
    lost = [home, replace(search, labels=(0,), positives=(0,))]
    found = compared(sample(seed=1), lost, LIMITS)["labels", "click in search"]
    assert (found.before, found.is_beyond) == (0.25, True)
    assert drift.to_rows([found]) == [("labels", "click in search", "0.25", "-", "beyond its limit")]
    with pytest.raises(
        drift.DriftError, match=r"click in search was 0\.25 in the build before and is not there"
    ):
        drift.check([found])
    assert not compared(sample(seed=1), lost)["labels", "click in search"].is_beyond


def test_stability_is_nothing_for_equal_counts_and_grows_with_the_shift() -> None:
    equal = np.array([100, 200, 300])
    assert drift.stability(equal, equal * 7) < 1e-4
    # Halves to nine tenths: (0.9 - 0.5) ln(0.9 / 0.5) + (0.1 - 0.5) ln(0.1 / 0.5) = 0.8789.
    assert drift.stability(np.array([50_000, 50_000]), np.array([90_000, 10_000])) == pytest.approx(
        0.8789, abs=1e-3
    )
    assert drift.stability(np.zeros(3, int), np.zeros(3, int)) == 0
    assert drift.stability(equal, np.zeros(3, int)) == float("inf")


def test_limits_change_no_fingerprint() -> None:
    assert contract(LIMITS).fingerprint == contract().fingerprint


@pytest.mark.spark
def test_what_was_found_is_stored_by_build(spark: SparkSession, tmp_path: Path) -> None:
    found = [drift.Measure("rows", "home", None, 3.0, False), drift.Measure("psi", "what", 0.0, 0.5, True)]
    place = str(tmp_path / "drift")
    assert drift.stored(spark, place, 4) == []
    drift.store(spark, found, place, 4)
    drift.store(spark, found[:1], place, 5)
    assert sorted(drift.stored(spark, place, 4), key=lambda one: one.kind) == found[::-1]
    assert drift.stored(spark, place, 5) == found[:1]
