"""Every fault that peers' code was seen to have, planted in a copy of HiNet: the conformance suite must fail.

A test that can pass on broken code holds nothing. Faults that lie outside of the model (encoders, metrics, the
choice of a checkpoint) are named with the tests that hold them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import test_conformance as suite
import torch
from batches import make_batch, make_layout
from torch import Tensor, nn
from torch.nn import functional as F

from hinet_model.data.batch import Batch, BatchLayout
from hinet_model.models import hinet, registry
from hinet_model.models.hinet import HiNet, HiNetSettings
from hinet_model.models.model import ModelKind
from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.nn.gate import SoftmaxGates
from hinet_model.nn.mlp import StackedMLP
from hinet_model.nn.native import library
from hinet_model.nn.routing import segments_of

TESTS = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _without_compiled_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults are planted in the blocks' own ``forward``."""
    monkeypatch.setattr(library, "available", lambda: False)


def wrap(module: nn.Module, change: Callable[..., Any]) -> None:
    """Replace ``forward`` by ``change(forward, *its arguments)``."""
    forward = module.forward
    module.forward = lambda *args, **kwargs: change(forward, *args, **kwargs)


def fresh_layers(model: HiNet) -> None:
    """Layers created inside ``forward``: random at every call, never trained."""
    wrap(model, lambda forward, *args: forward(*args) + nn.Linear(1, 2)(torch.ones(1, 1)))


def detached_sub_experts(model: HiNet) -> None:
    """The sub-experts train, but what they tell of the features does not reach the embeddings."""
    assert model.extractors is not None
    wrap(model.extractors.sub_experts, lambda forward, rows, *args: forward(rows.detach(), *args))


def detached_gates(model: HiNet) -> None:
    """Gates do not train what they read."""
    wrap(model.task_layer.gates, lambda forward, rows, *args: forward(rows.detach(), *args))


def detached_answers(model: HiNet) -> None:
    """Most parameters are cut off from the loss."""
    assert model.extractors is not None
    wrap(model.extractors, lambda forward, *args: forward(*args).detach())


def batch_statistics(model: HiNet) -> None:
    """Features normalised by the batch that a row happens to be in, in evaluation too."""

    def change(forward: Callable[..., Tensor], *args: Any) -> Tensor:
        x_BD = forward(*args)
        return (x_BD - x_BD.mean(dim=0)) / (x_BD.var(dim=0, unbiased=False) + 1e-5).sqrt()

    wrap(model.embedding, change)


def attention_over_rows(model: HiNet) -> None:
    """Rows attend to the other rows of their batch."""

    def change(forward: Callable[..., Tensor], *args: Any) -> Tensor:
        x_BD = forward(*args)
        return x_BD + (x_BD @ x_BD.t()).softmax(dim=-1) @ x_BD

    wrap(model.embedding, change)


def squeezed(model: HiNet) -> None:
    """A batch of one becomes a vector."""
    wrap(model, lambda forward, *args: forward(*args).squeeze())


def attends_to_itself(model: HiNet) -> None:
    """The softmax runs over all scenarios, the own one included."""
    assert model.attention is not None

    def change(forward: Callable[[], Tensor]) -> Tensor:
        table = forward()
        return (table + torch.eye(len(table))) / 2

    wrap(model.attention, change)


def masked_afterwards(model: HiNet) -> None:
    """The softmax runs over all scenarios and the own weight is dropped: the rest sums to less than one."""
    assert model.attention is not None
    wrap(model.attention, lambda forward: forward() * 0.8)


def constant_gates(model: HiNet) -> None:
    """A softmax over an axis of one: every weight the same, whatever the row says."""
    wrap(model.task_layer.gates, lambda forward, rows, *args: forward(rows * 0, *args))


def relu_before_softmax(model: HiNet) -> None:
    """Experts with scores below zero are tied."""

    def change(
        forward: Callable[..., Tensor], rows: Tensor, bank: int = 0, weight: Tensor | None = None
    ) -> Tensor:
        gates = model.task_layer.gates
        num_gates, places = gates.shapes[bank]
        weight = gates.split()[bank] if weight is None else weight
        assert weight is not None
        if gates.sizes[bank] != num_gates * places:
            weight = torch.cat([weight, weight.new_zeros(1, gates.in_dim)])[
                gates.get_buffer(f"source_{bank}")
            ]
        score = (rows @ weight.t()).relu() + gates.get_buffer(f"penalty_{bank}")
        return score.view(-1, num_gates, places).softmax(dim=-1)

    wrap(model.task_layer.gates, change)


def first_gate_for_all(model: HiNet) -> None:
    """The gate of task 0 decides for every task."""
    wrap(model.task_layer.gates, lambda forward, *args: forward(*args)[:, :1].expand(-1, 2, -1))


def strangers_reach_a_tower(model: HiNet) -> None:
    """All rows run through the towers of scenario 0 too, and enter their loss."""

    def change(forward: Callable[..., Tensor], extract: Tensor, layers: Any) -> Tensor:
        return forward(extract, layers) + 0.1 * forward(extract, model.task_layer.towers.split()[0])

    wrap(model.task_layer.towers, change)


def plain_list(model: HiNet) -> None:
    """A scenario's weights in a plain list: in no state, and never trained."""
    hidden = [torch.randn(model.embedding.out_dim) for _ in range(3)]

    def change(forward: Callable[..., Tensor], batch: Batch, *args: Any) -> Tensor:
        x_BD = forward(batch, *args)
        return torch.cat(
            [x_BD[a:b] * hidden[scenario] for scenario, a, b in segments_of(batch.scenario_counts)]
        )

    wrap(model.embedding, change)


def heads_swap(model: HiNet) -> None:
    """Another order of labels where the model is served than where it was trained."""

    def change(forward: Callable[..., Tensor], *args: Any) -> Tensor:
        logits = forward(*args)
        return logits if model.training else logits.flip(1)

    wrap(model, change)


def one_tower_for_all_tasks(model: HiNet) -> None:
    """The first task's logit is everybody's."""
    wrap(model, lambda forward, *args: forward(*args)[:, :1].expand(-1, 2))


def constant_weights(model: HiNet) -> None:
    """All experts start equal, and stay so."""

    def change(_: Callable[..., None], generator: torch.Generator) -> None:
        for parameter in model.task_layer.experts.parameters():
            nn.init.constant_(parameter, 0.01)

    wrap_method(model.task_layer.experts, "reset_parameters", change)


def wrong_expert_index(model: HiNet) -> None:
    """The experts of every task are counted by those of the first."""
    gates = model.task_layer.gates
    for bank, (num_gates, places) in enumerate(gates.shapes):
        penalty = gates.get_buffer(f"penalty_{bank}").view(num_gates, places)
        penalty[1] = penalty[0]
        source = gates.get_buffer(f"source_{bank}").view(num_gates, places)
        source[1] = source[0]


def wrap_method(module: nn.Module, name: str, change: Callable[..., Any]) -> None:
    before = getattr(module, name)
    setattr(module, name, lambda *args: change(before, *args))


Property = Callable[[str], None]


def shaped(test: Callable[..., None]) -> Property:
    return lambda name: test(name, 3, 2)


FAULTS: list[tuple[Callable[[HiNet], None], Property]] = [
    (fresh_layers, suite.test_two_evaluations_agree_to_the_bit_and_leave_the_state_alone),
    (detached_answers, shaped(suite.test_every_parameter_gets_a_gradient_from_a_mixed_batch)),
    (detached_answers, shaped(suite.test_the_state_holds_every_parameter_and_one_step_moves_each)),
    (detached_sub_experts, lambda name: finite_differences(name)),
    (detached_gates, lambda name: finite_differences(name)),
    (batch_statistics, shaped(suite.test_a_row_scores_alone_as_in_any_batch_and_any_order)),
    (attention_over_rows, shaped(suite.test_a_row_scores_alone_as_in_any_batch_and_any_order)),
    (squeezed, shaped(suite.test_a_row_scores_alone_as_in_any_batch_and_any_order)),
    (
        attends_to_itself,
        lambda name: suite.test_scenario_attention_leaves_out_the_own_scenario_and_sums_to_one(name, 3),
    ),
    (
        masked_afterwards,
        lambda name: suite.test_scenario_attention_leaves_out_the_own_scenario_and_sums_to_one(name, 3),
    ),
    (constant_gates, shaped(suite.test_gates_listen_to_their_rows_and_their_weights_sum_to_one)),
    (relu_before_softmax, suite.test_gates_rank_experts_whose_scores_are_all_negative),
    (first_gate_for_all, shaped(suite.test_every_parameter_gets_a_gradient_from_a_mixed_batch)),
    (strangers_reach_a_tower, shaped(suite.test_rows_of_a_scenario_move_no_tower_of_another)),
    (plain_list, suite.test_the_state_is_all_there_is_to_know),
    (heads_swap, suite.test_scores_follow_the_order_of_the_labels),
    (
        one_tower_for_all_tasks,
        shaped(suite.test_a_task_has_a_tower_of_its_own_that_no_other_tasks_label_moves),
    ),
    (constant_weights, suite.test_stacked_experts_and_towers_start_different_and_stay_so_after_a_step),
    (wrong_expert_index, suite.test_unequal_expert_counts_work_and_every_expert_learns),
]

ELSEWHERE = {
    "a row of an unknown scenario silently scores 0.0": "hinet_model/serving/test_scorer.py::"
    "test_an_unknown_scenario_is_refused_with_row_and_value",
    "encoders fitted on all rows before the split": "feature_eng/test_encoder.py::"
    "test_the_encoder_learns_from_training_rows_alone",
    "early stopping or model choice on the test set; the best file is the last epoch": "hinet_model/training/"
    "test_worker.py::test_best_and_last_checkpoints_are_kept_apart",
    "ids through float32": "feature_eng/test_encoder.py::test_ids_that_passed_through_floats_are_exact_or_refused",
    "GAUC NaN with one-class users": "hinet_model/objective/test_metrics.py::"
    "test_gauc_weighs_users_by_rows_and_leaves_out_those_with_one_class",
    "a one-class cell reported as 0": "hinet_model/objective/test_metrics.py::"
    "test_auc_of_one_class_or_no_rows_is_not_defined",
    "AUC from 200 bins": "hinet_model/objective/test_metrics.py::test_auc_equals_scikit_learn_with_ties",
}
"""Faults that no model can have by itself, and the test that holds each."""


def finite_differences(name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        suite.test_every_gradient_equals_a_finite_difference(name, 4, 3, patch)


def plant(patch: pytest.MonkeyPatch, fault: Callable[[HiNet], None]) -> None:
    """Register a HiNet with the fault as ``planted``."""

    class PlantedSettings(HiNetSettings):
        name: Literal["planted"] = "planted"  # type: ignore[assignment]

    def broken(settings: PlantedSettings, layout: BatchLayout, embedding: FusedEmbedding) -> HiNet:
        model = hinet.MODEL.build(settings, layout, embedding)
        assert isinstance(model, HiNet)
        fault(model)
        return model

    kind = ModelKind(PlantedSettings, broken, hinet.MODEL.exempt)
    patch.setitem(registry.REGISTRY, "planted", kind)


@pytest.mark.parametrize(
    ("fault", "held_by"),
    FAULTS,
    ids=[f"{number}-{fault.__name__}" for number, (fault, _) in enumerate(FAULTS)],
)
def test_a_planted_fault_makes_the_suite_fail(
    fault: Callable[[HiNet], None], held_by: Property, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, fault)
    with pytest.raises(AssertionError):
        held_by("planted")


@pytest.mark.parametrize("held_by", [held_by for _, held_by in FAULTS])
def test_the_copy_without_a_fault_passes(held_by: Property, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda model: None)
    held_by("planted")


class MeanPerScenario(suite.MultiTaskLoss):
    """The mean BCE of each scenario, which is no number for a scenario without rows."""

    def forward(self, logits_BN: Tensor, batch: Batch, _: Tensor | None = None) -> tuple[Tensor, Tensor]:
        bce_BN = F.binary_cross_entropy_with_logits(logits_BN, batch.labels, reduction="none")
        means = [bce_BN[batch.scenario_index == i].mean() for i in range(self.num_scenarios)]
        return torch.stack(means).sum(), bce_BN


def test_a_mean_over_the_rows_of_an_absent_scenario_makes_the_suite_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suite, "MultiTaskLoss", MeanPerScenario)
    with pytest.raises(AssertionError):
        suite.test_a_batch_without_some_scenarios_has_a_finite_loss_and_the_same_gradient_as_in_parts(
            "hinet", [0, 2, 0]
        )


@pytest.mark.parametrize("fault", sorted(ELSEWHERE))
def test_a_fault_outside_of_the_model_is_held_by_a_test_that_exists(fault: str) -> None:
    path, _, name = ELSEWHERE[fault].partition("::")
    functions = ast.parse((TESTS / path).read_text(encoding="utf-8")).body
    assert name in [node.name for node in functions if isinstance(node, ast.FunctionDef)]


def test_faults_are_planted_in_blocks_that_hinet_has() -> None:
    model = suite.build("hinet", make_layout())
    assert any(isinstance(part, SoftmaxGates) for part in model.modules())
    assert any(isinstance(part, StackedMLP) for part in model.modules())
    assert model(make_batch(make_layout(), [0, 1, 2])).shape == (3, 2)
