"""The formula of a step's operations counts what torch counts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from small_sizes import SMALL
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import flops
from benchmarks.reference import PlainBatch, reference_loss
from benchmarks.workload import build_ours, build_reference, make_batches, make_layout, sizes_of
from hinet_model.models.hinet import HiNetSettings, HiNetSizes
from hinet_model.nn.native import library

UNEQUAL = SMALL.model_copy(
    update={
        "sub_experts": {"shared": 2, **{f"s{i}": 1 + i % 3 for i in range(6)}},
        "shared_experts": {f"s{i}": 1 + i % 2 for i in range(6)},
        "specific_experts": {"t0": 1, "t1": 3},
    }
)
TOP_TWO = SMALL.model_copy(update={"scenario_attention": "top_k", "top_k": 2})
LAYOUT = make_layout(6, table_rows=30, num_fields=3)


def of_product(total: torch.Size, left: torch.Size, right: torch.Size, **_: object) -> int:
    return 2 * left.numel() * right[-1]


def counter() -> FlopCounterMode:
    """Torch's counter, told of the products that add in place, which it leaves out."""
    in_place = (torch.ops.aten.addmm_, torch.ops.aten.baddbmm_)
    return FlopCounterMode(display=False, custom_mapping=dict.fromkeys(in_place, of_product))


def in_vain(sizes: HiNetSizes, in_dim: int, scenario_counts: Sequence[int]) -> int:
    """What torch's own operations compute beyond compiled experts: three sums for full attention, places of a gate
    bank that hold no expert.
    """
    counts, width = sizes.sub_experts, sizes.sub_expert_dims[-1]
    per_row = 0
    if sizes.top_k is None:
        per_row = sum(counts) * 2 * width + (len(counts) * max(counts) - sum(counts)) * in_dim
    total = sum(scenario_counts) * per_row
    for rows, specific in zip(scenario_counts, sizes.specific_experts, strict=True):
        empty = sum(sum(specific) - own for own in specific)
        total += rows * empty * 3 * width
    return 6 * total


@pytest.mark.parametrize("settings", [SMALL, UNEQUAL, TOP_TWO], ids=["full", "unequal counts", "top two"])
def test_a_step_of_ours(settings: HiNetSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    # The counter sees torch's own operations alone.
    monkeypatch.setattr(library, "available", lambda: False)
    model, sizes = build_ours(settings, LAYOUT), sizes_of(settings, LAYOUT)
    (batch,) = make_batches(LAYOUT, rows=40, count=1, seed=0)
    rows = model.embedding.gather(batch.unique_ids)
    with counter() as counted:
        model(batch, rows).sum().backward()
    given = sizes, model.embedding.out_dim, batch.scenario_counts
    assert counted.get_total_flops() == flops.own_step(*given) + in_vain(*given)


@pytest.mark.parametrize("settings", [SMALL, UNEQUAL], ids=["full", "unequal counts"])
def test_a_step_of_the_reference(settings: HiNetSettings) -> None:
    ours, sizes = build_ours(settings, LAYOUT), sizes_of(settings, LAYOUT)
    reference = build_reference(ours, sizes, LAYOUT)
    (batch,) = make_batches(LAYOUT, rows=40, count=1, seed=0)
    plain = PlainBatch.of(batch)
    with counter() as counted:
        reference_loss(reference(plain.ids, plain.scenario), plain.labels).backward()
    assert counted.get_total_flops() == flops.reference_step(sizes, ours.embedding.out_dim, batch.num_rows)


def test_top_k_needs_equal_counts() -> None:
    settings = UNEQUAL.model_copy(update={"scenario_attention": "top_k", "top_k": 2})
    with pytest.raises(ValueError, match="equal counts"):
        flops.own_step(sizes_of(settings, LAYOUT), 12, [1] * 6)
