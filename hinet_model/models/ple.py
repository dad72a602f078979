"""PLE: levels of customised gate control, in which what is shared and what is specific stay apart.

Source: Progressive Layered Extraction (RecSys 2020), equations 1 to 6: in level ``j`` task ``k`` goes on with
``g_kj = softmax(W_kj g_k(j-1)) S_kj``, where ``S_kj`` are the answers of the task's experts to ``g_k(j-1)`` and of the
shared ones to ``g_s(j-1)``; the shared gate reads ``g_s(j-1)`` and weighs the experts of all tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from foundation.settings import ConfigError
from hinet_model.data.batch import Batch, BatchLayout
from hinet_model.models.counts import one_count, specific_of
from hinet_model.models.embedded import of_network
from hinet_model.models.model import ModelKind
from hinet_model.models.settings import Count, ModelSettings
from hinet_model.nn.block import Block
from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.nn.gate import SoftmaxGates
from hinet_model.nn.mlp import Layers, StackedMLP
from hinet_model.nn.routing import pieces_of, segments_of
from hinet_model.nn.tower_group import TowerGroup


class PLESettings(ModelSettings):
    """Keys of PLE."""

    name: Literal["ple"] = "ple"
    levels: Count = 2
    """Levels of customised gate control that are stacked."""
    shared_experts: Count | dict[str, Count] = 2
    """Experts of a level that everybody shares: one count."""
    specific_experts: Count | dict[str, Count | dict[str, Count]] = 2
    """Experts of a level that one (scenario, task) pair owns: one count, or one per task, or those per scenario."""


class LevelParts(NamedTuple):
    """The parameters of a level, split once for all scenarios."""

    specific_experts: list[Layers]
    task_gates: list[Tensor | None]
    shared_gates: list[Tensor | None] | None


class ControlLevel(Block):
    """One level: shared experts, specific ones per scenario and task, a gate per task and (but last) a shared one.

    Args:
        in_dim: Width of what comes from the level before.
        shared: Shared experts.
        specific: Specific experts of each scenario and task.
        dims: Widths of an expert's layers.
        dropout: Rate of dropout in the experts.
        last: No level follows, so nothing shared is handed on.

    Shape:
        ``N + 1`` streams of rows of one scenario: each task's, and the shared one (the last stands for it):
        ``(N + 1, n, D)``  ->  ``(N + 1, n, H)``, or ``(N, n, H)`` from the last level
    """

    def __init__(
        self,
        in_dim: int,
        shared: int,
        specific: Sequence[Sequence[int]],
        dims: Sequence[int],
        dropout: float,
        last: bool,
    ) -> None:
        super().__init__()
        self.shared = shared
        self.specific = [list(tasks) for tasks in specific]
        self.last = last
        num_tasks = len(specific[0])
        self.shared_experts = StackedMLP(shared, in_dim, dims, dropout)
        self.specific_experts = StackedMLP(sum(sum(tasks) for tasks in specific), in_dim, dims, dropout)
        task_gates = [
            [[[True] * shared + [k == j for k, count in enumerate(tasks) for _ in range(count)]]
             for j in range(num_tasks)]
            for tasks in specific
        ]  # fmt: skip
        # A gate reads its own stream, so that each is a bank of its own: scenario by scenario, task by task.
        banks = [bank for gates in task_gates for bank in gates]
        self.task_gates = SoftmaxGates(in_dim, banks)
        self.shared_gates = None
        if not last:
            self.shared_gates = SoftmaxGates(in_dim, [[[True] * (shared + sum(tasks))] for tasks in specific])

    def split(self) -> LevelParts:
        """The parameters scenario by scenario; the gates' tasks in order within each."""
        return LevelParts(
            self.specific_experts.split([sum(tasks) for tasks in self.specific]),
            self.task_gates.split(),
            None if self.shared_gates is None else self.shared_gates.split(),
        )

    def forward(self, streams: Tensor, scenario: int, parts: LevelParts) -> Tensor:
        counts, layers = self.specific[scenario], parts.specific_experts[scenario]
        stream = streams.unbind()
        owner = torch.repeat_interleave(
            torch.arange(len(counts), device=streams.device),
            torch.tensor(counts, device=streams.device),
            output_size=sum(counts),
        )
        answer_EnH = torch.cat(
            [self.shared_experts(stream[-1]), self.specific_experts(streams.index_select(0, owner), layers)]
        )
        first = scenario * len(counts)
        weights = [
            self.task_gates(stream[j], first + j, parts.task_gates[first + j]) for j in range(len(counts))
        ]
        if self.shared_gates is not None and parts.shared_gates is not None:
            weights.append(self.shared_gates(stream[-1], scenario, parts.shared_gates[scenario]))
        weight_nGE = torch.cat(weights, dim=1)
        return torch.bmm(weight_nGE, answer_EnH.transpose(0, 1)).transpose(0, 1)


class PLE(Block):
    """Stacked levels and towers.

    Each (scenario, task) pair is one of the paper's tasks, but a row runs through the shared experts and those of
    its own scenario's tasks alone. The shared gate of a level therefore weighs the shared experts and those of the
    row's scenario, not those of all pairs, and is the scenario's own. With one scenario (`joint: per_scenario`) it is
    the paper's. The cost of a row does not grow with the number of scenarios.

    Args:
        in_dim: Width of the features.
        num_scenarios: Scenarios M.
        num_tasks: Tasks N.
        levels: Levels, 1 at least (one level is CGC).
        shared_experts: Shared experts of a level.
        specific_experts: Specific experts of each scenario and task in a level.
        expert_dims: Widths of an expert's layers.
        tower_dims: Hidden widths of a tower.
        expert_dropout: Rate of dropout in the experts.
        tower_dropout: Rate of dropout in the towers.

    Shape:
        x_BD: ``(B, D)``  ->  ``(B, N)`` logits
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int,
        levels: int,
        shared_experts: int,
        specific_experts: Sequence[Sequence[int]],
        expert_dims: Sequence[int],
        tower_dims: Sequence[int],
        expert_dropout: float,
        tower_dropout: float,
    ) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        widths = [in_dim, *[expert_dims[-1]] * (levels - 1)]
        self.levels = nn.ModuleList(
            ControlLevel(
                width, shared_experts, specific_experts, expert_dims, expert_dropout, last=level == levels - 1
            )
            for level, width in enumerate(widths)
        )
        self.towers = TowerGroup(num_scenarios, num_tasks, expert_dims[-1], tower_dims, tower_dropout)

    def forward(self, x_BD: Tensor, batch: Batch) -> Tensor:
        towers = self.towers.split()
        rows = pieces_of(x_BD, batch.scenario_counts)
        parts = [level.split() for level in self.levels]  # type: ignore[operator]
        logits = []
        for scenario, _, _ in segments_of(batch.scenario_counts):
            streams = rows[scenario].expand(self.num_tasks + 1, -1, -1)
            for level, part in zip(self.levels, parts, strict=True):
                streams = level(streams, scenario, part)
            logits.append(self.towers(streams, towers[scenario]))
        return torch.cat(logits)


def _counts(settings: PLESettings, layout: BatchLayout, _: FusedEmbedding) -> dict[str, Any]:
    faults: list[str] = []
    shared = one_count("model.shared_experts", settings.shared_experts, faults)
    specific = specific_of(
        "model.specific_experts", settings.specific_experts, layout.scenario_names, layout.task_names, faults
    )
    if faults:
        raise ConfigError(faults)
    return {"shared_experts": shared, "specific_experts": specific}


MODEL = ModelKind(
    PLESettings,
    of_network(PLE, _counts),
    exempt={"counts_per_scenario": "its shared experts serve all scenarios"},
)
