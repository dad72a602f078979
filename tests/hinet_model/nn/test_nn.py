"""The blocks: dropout, routing, gates, attention, the embedding."""

from __future__ import annotations

import pytest
import torch
from batches import make_batch, make_layout

from hinet_model.nn.dropout import dropout_
from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.nn.gate import SoftmaxGates
from hinet_model.nn.routing import Segment, check_counts, segments_of
from hinet_model.nn.scenario_attention import ScenarioAttention


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5])
def test_dropout_zeroes_at_its_rate_and_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    kept = dropout_(torch.ones(400, 1001), rate, training=True)
    assert (kept == 0).float().mean().item() == pytest.approx(rate, abs=0.005)
    assert kept.mean().item() == pytest.approx(1.0, abs=0.01)
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)], abs=1e-3)
    # Neighbours come from one draw and must not know of each other.
    zero = (kept.flatten() == 0).float()
    assert (zero[:-1] * zero[1:]).mean().item() == pytest.approx(rate**2, abs=0.005)


def test_dropout_follows_the_global_seed_and_does_nothing_in_evaluation() -> None:
    torch.manual_seed(1)
    first = dropout_(torch.ones(50), 0.5, training=True)
    torch.manual_seed(1)
    assert torch.equal(first, dropout_(torch.ones(50), 0.5, training=True))
    assert torch.equal(dropout_(torch.ones(50), 0.5, training=False), torch.ones(50))
    assert dropout_(torch.ones(0), 0.5, training=True).numel() == 0


def test_relu_with_dropout_passes_the_scaled_gradient_where_its_result_is_positive() -> None:
    torch.manual_seed(0)
    leaf = torch.randn(40, 50, requires_grad=True)
    result = dropout_(leaf * 1.0, 0.25, training=True, relu=True)
    result.backward(torch.full_like(leaf, 3.0))
    kept = result > 0
    assert 0.3 < kept.float().mean() < 0.45
    torch.testing.assert_close(result[kept], leaf[kept] / 0.75)
    assert not (kept & (leaf <= 0)).any()
    torch.testing.assert_close(leaf.grad, torch.where(kept, 3.0 / 0.75, 0.0))
    assert torch.equal(dropout_(leaf * 1.0, 0.25, training=False, relu=True), leaf.relu())


def test_segments_cover_the_batch_and_skip_scenarios_without_rows() -> None:
    assert segments_of((2, 0, 3)) == [Segment(0, 0, 2), Segment(2, 2, 5)]
    assert segments_of((0, 0)) == [Segment(0, 0, 0)]


def test_counts_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to 3; the batch has 4"):
        check_counts((1, 2), 2, 4)


def gates_of(members: list[list[bool]], **options: bool) -> SoftmaxGates:
    gates = SoftmaxGates(4, [members], **options)
    gates.reset_parameters(torch.Generator().manual_seed(0))
    return gates


def test_gates_sum_to_one_over_their_own_members_alone() -> None:
    gates = gates_of([[True, False, True], [True, True, True]])
    weight = gates(torch.randn(5, 4))
    assert weight.shape == (5, 2, 3)
    torch.testing.assert_close(weight.sum(dim=-1), torch.ones(5, 2))
    assert torch.equal(weight[:, 0, 1], torch.zeros(5))
    assert (weight[:, 1] > 0).all()


def test_a_gate_listens_to_its_input_and_ranks_negative_scores() -> None:
    gates = gates_of([[True, True, True]])
    with torch.no_grad():
        gates.weight.copy_(torch.tensor([[-1.0, 0, 0, 0], [-2.0, 0, 0, 0], [-3.0, 0, 0, 0]]))
    weight = gates(torch.tensor([[1.0, 0, 0, 0], [2.0, 0, 0, 0]]))[:, 0]
    assert weight[0, 0] > weight[0, 1] > weight[0, 2] > 0
    assert weight[1, 0] > weight[0, 0]


def test_disabled_gates_trust_their_members_equally_and_learn_nothing() -> None:
    gates = gates_of([[True, False, True]], enabled=False)
    assert list(gates.parameters()) == []
    assert torch.equal(gates(torch.randn(2, 4)), torch.tensor([[[0.5, 0.0, 0.5]]] * 2))


@pytest.mark.parametrize("num_scenarios", [2, 3, 7])
def test_attention_has_a_zero_diagonal_and_rows_that_sum_to_one(num_scenarios: int) -> None:
    attention = ScenarioAttention(num_scenarios, 8)
    attention.reset_parameters(torch.Generator().manual_seed(0))
    table = attention()
    assert torch.equal(table.diagonal(), torch.zeros(num_scenarios))
    torch.testing.assert_close(table.sum(dim=1), torch.ones(num_scenarios))
    assert (table + torch.eye(num_scenarios) > 0).all()


def test_every_scenario_weighs_the_others_by_a_matrix_of_its_own() -> None:
    attention = ScenarioAttention(4, 8)
    attention.reset_parameters(torch.Generator().manual_seed(0))
    before = attention().detach()
    with torch.no_grad():
        attention.weight[1].mul_(3.0)
    after = attention().detach()
    assert not torch.equal(before[1], after[1])
    assert torch.equal(before[[0, 2, 3]], after[[0, 2, 3]])


def test_attention_among_fewer_than_two_scenarios_is_refused() -> None:
    with pytest.raises(ValueError, match="two scenarios at least"):
        ScenarioAttention(1, 8)


def test_slots_in_use_are_averaged_and_a_feature_without_any_is_zero() -> None:
    layout = make_layout()
    spans = [(field.positions[0], field.positions[-1] + 1) for field in layout.slot_fields]
    pooled = [field.pooled for field in layout.slot_fields]
    embedding = FusedEmbedding(layout.num_embeddings, 4, spans, pooled, layout.num_numbers, 1.0)
    embedding.reset_parameters(torch.Generator().manual_seed(0))
    batch = make_batch(layout, [0, 1, 2] * 8)
    x = embedding(batch)
    num_unique = len(batch.unique_ids)
    empty = 0
    for row in range(batch.num_rows):
        for feature, (start, stop) in enumerate(spans):
            used = [p for p in batch.inverse[row, start:stop].tolist() if p < num_unique]
            empty += not used
            expected = embedding.weight[batch.unique_ids[used]].mean(dim=0) if used else torch.zeros(4)
            torch.testing.assert_close(x[row, 4 * feature : 4 * feature + 4], expected)
    assert empty > 0
    assert torch.equal(x[:, -layout.num_numbers :], batch.numbers)
