"""Studies: who is chosen, what is run again, and what the table says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import study as runner
from benchmarks.questions import STUDIES, Study
from hinet_model.models.registry import REGISTRY

TWO = Study(
    asks="which is better",
    table="somewhere",
    variants={"a": ["x=1"], "b": ["x=2"]},
    candidates={"a": {"slow": ["r=1"], "fast": ["r=9"]}},
    search=["epochs=1"],
    final=["epochs=3"],
    seeds=(1, 2),
)


def outcome(validation: float, test: float | None) -> dict[str, Any]:
    return {"validation": [0.5, validation], "test": test, "dense_parameters": 7, "peak_memory_mib": 10.0}


def fill(results: runner._Results, values: Mapping[tuple[str, str, int], tuple[float, float | None]]) -> None:
    """Give the results to whichever trial asks for them, as a run would."""
    for trials in runner._stages("two", TWO, results):
        for trial in trials:
            results.add(trial, outcome(*values[trial.variant, trial.candidate, trial.seed]))


VALUES: dict[tuple[str, str, int], tuple[float, float | None]] = {
    ("a", "slow", 0): (0.70, None),
    ("a", "fast", 0): (0.72, None),
    ("a", "fast", 1): (0.71, 0.61),
    ("a", "fast", 2): (0.71, 0.63),
    ("b", "as configured", 1): (0.71, 0.66),
    ("b", "as configured", 2): (0.71, 0.66),
}


def test_candidates_are_chosen_by_validation_and_the_best_variant_stands_on_top(tmp_path: Path) -> None:
    results = runner._Results(tmp_path / "r.jsonl", TWO.table)
    fill(results, VALUES)
    rows = runner.report("two", TWO, results).splitlines()[4:]
    assert [row.split(" | ")[:3] for row in rows] == [
        ["| b", "as configured", "0.6600 0.6600"],
        ["| a", "fast", "0.6100 0.6300"],
    ]
    assert "0.6200 ± 0.1271" in rows[1]  # t of one degree of freedom: 12.7062 times 0.01
    assert len(runner.draw("two", TWO, results).axes[0].get_yticks()) == 2


def test_what_the_shipped_studies_ask_for_is_what_was_recorded() -> None:
    """A setting that is written another way would have every trial run again."""
    for name, study in STUDIES.items():
        results = runner._Results(runner.RESULTS, study.table)
        assert [trial for trials in runner._stages(name, study, results) for trial in trials] == [], name


def test_the_search_never_looks_at_the_test_split(tmp_path: Path) -> None:
    results = runner._Results(tmp_path / "r.jsonl", TWO.table)
    trials = runner._searches("two", TWO, "a")
    assert [trial.tested for trial in trials] == [False, False]
    assert all(f"training.seed={runner.SEARCH_SEED}" in trial.overrides for trial in trials)
    assert runner._searches("two", TWO, "b") == []
    assert runner._chosen("two", TWO, "a", results) is None
    assert runner._chosen("two", TWO, "b", results) == "as configured"


def test_what_was_run_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    fill(runner._Results(path, TWO.table), VALUES)
    lines = path.read_text().splitlines()
    assert len(lines) == len(VALUES)
    path.write_text("\n".join(lines[:3]) + "\n")
    begun = runner._Results(path, TWO.table)
    fill(begun, VALUES)
    assert path.read_text().splitlines() == lines
    assert sum(len(trials) for trials in runner._stages("two", TWO, begun)) == 0
    # Another table is another study.
    other = runner._Results(path, "elsewhere")
    assert runner._missing(runner._searches("two", TWO, "a"), other) != []


def test_an_interval_needs_two_seeds() -> None:
    assert math.isnan(runner.half_width([0.5]))
    assert runner.half_width([0.5, 0.5]) == 0.0


def test_every_model_is_compared() -> None:
    assert set(STUDIES["models"].variants) == set(REGISTRY)
    counts = {len(candidates) for candidates in STUDIES["models"].candidates.values()}
    assert counts == {6}


def test_trials_on_record_are_whole() -> None:
    lines = runner.RESULTS.read_text(encoding="utf-8").splitlines()
    assert lines
    for trial in map(json.loads, lines):
        assert trial["study"] in STUDIES
        assert trial["tested"] == (trial["test"] is not None)
        assert 0.5 < max(trial["validation"]) < 1.0
