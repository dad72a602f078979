"""Flat mixture of experts: one layer of experts, one gate per scenario, and nothing between them and the towers.

The yardstick for hierarchy: with as many parameters as HiNet (`match_parameters: hinet`), what is left of the
difference is what sharing in two stages is worth.

Source: Adaptive Mixtures of Local Experts (Neural Computation 1991), as a layer under towers: the one-gate mixture
(OMoE) of the MMoE paper (KDD 2018), equation 5: ``f(x) = sum_k g(x)_k f_k(x)``.
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


class FlatMoESettings(ModelSettings):
    """Keys of FlatMoE."""

    name: Literal["flat_moe"] = "flat_moe"
    experts: Count = 4
    """Experts that everybody shares."""


class FlatMoE(Block):
    """Shared experts, mixed once per row for all of its tasks.

    OMoE has one gate in all; here each scenario has one, since the features need not tell the scenario.

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
        self.num_tasks = num_tasks
        self.experts = StackedMLP(experts, in_dim, expert_dims, expert_dropout)
        self.gates = SoftmaxGates(in_dim, [[[True] * experts]] * num_scenarios)
        self.towers = TowerGroup(num_scenarios, num_tasks, expert_dims[-1], tower_dims, tower_dropout)

    def forward(self, x_BD: Tensor, batch: Batch) -> Tensor:
        answer_BKH = self.experts(x_BD).transpose(0, 1)
        gates, rows = self.gates.split(), pieces_of(x_BD, batch.scenario_counts)
        weight_B1K = torch.cat(
            [
                self.gates(rows[scenario], scenario, gates[scenario])
                for scenario, _, _ in segments_of(batch.scenario_counts)
            ]
        )
        extract_1BH = torch.bmm(weight_B1K, answer_BKH).transpose(0, 1)
        return self.towers.route(extract_1BH.expand(self.num_tasks, -1, -1), batch.scenario_counts)


MODEL = ModelKind(FlatMoESettings, of_network(FlatMoE))
