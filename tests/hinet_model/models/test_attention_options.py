"""Options of the scenario attention: cut to the few scenarios that matter, or fed with features."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from batches import make_batch, make_layout
from torch import Tensor, nn

from foundation.settings import ConfigError
from hinet_model.models.build import build_model
from hinet_model.models.hinet import HiNet, HiNetSettings
from hinet_model.nn.native import library
from hinet_model.nn.routed_experts import ExpertGroups

SIZES = {
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
ROWS = [0, 0, 0, 1, 3, 3, 4, 4, 4, 4]

pytestmark = pytest.mark.usefixtures("experts")


def hinet(num_scenarios: int = 5, **changes: object) -> HiNet:
    settings = HiNetSettings.model_validate({**SIZES, **changes})
    model = build_model(settings, make_layout(num_scenarios), seed=0)
    assert isinstance(model, HiNet)
    return model


class Fixed(nn.Module):
    """An attention whose table is given."""

    varies = False

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self) -> Tensor:
        return self.table


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("gates", [True, False])
def test_top_k_equals_full_attention_with_a_table_cut_to_the_k_largest(top_k: int, gates: bool) -> None:
    cut = hinet(scenario_attention="top_k", top_k=top_k, gates=gates)
    full = hinet(gates=gates)
    full.load_state_dict(cut.state_dict())
    whole, table = full.scenario_attention(), cut.scenario_attention()
    assert whole is not None
    assert table is not None
    largest = whole.topk(top_k, dim=1)
    expected = torch.zeros(5, 5).scatter(1, largest.indices, largest.values)
    torch.testing.assert_close(table, expected / expected.sum(dim=1, keepdim=True))
    full.attention = Fixed(table.detach())  # type: ignore[assignment]
    batch = make_batch(make_layout(5), ROWS)
    torch.testing.assert_close(cut(batch), full(batch), atol=1e-6, rtol=1e-6)
    cut(batch).square().sum().backward()
    full(batch).square().sum().backward()
    for name, parameter in full.named_parameters():
        ours = cut.get_parameter(name).grad
        torch.testing.assert_close(ours, parameter.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("top_k", [4, 9])
def test_listening_to_all_others_is_full_attention_to_the_bit(top_k: int) -> None:
    cut, full = hinet(scenario_attention="top_k", top_k=top_k), hinet()
    batch = make_batch(make_layout(5), ROWS)
    assert torch.equal(cut(batch), full(batch))


@pytest.mark.parametrize("top_k", [1, 3])
def test_a_row_runs_through_the_shared_its_own_and_k_other_extractors_alone(
    top_k: int, experts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hinet(scenario_attention="top_k", top_k=top_k)
    assert model.extractors is not None
    seen: list[int] = []
    model.extractors.sub_experts.register_forward_hook(
        lambda _module, inputs, _output: seen.append(inputs[0].shape[0])
    )

    route = model.extractors.sub_experts.route

    def routed(rows: Tensor, groups: ExpertGroups, pieces: Tensor, *others: Any) -> Tensor:
        seen.extend(stop - start for _, start, stop, _, _ in pieces.tolist())
        return route(rows, groups, pieces, *others)

    monkeypatch.setattr(model.extractors.sub_experts, "route", routed)
    model(make_batch(make_layout(5), ROWS))
    assert sum(seen) == len(ROWS) * (2 + top_k)


@pytest.mark.parametrize(
    "changes", [{}, {"scenario_attention": "none"}, {"scenario_attention": "top_k", "top_k": 3}]
)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_compiled_experts_equal_torchs_own_operations_on_many_rows(
    changes: dict[str, object], threads: int, experts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of several pieces, groups that fall to two threads, a scenario without rows."""
    if experts == "plain":
        pytest.skip("it compares both")
    layout = make_layout(7)
    model = hinet(7, **changes).double()
    batch = make_batch(layout, sorted([i * i % 7 for i in range(1500)] + [5] * 3))
    batch = replace(batch, numbers=batch.numbers.double())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results = []
        for available in (True, False):
            monkeypatch.setattr(library, "available", lambda available=available: available)
            model.zero_grad()
            logits = model(batch)
            logits.square().sum().backward()
            results.append((logits.detach(), [parameter.grad for parameter in model.parameters()]))
    finally:
        torch.set_num_threads(before)
    (ours, our_grads), (theirs, their_grads) = results
    torch.testing.assert_close(ours, theirs)
    for our, their in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(our, their)


def test_every_score_that_is_listened_to_learns_under_top_k() -> None:
    model = hinet(scenario_attention="top_k", top_k=2)
    model(make_batch(make_layout(5), [0, 1, 2, 3, 4] * 8)).square().sum().backward()
    assert model.attention is not None
    assert model.attention.weight is not None
    moved = model.attention.weight.grad.abs().sum(dim=2) > 0
    assert (moved.sum(dim=1) == 2).all()


@pytest.mark.parametrize("num_scenarios", [1, 2])
def test_few_scenarios_know_no_difference_between_top_k_and_full(num_scenarios: int) -> None:
    batch = make_batch(make_layout(num_scenarios), [row % num_scenarios for row in range(6)])
    full = hinet(num_scenarios)(batch)
    assert torch.equal(hinet(num_scenarios, scenario_attention="top_k", top_k=1)(batch), full)
    by_features = {"scenario_attention_input": "features", "scenario_features": ["age"]}
    assert torch.equal(hinet(num_scenarios, **by_features)(batch), full)


def test_attention_fed_with_features_weighs_the_others_row_by_row() -> None:
    by_features = hinet(scenario_attention_input="features", scenario_features=["city", "age"])
    attention = by_features.attention
    assert attention is not None
    assert attention.varies
    assert by_features.scenario_attention() is None
    batch = make_batch(make_layout(5), ROWS)
    weights = attention.of_rows(by_features.embedding(batch), batch)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(ROWS)))
    assert not weights.gather(1, batch.scenario_index.unsqueeze(1)).any()
    assert not torch.allclose(weights[0], weights[1])
    # One row by the equation: softmax over the others of W Emb(s) + V [city, age].
    row, scenario = 4, 3
    city = by_features.embedding.weight[batch.unique_ids[batch.inverse[row, 1]]]
    read = torch.cat([city, batch.numbers[row, :1]])
    assert attention.weight is not None
    assert attention.embedding is not None
    assert attention.feature_weight is not None
    score = (
        attention.weight[scenario] @ attention.embedding[scenario] + attention.feature_weight[scenario] @ read
    )
    torch.testing.assert_close(weights[row, [0, 1, 2, 4]], score.softmax(dim=0))


def test_features_that_say_nothing_leave_the_table_of_the_indicator() -> None:
    by_features = hinet(scenario_attention_input="features", scenario_features=["age"])
    plain = hinet()
    state = by_features.state_dict()
    assert by_features.attention is not None
    assert by_features.attention.feature_weight is not None
    with torch.no_grad():
        by_features.attention.feature_weight.zero_()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    batch = make_batch(make_layout(5), ROWS)
    torch.testing.assert_close(by_features(batch), plain(batch), atol=1e-6, rtol=1e-6)
    by_features(batch).square().sum().backward()
    assert by_features.attention.feature_weight.grad is not None
    assert by_features.attention.feature_weight.grad[[0, 1, 3, 4]].flatten(1).any(dim=1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"scenario_attention_input": "features", "scenario_features": ["agee"]},
            "model.scenario_features: unknown name 'agee'; expected one of item, city, genres, recent, age, rate; "
            "did you mean 'age'?",
        ),
        ({"scenario_features": ["age"]}, "needs scenario_attention_input: features"),
        ({"scenario_attention_input": "features"}, "the other way round"),
        (
            {
                "scenario_attention": "top_k",
                "scenario_attention_input": "features",
                "scenario_features": ["age"],
            },
            "features needs scenario_attention: full",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        hinet(**changes)
    assert message in str(error.value)
