"""HiNet equals its equations, for any number of scenarios, tasks, rows and experts."""

from __future__ import annotations

import pytest
import torch
from batches import make_batch, make_layout
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import reference_logits

from foundation.settings import ConfigError
from hinet_model.models.build import build_model
from hinet_model.models.hinet import HiNet, HiNetSettings, HiNetSizes, hinet_sizes
from hinet_model.models.registry import read_settings

counts = st.integers(1, 3)

pytestmark = pytest.mark.usefixtures("experts")


def small(**changes: object) -> HiNetSettings:
    sizes = {
        "embedding_dim": 4,
        "embedding_std": 0.5,
        "sub_experts": 2,
        "sub_expert_dims": [6, 5],
        "shared_experts": 1,
        "specific_experts": 2,
        "expert_dims": [7, 4],
        "tower_dims": [3],
        "scenario_embedding_dim": 4,
    }
    return HiNetSettings.model_validate({**sizes, **changes})


@st.composite
def cases(draw: st.DrawFn) -> tuple[HiNetSettings, int, int, list[int]]:
    num_scenarios, num_tasks = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    scenarios = [f"s{i}" for i in range(num_scenarios)]
    tasks = [f"t{j}" for j in range(num_tasks)]

    def per(names: list[str]) -> dict[str, int]:
        return {name: draw(counts) for name in names}

    model = small(
        sub_experts=per(["shared", *scenarios]),
        shared_experts=per(scenarios),
        specific_experts={name: per(tasks) for name in scenarios},
        gates=draw(st.booleans()),
        hierarchy=draw(st.booleans()),
        scenario_attention=draw(st.sampled_from(["full", "none"])),
        tower_dims=draw(st.sampled_from([[], [3], [5, 3]])),
        sub_expert_dims=draw(st.sampled_from([[5], [6, 5], [6, 4, 5]])),
    )
    rows = draw(st.lists(st.integers(0, num_scenarios - 1), max_size=6))
    return model, num_scenarios, num_tasks, rows


@given(cases())
@settings(max_examples=60)
def test_answers_and_gradients_equal_those_of_loops_over_rows_and_experts(
    case: tuple[HiNetSettings, int, int, list[int]],
) -> None:
    model_settings, num_scenarios, num_tasks, rows = case
    layout = make_layout(num_scenarios, num_tasks)
    model = build_model(model_settings, layout, seed=1)
    sizes = hinet_sizes(model_settings, layout.scenario_names, layout.task_names)
    batch = make_batch(layout, rows)
    parameters = dict(model.named_parameters())

    ours, expected = model(batch), reference_logits(model, sizes, batch)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    if not rows:
        return
    factor = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    values = list(parameters.values())
    our_grads = torch.autograd.grad((ours * factor).sum(), values, allow_unused=True)
    expected_grads = torch.autograd.grad((expected * factor).sum(), values, allow_unused=True)
    for name, ours_, expected_ in zip(parameters, our_grads, expected_grads, strict=True):
        zero = torch.zeros_like(parameters[name])
        torch.testing.assert_close(
            zero if ours_ is None else ours_,
            zero if expected_ is None else expected_,
            atol=1e-5,
            rtol=1e-5,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_one_scenario_has_no_attention_and_two_have_a_fixed_table() -> None:
    one = build_model(small(), make_layout(1), seed=0)
    two = build_model(small(), make_layout(2), seed=0)
    assert one.scenario_attention() is None
    assert one.extractors is not None
    assert one.task_layer.experts.in_dims[0] == 2 * one.extractors.sub_experts.out_dim
    assert torch.equal(two.scenario_attention(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert two.attention is not None
    assert list(two.attention.parameters()) == []


def test_rows_given_from_outside_answer_as_the_table_does_and_collect_its_gradient() -> None:
    layout = make_layout()
    model = build_model(small(), layout, seed=0)
    batch = make_batch(layout, [0, 1, 2, 1, 0])
    rows = model.embedding.gather(batch.unique_ids)
    model(batch).sum().backward()
    table_grad = model.embedding.weight.grad
    assert table_grad is not None
    model.embedding.weight.grad = None
    assert torch.equal(model(batch, rows), model(batch))
    model(batch, rows).sum().backward()
    assert rows.grad is not None
    torch.testing.assert_close(rows.grad, table_grad[batch.unique_ids], atol=1e-7, rtol=1e-6)
    assert model.embedding.weight.grad is None


def test_dense_parameters_are_all_but_the_table() -> None:
    model = build_model(small(), make_layout(), seed=0)
    names = {name for name, p in model.named_parameters() if any(p is q for q in model.dense_parameters())}
    assert names == {name for name, _ in model.named_parameters()} - {"embedding.weight"}


def test_initial_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_model(small(), make_layout(), seed=3).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    again = build_model(small(), make_layout(), seed=3).state_dict()
    other = build_model(small(), make_layout(), seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in first)


def test_a_scenario_that_is_absent_gets_gradients_of_zero_not_none() -> None:
    layout = make_layout()
    model = build_model(small(), layout, seed=0)
    for rows in ([], [1, 1]):
        model.zero_grad(set_to_none=True)
        batch = make_batch(layout, rows)
        table_rows = model.embedding.gather(batch.unique_ids)
        model(batch, table_rows).sum().backward()
        assert all(parameter.grad is not None for parameter in model.dense_parameters())
        assert table_rows.grad is not None


def test_dropout_changes_training_only() -> None:
    layout = make_layout()
    plain = build_model(small(), layout, seed=0)
    dropped = build_model(
        small(dropout=0.4, expert_dropout=0.2, tower_dropout=0.1, input_dropout=0.1), layout, 0
    )
    batch = make_batch(layout, [0, 1, 2] * 10)
    assert not torch.equal(dropped(batch), plain(batch))
    assert torch.equal(dropped.eval()(batch), plain(batch))


def test_a_batch_of_another_number_of_scenarios_is_refused() -> None:
    model = build_model(small(), make_layout(3), seed=0)
    with pytest.raises(ValueError, match="counts 2 scenarios; the model has 3"):
        model(make_batch(make_layout(2), [0, 1]))


def test_counts_may_be_given_per_name_and_every_fault_is_named_at_once() -> None:
    sizes = hinet_sizes(
        small(sub_experts={"shared": 3, "s0": 1, "s1": 2}, specific_experts={"t0": 1, "t1": 4}),
        ["s0", "s1"],
        ["t0", "t1"],
    )
    assert isinstance(sizes, HiNetSizes)
    assert sizes.sub_experts == (3, 1, 2)
    assert sizes.shared_experts == (1, 1)
    assert sizes.specific_experts == ((1, 4), (1, 4))
    wrong = small(sub_experts={"shared": 3, "s0": 1, "sl1": 2}, specific_experts={"t0": 1, "tt": 4})
    with pytest.raises(ConfigError) as error:
        hinet_sizes(wrong, ["s0", "s1"], ["t0", "t1"])
    assert "model.sub_experts.sl1: unknown name 'sl1'" in str(error.value)
    assert "did you mean 's1'?" in str(error.value)
    assert "model.sub_experts: no count for 's1'" in str(error.value)
    assert "model.specific_experts.tt: unknown name 'tt'" in str(error.value)


def test_an_unknown_model_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hinet'"):
        read_settings({"name": "hinnet"})


def test_the_model_is_a_plain_module_that_loads_its_own_state() -> None:
    layout = make_layout()
    model, other = (build_model(small(), layout, seed=seed) for seed in (0, 1))
    assert isinstance(model, HiNet)
    other.load_state_dict(model.state_dict())
    batch = make_batch(layout, [2, 0, 1])
    assert torch.equal(model(batch), other(batch))


def test_bfloat16_autocast_answers_close_to_float32() -> None:
    layout = make_layout()
    model = build_model(small(), layout, seed=0)
    batch = make_batch(layout, [0, 1, 2] * 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = model(batch)
        answer.sum().backward()
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, model(batch), atol=0.05, rtol=0.05)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
