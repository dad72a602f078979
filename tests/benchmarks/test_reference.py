"""The plain HiNet that speed is measured against computes what ours computes: logits and gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_sizes import SMALL

from benchmarks.reference import PlainBatch, ReferenceHiNet, reference_loss, weight_pairs
from benchmarks.workload import build_ours, build_reference, make_batches, make_layout, sizes_of
from hinet_model.models.hinet import HiNetSettings
from hinet_model.objective.losses import MultiTaskLoss

UNEQUAL = SMALL.model_copy(
    update={
        "sub_experts": {"shared": 2, "s0": 1, "s1": 3, "s2": 2},
        "shared_experts": {"s0": 1, "s1": 2, "s2": 3},
        "specific_experts": {"s0": {"t0": 1, "t1": 3}, "s1": {"t0": 2, "t1": 1}, "s2": {"t0": 1, "t1": 1}},
    }
)


@pytest.mark.parametrize(
    ("settings", "num_scenarios"),
    [(SMALL, 2), (SMALL, 4), (UNEQUAL, 3)],
    ids=["two", "four", "unequal counts"],
)
def test_logits_and_every_gradient_agree(settings: HiNetSettings, num_scenarios: int) -> None:
    layout = make_layout(num_scenarios, table_rows=30, num_fields=3)
    ours = build_ours(settings, layout)
    reference = build_reference(ours, sizes_of(settings, layout), layout)
    (batch,) = make_batches(layout, rows=40, count=1, seed=0)
    plain = PlainBatch.of(batch)

    own_logits, logits = ours(batch), reference(plain.ids, plain.scenario)
    torch.testing.assert_close(logits, own_logits, atol=1e-6, rtol=1e-5)

    MultiTaskLoss([1.0] * num_scenarios, [1.0] * layout.num_tasks)(own_logits, batch)[0].backward()
    reference_loss(logits, plain.labels).backward()
    compared, reached = set(), 0
    for source, pick, target in weight_pairs(ours, reference):
        assert source.grad is not None
        assert target.grad is not None
        reached += bool(target.grad.any())
        torch.testing.assert_close(target.grad, pick(source.grad), atol=1e-6, rtol=1e-4)
        compared.add(target)
    # Not all: a gate over one expert has nothing to learn, and a small tower may have died.
    assert reached > 0.8 * len(compared)
    left = {name for name, parameter in reference.named_parameters() if parameter not in compared}
    assert all(name.startswith(("attention.", "scenario_table.")) for name in left)
    assert bool(left) == (num_scenarios == 2)


def test_one_scenario_is_refused() -> None:
    layout = make_layout(1, table_rows=30, num_fields=3)
    with pytest.raises(ValueError, match="got 1 scenarios"):
        ReferenceHiNet(sizes_of(SMALL, layout), 30, 4, 3)


def test_options_do_not_change_what_the_sizes_are() -> None:
    layout = make_layout(6, table_rows=30, num_fields=3)
    listening = SMALL.model_copy(update={"scenario_attention": "top_k", "top_k": 2})
    assert dataclasses.replace(sizes_of(listening, layout), top_k=None) == sizes_of(SMALL, layout)
