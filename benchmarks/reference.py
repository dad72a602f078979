"""A plain HiNet as public implementations write it: what the speed of `hinet_model` is measured against.

One module per sub-expert, expert, gate and tower. Every row goes through every scenario's task layer and towers, and
the logits of its own scenario are picked at the end. Within that it is no slower than it has to be: ReLU in place, the
attention table as one product, Adam's fused kernel, no loop over rows. Same equations and no dropout, so
with `copy_weights` it answers as `HiNet` does.

Shape letters in this file:
    B  rows in the batch        M  scenarios      F  id features
    K  (sub-)experts of one     N  tasks          H  width of an answer
    D  width of an input        I, O  widths of a layer's input and output
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hinet_model.data.batch import Batch
from hinet_model.models.hinet import HiNet, HiNetSizes
from hinet_model.nn.gate import SoftmaxGates
from hinet_model.nn.mlp import StackedMLP


class PlainBatch(NamedTuple):
    """A batch as a plain loader gives it.

    Shape:
        ids: ``(B, F)`` rows of the table · scenario: ``(B,)`` · labels: ``(B, N)``
    """

    ids: Tensor
    scenario: Tensor
    labels: Tensor

    @classmethod
    def of(cls, batch: Batch) -> PlainBatch:
        """The same rows; every id feature has exactly one slot."""
        return cls(batch.unique_ids[batch.inverse], batch.scenario_index, batch.labels)


def perceptron(in_dim: int, dims: Sequence[int], relu_last: bool = True) -> nn.Sequential:
    """Linear layers of widths ``dims``, each followed by ReLU (the last if asked)."""
    layers: list[nn.Module] = []
    for dim in dims:
        layers += [nn.Linear(in_dim, dim), nn.ReLU(inplace=True)]
        in_dim = dim
    return nn.Sequential(*(layers if relu_last else layers[:-1]))


def mixed(answers: Sequence[Tensor], scores_BK: Tensor) -> Tensor:
    """Answers ``(B, H)`` of ``K`` experts, weighed by the softmax of their scores.

    (Stacked answers and one batched product per row, the other usual form, took nearly three times as long.)
    """
    weights = torch.split(scores_BK.softmax(dim=1), 1, dim=1)
    total = answers[0] * weights[0]
    for answer_BH, weight_B1 in zip(answers[1:], weights[1:], strict=True):
        total = torch.addcmul(total, answer_BH, weight_B1)
    return total


class Extractor(nn.Module):
    """Sub-expert integration: sub-experts and the gate that mixes them. ``(B, D)`` -> ``(B, H)``"""

    def __init__(self, in_dim: int, count: int, dims: Sequence[int]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(perceptron(in_dim, dims) for _ in range(count))
        self.gate = nn.Linear(in_dim, count, bias=False)

    def forward(self, x_BD: Tensor) -> Tensor:
        return mixed([expert(x_BD) for expert in self.experts], self.gate(x_BD))


class ScenarioTasks(nn.Module):
    """One scenario's customised gate control and towers. ``(B, D)`` -> ``(B, N)`` logits"""

    def __init__(
        self,
        in_dim: int,
        shared: int,
        specific: Sequence[int],
        dims: Sequence[int],
        tower_dims: Sequence[int],
    ) -> None:
        super().__init__()
        self.shared = nn.ModuleList(perceptron(in_dim, dims) for _ in range(shared))
        self.specific = nn.ModuleList(
            nn.ModuleList(perceptron(in_dim, dims) for _ in range(count)) for count in specific
        )
        self.gates = nn.ModuleList(nn.Linear(in_dim, shared + count, bias=False) for count in specific)
        self.towers = nn.ModuleList(perceptron(dims[-1], [*tower_dims, 1], relu_last=False) for _ in specific)

    def forward(self, c_BD: Tensor) -> Tensor:
        shared = [expert(c_BD) for expert in self.shared]
        logits = []
        for own, gate, tower in zip(self.specific, self.gates, self.towers, strict=True):
            assert isinstance(own, nn.ModuleList)
            answers = shared + [expert(c_BD) for expert in own]
            logits.append(tower(mixed(answers, gate(c_BD))))
        return torch.cat(logits, dim=1)


class ReferenceHiNet(nn.Module):
    """HiNet with full attention for two scenarios or more.

    Args:
        sizes: Sizes of the `HiNet` that it equals; options other than the sizes must be the defaults.
        num_embeddings: Rows of the embedding table.
        embedding_dim: Width of a row.
        num_fields: Id features ``F``, one id each.

    Shape:
        ids ``(B, F)``, scenario ``(B,)``  ->  ``(B, N)`` logits

    Source: HiNet (ICDE 2023), equations of the scenario and the task layer.
    """

    def __init__(self, sizes: HiNetSizes, num_embeddings: int, embedding_dim: int, num_fields: int) -> None:
        super().__init__()
        num_scenarios = len(sizes.shared_experts)
        if num_scenarios < 2:
            raise ValueError(f"the reference has an attention always; got {num_scenarios} scenarios")
        in_dim, wide = num_fields * embedding_dim, 3 * sizes.sub_expert_dims[-1]
        self.table = nn.Embedding(num_embeddings, embedding_dim)
        self.shared = Extractor(in_dim, sizes.sub_experts[0], sizes.sub_expert_dims)
        self.own = nn.ModuleList(
            Extractor(in_dim, count, sizes.sub_expert_dims) for count in sizes.sub_experts[1:]
        )
        self.scenario_table = nn.Embedding(num_scenarios, sizes.scenario_embedding_dim)
        self.attention = nn.ModuleList(
            nn.Linear(sizes.scenario_embedding_dim, num_scenarios - 1, bias=False)
            for _ in range(num_scenarios)
        )
        self.tasks = nn.ModuleList(
            ScenarioTasks(wide, shared, specific, sizes.expert_dims, sizes.tower_dims)
            for shared, specific in zip(sizes.shared_experts, sizes.specific_experts, strict=True)
        )
        others = [[m for m in range(num_scenarios) if m != i] for i in range(num_scenarios)]
        self.others: Tensor
        self.register_buffer("others", torch.tensor(others), persistent=False)

    def attention_table(self) -> Tensor:
        """Weights ``(M, M)`` of the other scenarios, zero on the diagonal."""
        rows = zip(self.attention, self.scenario_table.weight, strict=True)
        weight = torch.stack([score(embedding) for score, embedding in rows]).softmax(dim=1)
        return weight.new_zeros(len(weight), len(weight)).scatter(1, self.others, weight)

    def forward(self, ids_BF: Tensor, scenario_B: Tensor) -> Tensor:
        x_BD = self.table(ids_BF).flatten(1)
        shared_BH = self.shared(x_BD)
        own = [extractor(x_BD) for extractor in self.own]
        own_MBH = torch.stack(own)
        others_MBH = (self.attention_table() @ own_MBH.flatten(1)).view_as(own_MBH)
        logits = [
            task_layer(torch.cat([shared_BH, own_BH, others_BH], dim=1))
            for task_layer, own_BH, others_BH in zip(self.tasks, own, others_MBH, strict=True)
        ]
        logits_BMN = torch.stack(logits, dim=1)
        place = scenario_B.view(-1, 1, 1).expand(-1, 1, logits_BMN.shape[2])
        return logits_BMN.gather(1, place).squeeze(1)


def reference_loss(logits_BN: Tensor, labels_BN: Tensor) -> Tensor:
    """Cross-entropy: mean over the rows, sum over the tasks."""
    return F.binary_cross_entropy_with_logits(logits_BN, labels_BN, reduction="sum") / len(labels_BN)


Pick = Callable[[Tensor], Tensor]
"""Takes from a parameter of `HiNet`, or from its gradient, what one parameter of the reference holds."""

Pair = tuple[Tensor, Pick, Tensor]
"""A parameter of `HiNet`, what to take from it, and the parameter of the reference that holds this."""


@torch.no_grad()
def copy_weights(ours: HiNet, reference: ReferenceHiNet) -> None:
    """Give the reference the weights of a `HiNet` of the same sizes."""
    for source, pick, target in weight_pairs(ours, reference):
        target.copy_(pick(source))


def weight_pairs(ours: HiNet, reference: ReferenceHiNet) -> Iterator[Pair]:
    """Every parameter of the reference with where it lies in a `HiNet` with full attention.

    (The attention's are left out for two scenarios, where they have no say and `HiNet` has none.)
    """
    yield ours.embedding.weight, _whole, reference.table.weight
    if ours.attention is not None and ours.attention.weight is not None:
        assert ours.attention.embedding is not None
        yield ours.attention.embedding, _whole, reference.scenario_table.weight
        for scenario, score in enumerate(reference.attention):
            yield ours.attention.weight, partial(_row, place=scenario), _weight(score)
    assert ours.extractors is not None
    yield from _extractor_pairs(ours, [reference.shared, *reference.own])
    layer = ours.task_layer
    expert = first_gate = tower = 0
    for tasks in reference.tasks:
        assert isinstance(tasks, ScenarioTasks)
        for perceptrons in (tasks.shared, *tasks.specific):
            assert isinstance(perceptrons, nn.ModuleList)
            for one in perceptrons:
                yield from _perceptron_pairs(layer.experts, expert, one)
                expert += 1
        for gate, own_tower in zip(tasks.gates, tasks.towers, strict=True):
            yield _gate_pair(layer.gates, first_gate, gate)
            first_gate += len(_weight(gate))
            yield from _perceptron_pairs(layer.towers.towers, tower, own_tower)
            tower += 1


def _extractor_pairs(ours: HiNet, extractors: Sequence[nn.Module]) -> Iterator[Pair]:
    assert ours.extractors is not None
    first = 0
    for extractor in extractors:
        assert isinstance(extractor, Extractor)
        yield _gate_pair(ours.extractors.gates, first, extractor.gate)
        for place, one in enumerate(extractor.experts, first):
            yield from _perceptron_pairs(ours.extractors.sub_experts, place, one)
        first += len(extractor.experts)


def _gate_pair(gates: SoftmaxGates, first: int, gate: nn.Module) -> Pair:
    assert gates.weight is not None
    weight = _weight(gate)
    return gates.weight, partial(_rows, start=first, stop=first + len(weight)), weight


def _perceptron_pairs(stack: StackedMLP, place: int, one: nn.Module) -> Iterator[Pair]:
    linears = [layer for layer in one.modules() if isinstance(layer, nn.Linear)]
    for weight_EOI, bias_EO, linear in zip(stack.weights, stack.biases, linears, strict=True):
        yield weight_EOI, partial(_row, place=place), linear.weight
        yield bias_EO, partial(_row, place=place), linear.bias


def _weight(linear: nn.Module) -> Tensor:
    assert isinstance(linear, nn.Linear)
    return linear.weight


def _whole(tensor: Tensor) -> Tensor:
    return tensor


def _row(tensor: Tensor, place: int) -> Tensor:
    return tensor[place]


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    return tensor[start:stop]
