"""MMoE: experts that everybody shares, weighed anew by a gate per scenario and task.

Source: Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts (KDD 2018),
equations 6 to 8: ``y_k = h_k(f_k(x))``, ``f_k(x) = sum_n g_k(x)_n f_n(x)``, ``g_k(x) = softmax(W_k x)``. In the
joint model each (scenario, task) pair is one of its tasks ``k``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hinet_model.data.batch import Batch
from hinet_model.models.embedded import of_network
from hinet_model.models.model import ModelKind
from hinet_model.models.settings import Count, ModelSettings
from hinet_model.nn.block import Block
from hinet_model.nn.gate import SoftmaxGates
from hinet_model.nn.mlp import StackedMLP
from hinet_model.nn.routing import pieces_of, segments_of
from hinet_model.nn.tower_group import TowerGroup


class MMoESettings(ModelSettings):
    """Keys of MMoE."""

    name: Literal["mmoe"] = "mmoe"
    experts: Count = 4
    """Experts that everybody shares."""


class MMoE(Block):
    """Shared experts; a row meets the gates and towers of its own scenario alone.

    Args:
        in_dim: Width of the features.
        num_scenarios: Scenarios M.
        num_tasks: Tasks N.
        experts: Experts K.
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
        experts: int,
        expert_dims: Sequence[int],
        tower_dims: Sequence[int],
        expert_dropout: float,
        tower_dropout: float,
    ) -> None:
        super().__init__()
        self.experts = StackedMLP(experts, in_dim, expert_dims, expert_dropout)
        self.gates = SoftmaxGates(in_dim, [[[True] * experts] * num_tasks] * num_scenarios)
        self.towers = TowerGroup(num_scenarios, num_tasks, expert_dims[-1], tower_dims, tower_dropout)

    def forward(self, x_BD: Tensor, batch: Batch) -> Tensor:
        answer_BKH = self.experts(x_BD).transpose(0, 1)
        gates, towers = self.gates.split(), self.towers.split()
        rows = pieces_of(x_BD, batch.scenario_counts)
        answers = pieces_of(answer_BKH, batch.scenario_counts)
        logits = []
        for scenario, _, _ in segments_of(batch.scenario_counts):
            weight_nNK = self.gates(rows[scenario], scenario, gates[scenario])
            extract_nNH = torch.bmm(weight_nNK, answers[scenario])
            logits.append(self.towers(extract_nNH.transpose(0, 1), towers[scenario]))
        return torch.cat(logits)


MODEL = ModelKind(MMoESettings, of_network(MMoE))
