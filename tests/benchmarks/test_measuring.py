"""What the benchmarks make of their timings: pairs, goals, memory as workers have it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from benchmarks.goals import GOALS, goals_table, judge
from benchmarks.machine import MEMORY_KEPT
from benchmarks.pairing import Figure, interleave, ratios
from benchmarks.workload import make_batches, make_layout
from hinet_model.settings import RunSettings
from hinet_model.training.control.launch import worker_environment
from hinet_model.training.job import TrainingJob


def test_a_ratio_is_formed_within_each_repeat() -> None:
    figure = ratios([2.0, 8.0, 30.0], [1.0, 2.0, 10.0])
    assert (figure.value, figure.low, figure.high) == (3.0, 2.0, 4.0)


def test_variants_are_timed_in_turn_after_their_warm_up() -> None:
    calls: list[str] = []
    contestants = {name: lambda steps, name=name: calls.append(name) for name in ("a", "b")}  # type: ignore[misc]
    seconds = interleave(contestants, repeats=3, block_seconds=0.0, warmup_steps=2)
    assert calls == ["a", "a", "b", "b"] + ["a", "b"] * 3
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3}


def test_goals_of_what_was_not_measured_are_left_out() -> None:
    judged = judge(
        {"speedup_6": Figure(4.9, 4.0, 6.0), "table_1e7": Figure(1.3, 1.2, 1.4), "other": Figure(1, 1, 1)}
    )
    assert {name: found["met"] for name, found in judged.items()} == {"speedup_6": False, "table_1e7": True}
    assert judged["speedup_6"]["spread"] == [4.0, 6.0]
    assert [line.split()[0] for line in goals_table(judged).splitlines()] == [
        "goal",
        "speedup_6",
        "table_1e7",
    ]


def test_goals_have_names_of_their_own() -> None:
    assert len({goal.name for goal in GOALS}) == len(GOALS) == 14


def test_batches_have_every_scenario_and_as_many_distinct_ids_as_asked() -> None:
    for table_rows in (200, 20_000):
        batches = make_batches(make_layout(5, table_rows, num_fields=2), rows=64, count=3, seed=0, distinct=7)
        assert {len(batch.unique_ids) for batch in batches} == {14}
        assert all(min(batch.scenario_counts) >= 1 and batch.num_rows == 64 for batch in batches)
        assert not np.array_equal(batches[0].unique_ids, batches[1].unique_ids)


@pytest.mark.parametrize("name", sorted(MEMORY_KEPT))
def test_memory_is_kept_as_workers_keep_it(name: str) -> None:
    job = cast(TrainingJob, SimpleNamespace(settings=RunSettings()))
    assert worker_environment(job)[name] == MEMORY_KEPT[name]
