"""Schedules: who is chosen, what is run again, and what a study may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_eng.contract import load_contract
from foundation.settings import ConfigError, UserError, load_settings, validate
from hinet_model.models.registry import REGISTRY
from hinet_model.studies.running import check_settings
from hinet_model.studies.settings import StudySettings, overrides_of, run_settings
from hinet_model.studies.trials import Record, Schedule, Trial, code_digest

ROOT = Path(__file__).parents[3]
STUDIES = sorted((ROOT / "conf" / "studies").glob("*.yml"))
TWO: dict[str, Any] = {
    "asks": "which is better",
    "data": {"contract": "conf/contracts/movielens.yml"},
    "config": str(ROOT / "conf" / "train" / "movielens.yml"),
    "variants": {"a": {"model.sub_experts": 2}, "b": {"model.sub_experts": 3}},
    "reference": "a",
    "search": {
        "settings": {"training.epochs": 1},
        "candidates": {"slow": {"optimiser.learning_rate": 0.1}, "fast": {"optimiser.learning_rate": 0.2}},
    },
    "final": {"seeds": [1, 2], "settings": {"training.epochs": 3}},
}


def schedule(folder: Path, data: str = "data", **over: Any) -> Schedule:
    return Schedule(StudySettings.model_validate(TWO | over), data, Record(folder))


def keep(plan: Schedule, trial: Trial, validation: float) -> None:
    plan.record.keep(trial, {"validation": [0.5, validation]})
    if trial.stage == "final":
        place = plan.record.scores(trial.key)
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, np.zeros((1, 1), np.float32))


def run_all(plan: Schedule) -> list[tuple[str, str, int, str]]:
    """Run what waits, as a runner does; ``fast`` validates better for ``a``, ``slow`` for ``b``."""
    done = []
    while trial := next(plan.waiting(), None):
        done.append((trial.variant, trial.candidate, trial.seed, trial.stage))
        keep(plan, trial, 0.7 if (trial.variant, trial.candidate) in (("a", "fast"), ("b", "slow")) else 0.6)
    return done


def test_candidates_are_chosen_by_validation_each_variant_its_own(tmp_path: Path) -> None:
    plan = schedule(tmp_path)
    assert plan.chosen("a") is None
    assert plan.finals("a") == []
    assert run_all(plan) == [
        ("a", "slow", 0, "search"), ("a", "fast", 0, "search"), ("a", "fast", 1, "final"), ("a", "fast", 2, "final"),
        ("b", "slow", 0, "search"), ("b", "fast", 0, "search"), ("b", "slow", 1, "final"), ("b", "slow", 2, "final"),
    ]  # fmt: skip
    assert plan.count() == (8, 8)


def test_what_was_run_is_not_run_again_unless_its_numbers_would_differ(tmp_path: Path) -> None:
    run_all(schedule(tmp_path))
    assert run_all(schedule(tmp_path)) == []
    # Another study has trials in common with this one.
    other = schedule(
        tmp_path,
        variants={"mine": {"model.sub_experts": 2}, "new": {"model.sub_experts": 4}},
        reference="mine",
    )
    assert {variant for variant, *_ in run_all(other)} == {"new"}
    assert (
        run_all(
            schedule(tmp_path, settings={"training.threads_per_worker": 2, "checkpoint.folder": "elsewhere"})
        )
        == []
    )
    assert len(run_all(schedule(tmp_path, data="other rows"))) == 8
    assert len(run_all(schedule(tmp_path, settings={"training.batch_size": 512}))) == 8


def test_a_trial_whose_scores_are_gone_is_run_again(tmp_path: Path) -> None:
    plan = schedule(tmp_path)
    run_all(plan)
    gone = plan.finals("b")[1]
    plan.record.scores(gone.key).unlink()
    assert run_all(plan) == [("b", "slow", 2, "final")]


def test_search_and_comparison_differ_in_what_they_may_look_at(tmp_path: Path) -> None:
    plan = schedule(tmp_path)
    assert {trial.stage for trial in plan.searches("a")} == {"search"}
    assert schedule(tmp_path, search={"candidates": {"one": {}}}).searches("a") == []


def test_the_code_that_decides_numbers_has_one_digest() -> None:
    assert code_digest() == code_digest()
    assert len(code_digest()) == 12


def test_names_that_are_no_variants_are_refused_all_at_once() -> None:
    wrong = {"reference": "aa", "start": "c", "curves": {"x": {"d": 1.0}}}
    with pytest.raises(ConfigError) as caught:
        validate(StudySettings, TWO | wrong, "study")
    text = str(caught.value)
    assert "did you mean 'a'" in text
    assert all(part in text for part in ("reference", "start", "curves.x", "view 'curve'"))


def test_variants_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    twins = {"a": {"model.sub_experts": 2}, "b": {"training.log_every_steps": 7, "model.sub_experts": 2}}
    with pytest.raises(UserError, match="the very settings of 'a'"):
        check_settings(schedule(tmp_path, variants=twins))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
@pytest.mark.parametrize("quick", [False, True], ids=["whole", "quick"])
def test_shipped_studies_can_be_run(
    path: Path, quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    study = load_settings(StudySettings, path)
    study = study.made_quick() if quick else study
    check_settings(Schedule(study, "data", Record(tmp_path)))
    for variant in study.variants:
        for candidate in study.candidates(variant).values():
            run_settings(
                study.config, study.settings, study.variants[variant], candidate, study.final.settings
            )
    assert load_contract(study.data.contract, overrides_of(study.data.settings)).scenario_names


def test_the_comparison_has_every_model_with_one_budget() -> None:
    study = load_settings(StudySettings, ROOT / "conf" / "studies" / "comparison.yml")
    models = {
        json.loads(json.dumps(one.get("model", {"name": "hinet"})))["name"] for one in study.variants.values()
    }
    assert models >= set(REGISTRY) - {"single"}
    assert len({len(study.candidates(variant)) for variant in study.variants}) == 1
    assert not study.search.candidates_of


def test_epochs_that_were_not_validated_are_passed_over_where_settings_are_chosen(tmp_path: Path) -> None:
    plan = schedule(tmp_path)
    for trial, validation in zip(plan.searches("a"), ([None, 0.7, None], [None, 0.71, None]), strict=True):
        plan.record.keep(trial, {"validation": validation})
    assert plan.chosen("a") == "fast"
    for trial in plan.searches("b"):
        plan.record.keep(trial, {"validation": [None]})
    assert plan.chosen("b") in ("slow", "fast")


def test_where_a_study_is_recorded_is_told_to_no_trial(tmp_path: Path) -> None:
    plain = {"training.batch_size": 64}
    where = {"mlflow.tracking_uri": "postgresql://ann:s3cret@db/mlflow", **plain}
    trials = [schedule(tmp_path, settings=settings).searches("a")[0] for settings in (where, plain)]
    assert trials[0] == trials[1]
    assert "training.batch_size=64" in trials[0].overrides
