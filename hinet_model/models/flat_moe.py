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
from torch import Tensor, nn

from hinet_model.data.batch import Batch, BatchLayout
from hinet_model.models.embedded import EmbeddedModel
from hinet_model.models.features import embedded
from hinet_model.models.model import ModelKind
from hinet_model.models.settings import Count, ModelSettings
from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.nn.gate import SoftmaxGates
from hinet_model.nn.mlp import StackedMLP
from hinet_model.nn.routing import pieces_of, segments_of
from hinet_model.nn.tower_group import TowerGroup


class FlatMoESettings(ModelSettings):
    """Keys of FlatMoE."""

    name: Literal["flat_moe"] = "flat_moe"
    experts: Count = 4
    """Experts that everybody shares."""


class FlatMoE(nn.Module):
    """Shared experts, mixed once per row for all of its tasks.

    OMoE has one gate in all; here each scenario has one, since the features need not tell the scenario.

    Args:
        in_dim: Width of the features.
        num_scenarios: Scenarios M.
        num_tasks: Tasks N.
        num_experts: Experts K.
        dims: Widths of an expert's layers.
        tower_dims: Hidden widths of a tower.
        dropout: Rate of dropout in the experts.
        tower_dropout: Rate of dropout in the towers.

    Shape:
        x_BD: ``(B, D)``  ->  ``(B, N)`` logits
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int,
        num_experts: int,
        dims: Sequence[int],
        tower_dims: Sequence[int],
        dropout: float,
        tower_dropout: float,
    ) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.experts = StackedMLP(num_experts, in_dim, dims, dropout)
        self.gates = SoftmaxGates(in_dim, [[[True] * num_experts]] * num_scenarios)
        self.towers = TowerGroup(num_scenarios, num_tasks, dims[-1], tower_dims, tower_dropout)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all parameters anew."""
        for part in (self.experts, self.gates, self.towers):
            part.reset_parameters(generator)

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


def _build(settings: FlatMoESettings, layout: BatchLayout, embedding: FusedEmbedding) -> EmbeddedModel:
    network = FlatMoE(
        embedding.out_dim,
        layout.num_scenarios,
        layout.num_tasks,
        settings.experts,
        settings.expert_dims,
        settings.tower_dims,
        settings.expert_dropout,
        settings.tower_dropout,
    )
    return embedded(settings, layout, embedding, network)


MODEL = ModelKind(FlatMoESettings, _build)
