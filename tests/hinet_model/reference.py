"""HiNet written out from its equations, one row, one expert, one gate at a time: slow and obvious.

It reads the parameters of a `HiNet`, so that answers and gradients can be compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hinet_model.data.batch import Batch
from hinet_model.models.hinet import HiNet, HiNetSizes
from hinet_model.nn.mlp import StackedMLP


def perceptron(stack: StackedMLP, expert: int, x: Tensor, relu_last: bool = True) -> Tensor:
    for depth, (weight, bias) in enumerate(stack.layers()):
        x = weight[expert] @ x + bias[expert]
        if relu_last or depth < len(stack.weights) - 1:
            x = torch.clamp(x, min=0.0)
    return x


def gate(weight: Tensor | None, first: int, count: int, x: Tensor) -> Tensor:
    if weight is None:
        return torch.full((count,), 1.0 / count)
    return torch.softmax(torch.stack([weight[first + k] @ x for k in range(count)]), dim=0)


def features(model: HiNet, batch: Batch, row: int) -> Tensor:
    parts = []
    for start, stop, _ in model.embedding.spans:
        used = [int(p) for p in batch.inverse[row, start:stop] if p < len(batch.unique_ids)]
        vectors = [model.embedding.weight[int(batch.unique_ids[p])] for p in used]
        parts.append(sum(vectors) / len(vectors) if vectors else torch.zeros(model.embedding.dim))
    return torch.cat([*parts, batch.numbers[row]])


def integrate(model: HiNet, counts: tuple[int, ...], group: int, x: Tensor) -> Tensor:
    """SEI of one extractor: 0 is the shared one, m + 1 scenario m's."""
    extractors = model.extractors
    assert extractors is not None
    first = sum(counts[:group])
    weights = gate(extractors.gates.weight, first, counts[group], x)
    return sum(weights[k] * perceptron(extractors.sub_experts, first + k, x) for k in range(counts[group]))  # type: ignore[return-value]


def attention_row(model: HiNet, scenario: int, num_scenarios: int) -> dict[int, Tensor]:
    others = [m for m in range(num_scenarios) if m != scenario]
    assert model.attention is not None
    if model.attention.weight is None:
        return {others[0]: torch.ones(())}
    assert model.attention.embedding is not None
    weights = torch.softmax(model.attention.weight[scenario] @ model.attention.embedding[scenario], dim=0)
    return dict(zip(others, weights, strict=True))


def reference_logits(model: HiNet, sizes: HiNetSizes, batch: Batch) -> Tensor:
    """Logits of every row, without dropout."""
    num_scenarios, num_tasks = len(sizes.shared_experts), len(sizes.specific_experts[0])
    rows = []
    for row in range(batch.num_rows):
        i = int(batch.scenario_index[row])
        c = x = features(model, batch, row)
        if sizes.hierarchy:
            parts = [integrate(model, sizes.sub_experts, 0, x), integrate(model, sizes.sub_experts, i + 1, x)]
            if sizes.scenario_attention and num_scenarios > 1:
                table = attention_row(model, i, num_scenarios)
                parts.append(sum(a * integrate(model, sizes.sub_experts, m + 1, x) for m, a in table.items()))  # type: ignore[arg-type]
            c = torch.cat(parts)
        rows.append(torch.stack([task_logit(model, sizes, i, j, c) for j in range(num_tasks)]))
    return torch.stack(rows) if rows else torch.zeros(0, num_tasks)


def task_logit(model: HiNet, sizes: HiNetSizes, i: int, j: int, c: Tensor) -> Tensor:
    layer = model.task_layer
    first_expert = sum(sizes.shared_experts[:i]) + sum(sum(tasks) for tasks in sizes.specific_experts[:i])
    shared = [first_expert + k for k in range(sizes.shared_experts[i])]
    first_own = first_expert + len(shared) + sum(sizes.specific_experts[i][:j])
    experts = shared + [first_own + k for k in range(sizes.specific_experts[i][j])]
    gates_before = sum(
        sizes.shared_experts[m] + count
        for m in range(i + 1)
        for task, count in enumerate(sizes.specific_experts[m])
        if m < i or task < j
    )
    weights = gate(layer.gates.weight, gates_before, len(experts), c)
    extract = sum(
        weight * perceptron(layer.experts, k, c) for weight, k in zip(weights, experts, strict=True)
    )
    tower = i * len(sizes.specific_experts[0]) + j
    return perceptron(layer.towers.towers, tower, extract, relu_last=False)[0]  # type: ignore[arg-type]
