"""The guide to adding a model: its example is a model that passes, and its configuration is accepted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import test_conformance as suite

from hinet_model.models import registry

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
    monkeypatch.setitem(registry.REGISTRY, "wide_and_deep", module.MODEL)
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
    suite.test_a_key_that_the_model_does_not_know_is_refused_by_name(example)
    suite.test_initial_weights_follow_the_seed(example)


ELSEWHERE = """
import sys
import hinet_model.models as package

package.__path__.append(sys.argv[1])
from batches import make_layout
from foundation.settings import load_settings
from hinet_model.models.build import build_model
from hinet_model.settings import RunSettings

settings = load_settings(RunSettings, sys.argv[2])
model = build_model(settings.model, make_layout(), seed=0)
print(settings.model.perceptrons, type(model.network).__name__)
"""
"""A process that starts with the example's file beside the other models'."""


def test_the_file_and_the_configuration_are_all_it_takes(tmp_path: Path) -> None:
    (tmp_path / "wide_and_deep.py").write_text(block("python"), encoding="utf-8")
    config = tmp_path / "run.yml"
    config.write_text(block("yaml"), encoding="utf-8")
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path), str(config)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["2", "WideAndDeep"]


def test_the_guide_names_the_exemptions_that_models_declare() -> None:
    declared = {part for kind in registry.REGISTRY.values() for part in kind.exempt}
    assert declared
    assert all(f"`{part}`" in GUIDE for part in declared)
