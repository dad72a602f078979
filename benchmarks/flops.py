"""Floating-point operations of a training step, by formula: matrix products alone, two per multiply-add.

The backward pass of a product is two products of the same size, one for each factor; none is left out, since the
first layer's input are embeddings, which train. So a step is three times its forward pass. Ours is counted as compiled
experts compute it, with nothing in vain; the reference with the scenarios that a row is not of.
`torch.utils.flop_counter` counts the same (`tests/benchmarks/test_flops.py`).

Letters in this file:
    M  scenarios   N  tasks   D  width of the features   C  width of what the task layer reads
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hinet_model.models.hinet import HiNetSizes

_STEP = 3 * 2
"""Forward and twice that backward; two operations per multiply-add."""


def own_step(sizes: HiNetSizes, in_dim: int, scenario_counts: Sequence[int]) -> int:
    """Operations of a step of `HiNet` with attention and gates.

    Args:
        sizes: Of the model; with ``top_k`` all extractors must have equally many sub-experts.
        in_dim: Width D of the features.
        scenario_counts: Rows of each scenario.
    """
    num_scenarios, width = len(sizes.shared_experts), sizes.sub_expert_dims[-1]
    in_task_layer = 3 * width
    counts = sizes.sub_experts
    run = sum(counts)
    if sizes.top_k is not None and sizes.top_k < num_scenarios - 1:
        if len(set(counts)) > 1:
            raise ValueError(f"sub-experts {list(counts)}; with top_k the formula needs equal counts")
        run = (2 + sizes.top_k) * counts[0]
    total = sum(scenario_counts) * run * (_perceptron(in_dim, sizes.sub_expert_dims) + in_dim + width)
    for rows, shared, specific in zip(
        scenario_counts, sizes.shared_experts, sizes.specific_experts, strict=True
    ):
        experts, num_tasks = shared + sum(specific), len(specific)
        scores = sum(shared + own for own in specific)
        mixing = scores * in_task_layer + num_tasks * experts * sizes.expert_dims[-1]
        towers = num_tasks * _perceptron(sizes.expert_dims[-1], [*sizes.tower_dims, 1])
        total += rows * (experts * _perceptron(in_task_layer, sizes.expert_dims) + mixing + towers)
    return _STEP * total


def reference_step(sizes: HiNetSizes, in_dim: int, rows: int) -> int:
    """Operations of a step of the reference, every row through every scenario's layers.

    Args:
        sizes: Of the model.
        in_dim: Width D of the features.
        rows: Rows of the batch.
    """
    num_scenarios, width = len(sizes.shared_experts), sizes.sub_expert_dims[-1]
    in_task_layer = 3 * width
    per_row = sum(sizes.sub_experts) * (_perceptron(in_dim, sizes.sub_expert_dims) + in_dim)
    per_row += num_scenarios**2 * width
    for shared, specific in zip(sizes.shared_experts, sizes.specific_experts, strict=True):
        per_row += (shared + sum(specific)) * _perceptron(in_task_layer, sizes.expert_dims)
        per_row += sum(shared + own for own in specific) * in_task_layer
        per_row += len(specific) * _perceptron(sizes.expert_dims[-1], [*sizes.tower_dims, 1])
    # The attention's scores do not depend on the rows.
    scores = num_scenarios * (num_scenarios - 1) * sizes.scenario_embedding_dim
    return _STEP * (rows * per_row + scores)


def _perceptron(in_dim: int, dims: Sequence[int]) -> int:
    """Multiply-adds of one row."""
    return sum(wide * narrow for wide, narrow in itertools.pairwise([in_dim, *dims]))
