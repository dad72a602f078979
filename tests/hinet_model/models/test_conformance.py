"""What every registered model must do, and peers' code was seen not to.

The suite runs over the registry: a new model is covered by being registered. It looks into a model only
through the blocks that models are built of (gates, towers, stacked perceptrons). What a model rightly does not
have, its file declares as exempt, and then the suite tests that it really lacks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import make_batch, make_columns, make_layout, take
from pydantic import ValidationError
from torch import Tensor, nn

from foundation.settings import ConfigError, validate
from hinet_model.config import OptimiserSettings
from hinet_model.data.batch import Batch, BatchLayout
from hinet_model.models.build import build_model, num_dense_parameters
from hinet_model.models.registry import REGISTRY
from hinet_model.nn import stop_gradient
from hinet_model.nn.gate import SoftmaxGates
from hinet_model.nn.mlp import StackedMLP
from hinet_model.nn.native import library
from hinet_model.nn.normalisation import ScenarioNorm
from hinet_model.nn.tower_group import TowerGroup
from hinet_model.objective.losses import MultiTaskLoss, scenario_weights
from hinet_model.training.optimisers import build_dense_optimiser
from hinet_model.training.table_optimisers import build_table_optimiser

pytestmark = pytest.mark.conformance

SIZES = {
    "embedding_dim": 4,
    "embedding_std": 0.5,
    "sub_experts": 3,
    "sub_expert_dims": [16, 8],
    "shared_experts": 2,
    "specific_experts": 2,
    "expert_dims": [16, 16],
    "tower_dims": [16],
    "scenario_embedding_dim": 4,
}
MODELS = sorted(REGISTRY)
SHAPES = [(1, 1), (1, 2), (2, 2), (3, 2), (5, 3)]

every_model = pytest.mark.parametrize("name", MODELS)
every_shape = pytest.mark.parametrize(("num_scenarios", "num_tasks"), SHAPES)


def build(name: str, layout: BatchLayout, seed: int = 0, **changes: object) -> nn.Module:
    """A small model; sizes and changes that it does not know are left out."""
    schema = REGISTRY[name].settings
    given = {key: value for key, value in {**SIZES, **changes}.items() if key in schema.model_fields}
    return build_model(schema.model_validate({"name": name, **given}), layout, seed)


def exempt(name: str, part: str) -> bool:
    return part in REGISTRY[name].exempt


def mixed(num_scenarios: int, rows: int = 60) -> list[int]:
    return [row % num_scenarios for row in range(rows)]


def scores_by_row(model: nn.Module, layout: BatchLayout, columns: dict[str, np.ndarray]) -> Tensor:
    """Logits in the order of the columns' rows."""
    batch, order = layout.to_batch(columns)
    logits = model.eval()(batch)
    assert logits.shape == (len(order), layout.num_tasks)
    unsorted = torch.empty_like(logits)
    unsorted[torch.from_numpy(order)] = logits
    return unsorted.detach()


def gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    shares = [1] * len(batch.scenario_counts)
    weights = (1.0,) * batch.labels.shape[1]
    loss, _ = MultiTaskLoss(scenario_weights("proportion", shares), weights)(model(batch), batch)
    assert torch.isfinite(loss)
    loss.backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }


def blocks(model: nn.Module, kind: type[nn.Module]) -> Iterator[nn.Module]:
    found = [module for module in model.modules() if isinstance(module, kind)]
    assert found, f"no {kind.__name__} found: the property would be tested on nothing"
    return iter(found)


def one_step(model: nn.Module, batch: Batch) -> None:
    settings = OptimiserSettings(learning_rate=0.01)
    grads = gradients(model, batch)
    build_dense_optimiser(settings, model.dense_parameters()).step()
    table = build_table_optimiser(settings, model.embedding.weight)
    table.step(batch.unique_ids, grads["embedding.weight"][batch.unique_ids], 1)


def assert_each_part_nonzero(name: str, change: Tensor, batch: Batch) -> None:
    """Every expert's, gate's or tower's part (the first axis) of a parameter, not merely the whole."""
    parts = change[batch.unique_ids] if name == "embedding.weight" else change
    silent = [i for i, part in enumerate(parts) if not part.any()]
    assert not silent, f"{name}: nothing reaches parts {silent}"


@every_model
@every_shape
def test_every_parameter_gets_a_gradient_from_a_mixed_batch(
    name: str, num_scenarios: int, num_tasks: int
) -> None:
    layout = make_layout(num_scenarios, num_tasks)
    model = build(name, layout)
    batch = make_batch(layout, mixed(num_scenarios))
    for parameter, gradient in gradients(model, batch).items():
        assert_each_part_nonzero(parameter, gradient, batch)


@every_model
@every_shape
def test_the_state_holds_every_parameter_and_one_step_moves_each(
    name: str, num_scenarios: int, num_tasks: int
) -> None:
    layout = make_layout(num_scenarios, num_tasks)
    model = build(name, layout)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert set(before) >= {key for key, _ in model.named_parameters()}
    batch = make_batch(layout, mixed(num_scenarios))
    one_step(model, batch)
    for key, _ in model.named_parameters():
        assert_each_part_nonzero(key, model.state_dict()[key] - before[key], batch)


@every_model
@pytest.mark.parametrize(("num_scenarios", "num_tasks"), [(1, 1), (2, 2), (4, 3)])
def test_every_gradient_equals_a_finite_difference(
    name: str, num_scenarios: int, num_tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is detached anywhere between a parameter, or a table row, and the answer is found out here."""
    layout = make_layout(num_scenarios, num_tasks)
    model = build(name, layout).double().eval()
    batch = make_batch(layout, mixed(num_scenarios, 24))
    batch = replace(batch, numbers=batch.numbers.double())
    if exempt(name, "finite_differences") and num_scenarios > 1:
        assert worst_difference(model, batch) > 1e-3, "the exemption is not needed"
    if exempt(name, "finite_differences"):
        monkeypatch.setattr(stop_gradient, "stop_gradient", lambda value: value)
    assert worst_difference(model, batch) < 1e-5


def worst_difference(model: nn.Module, batch: Batch) -> float:
    """Largest relative difference between a gradient and its finite difference, over all parameters and rows.

    Of two lengths of step the better counts: a ReLU that turns within the longer one does not within the other.
    """
    random = torch.Generator().manual_seed(0)
    rows = model.embedding.gather(batch.unique_ids)
    factor = torch.randn(batch.labels.shape, generator=random, dtype=torch.float64)
    parameters = [rows, *model.dense_parameters()]
    gradients = torch.autograd.grad((model(batch, rows) * factor).sum(), parameters, allow_unused=True)

    @torch.no_grad()
    def slope_along(parameter: Tensor, direction: Tensor, step: float) -> float:
        ends = []
        for sign in (1, -2):
            parameter.add_(direction, alpha=sign * step)
            ends.append(float((model(batch, rows) * factor).sum()))
        parameter.add_(direction, alpha=step)
        return (ends[0] - ends[1]) / (2 * step)

    worst = 0.0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        slope = 0.0 if gradient is None else float((gradient * direction).sum())
        measured = (slope_along(parameter, direction, step) for step in (1e-6, 1e-8))
        worst = max(worst, min(abs(slope - m) / max(abs(m), abs(slope), 1e-2) for m in measured))
    return worst


@every_model
def test_the_state_is_all_there_is_to_know(name: str) -> None:
    """Weights in a plain list, or made in ``forward``, would not travel."""
    layout = make_layout()
    model, other = (build(name, layout, seed) for seed in (0, 1))
    batch = make_batch(layout, mixed(3))
    one_step(model, batch)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(batch), other.eval()(batch))


@every_model
@pytest.mark.parametrize("joint", ["per_scenario", "per_task"])
@pytest.mark.parametrize(("num_scenarios", "num_tasks"), [(1, 1), (3, 2)])
def test_separate_models_are_as_right_as_a_joint_one(
    name: str, joint: str, num_scenarios: int, num_tasks: int
) -> None:
    layout = make_layout(num_scenarios, num_tasks)
    model = build(name, layout, joint=joint)
    assert model.embedding.dim == 4 * (num_scenarios if joint == "per_scenario" else num_tasks)
    columns = make_columns(layout, mixed(num_scenarios, 60))
    batch, _ = layout.to_batch(columns)
    for parameter, gradient in gradients(model, batch).items():
        assert_each_part_nonzero(parameter, gradient, batch)
    whole = scores_by_row(model, layout, columns)
    for row in range(3):
        alone = scores_by_row(model, layout, take(columns, [row]))
        torch.testing.assert_close(alone[0], whole[row], atol=1e-6, rtol=1e-6)


@every_model
@pytest.mark.parametrize("joint", [True, "per_task"])
def test_a_product_is_never_likelier_than_its_first_factor(name: str, joint: object) -> None:
    layout = make_layout(3, 2)
    model = build(name, layout, joint=joint, ctcvr="product", ctr_task="t1", ctcvr_task="t0")
    plain = build(name, layout, joint=joint)
    batch = make_batch(layout, mixed(3, 30))
    logits, factors = model.eval()(batch), plain.eval()(batch)
    assert (logits[:, 0] <= logits[:, 1]).all()
    torch.testing.assert_close(logits[:, 1], factors[:, 1])
    torch.testing.assert_close(torch.sigmoid(logits[:, 0]), torch.sigmoid(factors).prod(dim=1))


@every_model
@pytest.mark.parametrize("normalisation", ["layer", "scenario"])
def test_normalised_features_leave_a_row_independent_of_its_batch(name: str, normalisation: str) -> None:
    layout = make_layout()
    if exempt(name, "normalisation") and normalisation == "layer":
        with pytest.raises(ValidationError, match="normalisation"):
            build(name, layout, normalisation=normalisation)
        return
    model = build(name, layout, normalisation=normalisation)
    columns = make_columns(layout, mixed(3, 30))
    batch, _ = layout.to_batch(columns)
    model.train()(batch)
    for norm in (part for part in model.modules() if isinstance(part, ScenarioNorm)):
        norm.update_statistics(norm.statistics())
    whole = scores_by_row(model, layout, columns)
    for row in range(3):
        alone = scores_by_row(model, layout, take(columns, [row]))
        torch.testing.assert_close(alone[0], whole[row], atol=1e-5, rtol=1e-5)
    for parameter, gradient in gradients(model, batch).items():
        assert_each_part_nonzero(parameter, gradient, batch)


@every_model
def test_a_model_can_be_made_as_large_as_hinet(name: str) -> None:
    layout = make_layout()
    # Small integers are coarse: the yardstick must be of a real size.
    sizes = {"expert_dims": [32, 16], "tower_dims": [8], "sub_expert_dims": [64, 32]}
    wanted = num_dense_parameters(build("hinet", layout, **sizes))
    found = num_dense_parameters(build(name, layout, **sizes, match_parameters={**SIZES, **sizes}))
    assert abs(found - wanted) <= 0.02 * wanted


@every_model
def test_a_key_that_the_model_does_not_know_is_refused_by_name(name: str) -> None:
    schema = REGISTRY[name].settings
    others = {"levels": 3, "sub_experts": 5, "experts": 7, "gate_dim": 5, "top_k": 2}
    wrong = {key: value for key, value in others.items() if key not in schema.model_fields}
    assert wrong
    with pytest.raises(ConfigError) as error:
        validate(schema, {"name": name, **wrong}, "model")
    assert len(error.value.faults) == len(wrong)
    assert all(f"{key}: unknown key" in str(error.value) for key in wrong)


@every_model
def test_two_evaluations_agree_to_the_bit_and_leave_the_state_alone(name: str) -> None:
    layout = make_layout()
    model = build(name, layout, dropout=0.5, expert_dropout=0.5, tower_dropout=0.5).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch = make_batch(layout, mixed(3))
    assert torch.equal(model(batch), model(batch))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@every_model
@every_shape
def test_a_row_scores_alone_as_in_any_batch_and_any_order(
    name: str, num_scenarios: int, num_tasks: int
) -> None:
    layout = make_layout(num_scenarios, num_tasks)
    model = build(name, layout)
    # Two training batches first: statistics of batches, if a model kept any, would have moved.
    for seed in (1, 2):
        model.train()(make_batch(layout, mixed(num_scenarios), seed))
    columns = make_columns(layout, mixed(num_scenarios, 24))
    whole = scores_by_row(model, layout, columns)
    shuffled = np.random.default_rng(0).permutation(24)
    again = scores_by_row(model, layout, take(columns, shuffled))
    torch.testing.assert_close(again, whole[torch.from_numpy(shuffled)], atol=1e-6, rtol=1e-6)
    for row in range(24):
        alone = scores_by_row(model, layout, take(columns, [row]))
        assert alone.shape == (1, num_tasks)
        torch.testing.assert_close(alone[0], whole[row], atol=1e-6, rtol=1e-6)


@every_model
@every_shape
def test_an_empty_batch_gives_no_scores_and_gradients_of_zero(
    name: str, num_scenarios: int, num_tasks: int
) -> None:
    layout = make_layout(num_scenarios, num_tasks)
    model = build(name, layout)
    batch = make_batch(layout, [])
    assert model(batch).shape == (0, num_tasks)
    assert not any(gradient.any() for gradient in gradients(model, batch).values())


@every_model
@pytest.mark.parametrize("scenarios", [[0], [2], [1, 1, 1, 1], [0, 2, 0]], ids=str)
def test_a_batch_without_some_scenarios_has_a_finite_loss_and_the_same_gradient_as_in_parts(
    name: str, scenarios: list[int]
) -> None:
    layout = make_layout()
    model = build(name, layout)
    columns = make_columns(layout, scenarios)
    whole = gradients(model, layout.to_batch(columns)[0])
    assert all(torch.isfinite(gradient).all() for gradient in whole.values())
    parts = [
        gradients(model, layout.to_batch(take(columns, [row]), global_rows=len(scenarios))[0])
        for row in range(len(scenarios))
    ]
    for key, gradient in whole.items():
        torch.testing.assert_close(gradient, sum(part[key] for part in parts), atol=1e-6, rtol=1e-5)


@every_model
@every_shape
def test_rows_of_a_scenario_move_no_tower_of_another(name: str, num_scenarios: int, num_tasks: int) -> None:
    layout = make_layout(num_scenarios, num_tasks)
    model = build(name, layout)
    for scenario in range(num_scenarios):
        gradients(model, make_batch(layout, [scenario] * 20))
        for group in blocks(model, TowerGroup):
            for parameter in group.parameters():
                by_scenario = parameter.grad.view(num_scenarios, -1)
                assert by_scenario[scenario].any()
                others = [k for k in range(num_scenarios) if k != scenario]
                assert not by_scenario[others].any()


@every_model
@every_shape
def test_a_task_has_a_tower_of_its_own_that_no_other_tasks_label_moves(
    name: str, num_scenarios: int, num_tasks: int
) -> None:
    layout = make_layout(num_scenarios, num_tasks)
    model = build(name, layout)
    batch = make_batch(layout, mixed(num_scenarios))
    for task in range(num_tasks):
        model.zero_grad(set_to_none=True)
        model(batch)[:, task].sum().backward()
        for group in blocks(model, TowerGroup):
            for parameter in group.parameters():
                by_task = parameter.grad.view(num_scenarios, num_tasks, -1)
                moved = [bool(by_task[:, j].any()) for j in range(num_tasks)]
                assert moved == [j == task for j in range(num_tasks)]


@every_model
def test_scores_follow_the_order_of_the_labels(name: str) -> None:
    layout = make_layout()
    for wanted in ([1.0, 0.0], [0.0, 1.0]):
        columns = make_columns(layout, mixed(3))
        for column, value in zip(layout.label_columns, wanted, strict=True):
            columns[column][:] = value
        model = build(name, layout)
        batch, _ = layout.to_batch(columns)
        for _ in range(15):
            one_step(model, batch)
        ahead = model.eval()(batch)
        assert ((ahead[:, 0] > ahead[:, 1]) == (wanted[0] > wanted[1])).all()


@every_model
@every_shape
def test_gates_listen_to_their_rows_and_their_weights_sum_to_one(
    name: str, num_scenarios: int, num_tasks: int
) -> None:
    layout = make_layout(num_scenarios, num_tasks)
    model = build(name, layout)
    if exempt(name, "gates"):
        assert not any(isinstance(module, SoftmaxGates) for module in model.modules())
        return
    seen: list[Tensor] = []
    for gates in blocks(model, SoftmaxGates):
        gates.register_forward_hook(lambda _module, _inputs, weight: seen.append(weight))
    with pytest.MonkeyPatch.context() as patch:
        # Compiled experts have their gates inside, where nobody looks; that they are equal is tested elsewhere.
        patch.setattr(library, "available", lambda: False)
        model.eval()(make_batch(layout, mixed(num_scenarios)))
    assert seen
    for weight in seen:
        torch.testing.assert_close(weight.sum(dim=-1), torch.ones_like(weight[..., 0]))
        assert (weight.std(dim=0) > 0).any(dim=-1).all(), "a gate gives the same weights to every row"


@every_model
def test_gates_rank_experts_whose_scores_are_all_negative(name: str) -> None:
    layout = make_layout()
    model = build(name, layout)
    if exempt(name, "gates"):
        return
    for gates in blocks(model, SoftmaxGates):
        rows = torch.rand(5, gates.in_dim) + 0.1
        with torch.no_grad():
            gates.weight.copy_(-torch.arange(1.0, len(gates.weight) + 1).unsqueeze(1).expand_as(gates.weight))
        for bank, (num_gates, _) in enumerate(gates.shapes):
            weight = gates(rows, bank)
            for gate in range(num_gates):
                used = weight[:, gate][:, weight[0, gate] > 0]
                assert used.shape[1] >= 1
                assert (used[:, :-1] > used[:, 1:]).all()


@every_model
@pytest.mark.parametrize("num_scenarios", [2, 3, 6])
def test_scenario_attention_leaves_out_the_own_scenario_and_sums_to_one(
    name: str, num_scenarios: int
) -> None:
    model = build(name, make_layout(num_scenarios))
    table = model.scenario_attention()
    if table is None:
        assert name != "hinet"
        return
    assert torch.equal(table.diagonal(), torch.zeros(num_scenarios))
    torch.testing.assert_close(table.sum(dim=1), torch.ones(num_scenarios))


@every_model
def test_stacked_experts_and_towers_start_different_and_stay_so_after_a_step(name: str) -> None:
    layout = make_layout()
    model = build(name, layout)
    for step in range(2):
        for stack in blocks(model, StackedMLP):
            for weight in stack.weights:
                flat = weight.detach().flatten(1)
                distance = torch.cdist(flat, flat) + torch.eye(len(flat))
                assert (distance > 1e-4).all(), f"after {step} steps two of a stack are equal"
        one_step(model, make_batch(layout, mixed(3)))


@every_model
def test_unequal_expert_counts_work_and_every_expert_learns(name: str) -> None:
    layout = make_layout(3, 2)
    counts: dict[str, object] = {
        "sub_experts": {"shared": 2, "s0": 4, "s1": 3, "s2": 2},
        "shared_experts": {"s0": 1, "s1": 3, "s2": 2},
        "specific_experts": {
            "s0": {"t0": 3, "t1": 1},
            "s1": {"t0": 1, "t1": 2},
            "s2": {"t0": 2, "t1": 4},
        },
    }
    if exempt(name, "counts_per_scenario"):
        with pytest.raises(ConfigError, match="expected one count"):
            build(name, layout, **counts)
        counts["shared_experts"] = 3
    model = build(name, layout, **counts)
    batch = make_batch(layout, mixed(3))
    for parameter, gradient in gradients(model, batch).items():
        assert_each_part_nonzero(parameter, gradient, batch)


@every_model
def test_initial_weights_follow_the_seed(name: str) -> None:
    layout = make_layout()
    first, again, other = (build(name, layout, seed) for seed in (0, 0, 1))
    for key, value in first.named_parameters():
        assert torch.equal(value, again.get_parameter(key))
        if isinstance(first.get_submodule(key.rpartition(".")[0]), ScenarioNorm):
            continue  # a normalisation starts as one
        assert not torch.equal(value, other.get_parameter(key))


@every_model
def test_a_few_steps_fit_a_small_batch(name: str) -> None:
    layout = make_layout()
    model = build(name, layout)
    batch = make_batch(layout, mixed(3))
    loss = MultiTaskLoss((1.0,) * 3, (1.0, 1.0))
    before = loss(model(batch), batch)[0].item()
    for _ in range(40):
        one_step(model, batch)
    assert loss(model(batch), batch)[0].item() < 0.8 * before
