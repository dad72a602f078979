"""The guide to adding a model: its example is a model that passes, and its configuration is accepted."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import test_conformance as suite
import yaml

from foundation.settings import validate
from hinet_model.config import RunSettings
from hinet_model.models import build

GUIDE = (Path(__file__).parents[3] / "docs" / "adding_a_model.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> str:
    module = ModuleType("hinet_model.models.wide_and_deep")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(block("python"), "adding_a_model.md", "exec"), module.__dict__)
    monkeypatch.setitem(build.REGISTRY, "wide_and_deep", module.MODEL)
    return "wide_and_deep"


def test_the_example_passes_the_suite(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = 3, 2
    suite.test_every_parameter_gets_a_gradient_from_a_mixed_batch(example, *shape)
    suite.test_every_gradient_equals_a_finite_difference(example, *shape, monkeypatch)
    suite.test_a_row_scores_alone_as_in_any_batch_and_any_order(example, *shape)
    suite.test_an_empty_batch_gives_no_scores_and_gradients_of_zero(example, *shape)
    suite.test_rows_of_a_scenario_move_no_tower_of_another(example, *shape)
    suite.test_gates_listen_to_their_rows_and_their_weights_sum_to_one(example, *shape)
    suite.test_separate_models_are_as_right_as_a_joint_one(example, "per_scenario", *shape)
    suite.test_a_model_can_be_made_as_large_as_hinet(example)
    suite.test_a_key_that_the_model_does_not_read_is_refused_by_name(example)
    suite.test_initial_weights_follow_the_seed(example)


def test_the_configuration_is_accepted() -> None:
    settings = validate(RunSettings, yaml.safe_load(block("yaml")), "adding_a_model.md")
    assert settings.model.name == "wide_and_deep"


def test_the_guide_names_the_exemptions_that_models_declare() -> None:
    declared = {part for kind in build.REGISTRY.values() for part in kind.exempt}
    assert declared
    assert all(f"`{part}`" in GUIDE for part in declared)
