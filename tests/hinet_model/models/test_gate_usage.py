"""Gates are watched row by row, whichever way the model computes; a model without gates has nothing to show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_folders import encoder_state, raw_rows

from feature_eng.encoder import arrow
from hinet_model.models.build import build_model
from hinet_model.models.features import build_layout
from hinet_model.models.gate_usage import GateUsage, gate_usage
from hinet_model.models.registry import REGISTRY

STATE = encoder_state()
COLUMNS = arrow.encode(raw_rows(STATE), STATE)
PER_TASK = [("young", "click"), ("young", "like"), ("old", "click"), ("old", "like")]


def watched(name: str, **settings: object) -> tuple[GateUsage, ...]:
    """The gates of a fresh model."""
    chosen = REGISTRY[name].settings(embedding_dim=4, **settings)  # type: ignore[call-arg, arg-type]
    layout = build_layout(chosen, STATE.model_schema())
    return gate_usage(build_model(chosen, layout, seed=0).eval(), layout, COLUMNS)


def test_the_gates_of_hinet_are_those_of_the_extractors_and_of_each_task() -> None:
    found = watched("hinet", sub_experts=3, shared_experts=2, specific_experts=1)
    assert [(one.scenario, one.gate, one.rows, len(one.weights)) for one in found] == [
        ("young", "shared", 3, 3), ("young", "own", 3, 3), ("young", "click", 3, 3), ("young", "like", 3, 3),
        ("old", "shared", 2, 3), ("old", "own", 2, 3), ("old", "click", 2, 3), ("old", "like", 2, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings", "gates"),
    [
        ("mmoe", {}, PER_TASK),
        ("m3oe", {}, PER_TASK),
        ("mmoe", {"joint": "per_task"}, PER_TASK),
        ("flat_moe", {}, [("young", "all tasks"), ("old", "all tasks")]),
        ("hmoe", {}, [("young", "own"), ("young", "all tasks"), ("old", "own"), ("old", "all tasks")]),
        ("ple", {"levels": 1}, PER_TASK),
        ("ple", {"levels": 1, "joint": "per_scenario"}, PER_TASK),
        ("ple", {"levels": 1, "joint": "per_task"}, PER_TASK),
        ("hinet", {"hierarchy": False}, PER_TASK),
        ("hinet", {"scenario_attention": "none", "hierarchy": True, "joint": "per_task"},
         [(scenario, f"{task}{gate}") for scenario in ("young", "old") for task in ("click", "like")
          for gate in (": own", ": shared", "")]),
    ],
)  # fmt: skip
def test_every_model_says_which_gate_serves_whom(
    name: str, settings: dict[str, object], gates: list[tuple[str, str]]
) -> None:
    found = watched(name, **settings)
    assert sorted((one.scenario, one.gate) for one in found) == sorted(gates)
    for one in found:
        assert sum(one.weights) == pytest.approx(1.0)
        assert one.entropy is not None
        assert 0.5 < one.entropy <= 1.0


@pytest.mark.parametrize("name", ["shared_bottom", "star", "aitm"])
def test_a_model_without_gates_shows_none(name: str) -> None:
    assert watched(name) == ()


def test_gates_that_are_switched_off_are_not_shown() -> None:
    assert watched("hinet", gates=False) == ()


def test_mean_weight_and_entropy_are_those_of_the_rows() -> None:
    settings = REGISTRY["flat_moe"].settings(embedding_dim=4)  # type: ignore[call-arg]
    layout = build_layout(settings, STATE.model_schema())
    model = build_model(settings, layout, seed=0).eval()
    seen: list[torch.Tensor] = []
    gates = model.get_submodule("network.gates")
    with torch.no_grad():
        gates.weight.mul_(40)  # type: ignore[union-attr, operator]
    hook = gates.register_forward_hook(lambda module, args, weight: seen.append(weight))
    with torch.inference_mode():
        model(layout.to_batch(COLUMNS)[0])
    hook.remove()
    young = seen[0][:, 0].double().numpy()
    one = gate_usage(model, layout, COLUMNS)[0]
    np.testing.assert_allclose(one.weights, young.mean(axis=0), atol=1e-5)
    entropy = -(young * np.log(np.maximum(young, 1e-300))).sum(axis=1).mean() / np.log(4)
    assert one.entropy == pytest.approx(entropy, abs=1e-4)
    assert one.entropy < 0.9


def test_an_expert_below_a_tenth_of_an_even_share_is_dead() -> None:
    usage = GateUsage("s", "l", "g", 10, (0.9, 0.0249, 0.0251, 0.05), 0.3)
    assert usage.dead == (1,)
    assert GateUsage("s", "l", "g", 10, (1.0,), None).dead == ()


def test_a_model_is_left_as_it_was() -> None:
    settings = REGISTRY["mmoe"].settings(embedding_dim=4)  # type: ignore[call-arg]
    layout = build_layout(settings, STATE.model_schema())
    model = build_model(settings, layout, seed=0).eval()
    gate_usage(model, layout, COLUMNS)
    assert not any(module._forward_hooks for module in model.modules())
