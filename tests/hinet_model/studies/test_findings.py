"""Findings: the way to the oracle, what is not done is left out, and the page says ties and seesaws as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundation.settings import UserError
from hinet_model.studies.comparing import TestRows, influences
from hinet_model.studies.findings import Facts, Findings
from hinet_model.studies.lines import lines
from hinet_model.studies.page import render
from hinet_model.studies.pictures import save_pictures
from hinet_model.studies.settings import StudySettings
from hinet_model.studies.trials import Record, Schedule

CONFIG = Path(__file__).parents[3] / "conf" / "train" / "movielens.yml"
VARIANTS = {"poor": 1, "middling": 2, "perfect": 3, "trader": 4, "never run": 5}
EVERY_VIEW = ["ranking", "cells", "curve", "attention", "seesaw"]


def made_rows() -> TestRows:
    random = np.random.default_rng(0)
    truth = 1 / (1 + np.exp(-random.normal(size=(6_000, 2)) * 1.5))
    labels = (random.random(truth.shape) < truth).astype(float)
    return TestRows(random.integers(0, 3, len(truth)), np.arange(len(truth)), labels, truth)


def scores_of(variant: str, rows: TestRows, seed: int) -> np.ndarray:
    assert rows.truth is not None
    random = np.random.default_rng(seed)
    noise = random.random(rows.truth.shape)
    share = {"poor": 0.9, "middling": 0.6, "perfect": 0.0, "trader": np.array([[0.3, 0.99]])}[variant]
    scores: np.ndarray = ((1 - share) * rows.truth + share * noise).astype(np.float32)
    return scores


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    study = StudySettings.model_validate(
        {
            "asks": "Which?",
            "data": {"contract": "conf/contracts/movielens.yml"},
            "config": str(CONFIG),
            "variants": {name: {"model.sub_experts": count} for name, count in VARIANTS.items()},
            "reference": "middling",
            "start": "poor",
            "final": {"seeds": [1, 2, 3]},
            "views": EVERY_VIEW,
            "curves": {"sub-experts": {"poor": 1, "middling": 2, "never run": 5}},
        }
    )
    rows, schedule = made_rows(), Schedule(study, "data", Record(tmp_path))
    names = ("home", "search", "rare")
    for variant in list(VARIANTS)[:-1]:
        for trial in schedule.finals(variant):
            keep(schedule, rows, trial, names)
    planted = np.array([[1.0, 0.8, 0.2], [0.8, 1.0, 0.4], [0.2, 0.4, 1.0]])
    facts = Facts(
        "which", "a command", "made", {"test": 6_000}, names, ("click", "order"), "now", "a box", planted
    )
    return Findings(schedule, facts, rows)


def keep(schedule: Schedule, rows: TestRows, trial: Any, names: tuple[str, ...]) -> None:
    scores = scores_of(trial.variant, rows, trial.seed)
    auc, _ = influences(rows, scores.astype(float), len(names))
    test = [
        {"scenario": name, "task": task, "auc": float(auc[place, number])}
        for place, name in enumerate(names)
        for number, task in enumerate(("click", "order"))
    ]
    outcome = {
        "validation": [0.6, 0.7], "best_epoch": 1, "rows": 1_000, "cpu_seconds": 2.0, "process_seconds": 3.0,
        "dense_parameters": 7, "peak_memory_mib": 9, "commit": "abc", "finished_at": "2026-01-02T00:00:00",
        "attention": [[0.0, 0.9, 0.1], [0.7, 0.0, 0.3], [0.4, 0.6, 0.0]], "test": test,
    }  # fmt: skip
    schedule.record.keep(trial, outcome)
    place = schedule.record.scores(trial.key)
    place.parent.mkdir(parents=True, exist_ok=True)
    np.save(place, scores)


def test_the_way_runs_from_the_start_to_the_oracle(findings: Findings) -> None:
    ways = {row.variant: row.overall.way for row in findings.variants}
    assert ways["poor"] == 0
    assert 0.1 < ways["middling"] < 0.9
    assert ways["perfect"] == pytest.approx(1, abs=1e-6)
    assert findings.oracle is not None
    assert findings.oracle[0].way == 1


def test_verdicts_are_of_what_is_done_best_first(findings: Findings) -> None:
    verdicts = [(row.variant, row.overall.verdict) for row in findings.variants]
    assert next(name for name, _ in verdicts) == "perfect"
    assert dict(verdicts)["perfect"] == "ahead"
    assert dict(verdicts)["poor"] == "behind"
    assert dict(verdicts)["middling"] == ""
    assert "never run" not in dict(verdicts)


def test_the_page_has_every_view_and_every_line_is_json(findings: Findings, tmp_path: Path) -> None:
    pictures = save_pictures(findings, tmp_path)
    text = render(findings, pictures)
    assert [file for _, file in pictures] == [f"which-{view}.svg" for view in EVERY_VIEW]
    assert all((tmp_path / file).stat().st_size > 1_000 for _, file in pictures)
    assert "never run" not in text
    # One task up and the other down, in all three scenarios.
    (seesaw,) = (line for line in text.splitlines() if line.startswith("| trader |") and "3 of 3" in line)
    assert "▲" in seesaw
    assert "▼" in seesaw
    # Every scenario listens most to the one that was planted as most like it.
    assert "+1.00" in text
    kinds = [json.loads(line)["kind"] for line in lines(findings)]
    assert (kinds.count("study"), kinds.count("trial"), kinds.count("variant")) == (1, 12, 5)
    assert kinds.count("cell") == 5 * 6


def test_scores_of_other_rows_are_refused(findings: Findings) -> None:
    other = TestRows(
        findings.test_rows.scenario, findings.test_rows.user, findings.test_rows.labels[::-1], None
    )
    with pytest.raises(UserError, match="are not of these test rows"):
        Findings(findings.schedule, findings.facts, other)
