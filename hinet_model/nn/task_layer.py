"""The task layer: each scenario's shared and task-specific experts, gates and towers, on its own rows.

Shape letters in this file:
    n  rows of one scenario     E  experts of one scenario: shared, then each task's
    D  width of the input       N  tasks        H  width of an answer
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hinet_model.nn.block import Block
from hinet_model.nn.gate import Members, SoftmaxGates
from hinet_model.nn.mlp import StackedMLP
from hinet_model.nn.routed_experts import ExpertGroups, can_route, scenario_pieces
from hinet_model.nn.routing import pieces_of, segments_of
from hinet_model.nn.tower_group import TowerGroup


class TaskLayer(Block):
    """Customised gate control and towers of every scenario; a row meets its own scenario's alone.

    ``T_i^j = gate_i^j(C_i) . [E_shared^i(C_i) || E_specific^{i,j}(C_i)]`` and a tower on each ``T_i^j``.
    Shared experts belong to the scenario, specific experts, gates and towers to the (scenario, task) pair.
    All experts of a scenario are one batched product per layer, the gates of its tasks one product. A
    scenario without rows in the batch costs nothing.

    Args:
        in_dim: Width ``D`` of ``C_i``.
        shared: Shared experts of each scenario.
        specific: Specific experts of each scenario and task; ``specific[i][j]``.
        dims: Widths of an expert's layers.
        tower_dims: Hidden widths of a tower.
        dropout: Rate of dropout after each layer of the experts.
        tower_dropout: Rate of dropout after each hidden layer of the towers.
        gates: False averages a task's experts.

    Shape:
        c_BD: ``(B, D)``, rows sorted by scenario  ->  ``(B, N)`` logits

    Source: HiNet (ICDE 2023), task extraction by customised gate control (PLE, RecSys 2020).
    """

    def __init__(
        self,
        in_dim: int,
        shared: Sequence[int],
        specific: Sequence[Sequence[int]],
        dims: Sequence[int],
        tower_dims: Sequence[int],
        dropout: float,
        tower_dropout: float,
        gates: bool,
    ) -> None:
        super().__init__()
        num_tasks = len(specific[0])
        self.counts = [own + sum(tasks) for own, tasks in zip(shared, specific, strict=True)]
        self.experts = StackedMLP(sum(self.counts), in_dim, dims, dropout)
        banks = [_members(own, tasks) for own, tasks in zip(shared, specific, strict=True)]
        self.gates = SoftmaxGates(in_dim, banks, enabled=gates)
        self.groups = ExpertGroups.of(banks)
        self.towers = TowerGroup(len(shared), num_tasks, dims[-1], tower_dims, tower_dropout)

    def forward(self, c_BD: Tensor, scenario_counts: Sequence[int]) -> Tensor:
        """The logits of every row, by its own scenario's layers.

        Args:
            c_BD: What the scenario layer made of the rows, sorted by scenario.
            scenario_counts: Rows of each scenario.
        """
        if can_route(c_BD):
            scenarios = scenario_pieces(scenario_counts)
            extract_B1NH = self.experts.route(c_BD, self.groups, scenarios, 1, self.gates.weight)
            return self.towers.of_rows(extract_B1NH.squeeze(1), scenario_counts)
        experts, gates, towers = self.experts.split(self.counts), self.gates.split(), self.towers.split()
        pieces = pieces_of(c_BD, scenario_counts)
        logits: list[Tensor] = []
        for scenario, _, _ in segments_of(scenario_counts):
            c_nD = pieces[scenario]
            answer_EnH = self.experts(c_nD, experts[scenario])
            weight_nNE = self.gates(c_nD, scenario, gates[scenario])
            extract_nNH = torch.bmm(weight_nNE, answer_EnH.transpose(0, 1))
            logits.append(self.towers(extract_nNH.transpose(0, 1), towers[scenario]))
        return logits[0] if len(logits) == 1 else torch.cat(logits)


def _members(shared: int, specific: Sequence[int]) -> Members:
    """Which of a scenario's experts (shared first, then task by task) each task's gate chooses among."""
    owner = [-1] * shared + [task for task, count in enumerate(specific) for _ in range(count)]
    return [[task in (-1, gate) for task in owner] for gate in range(len(specific))]
