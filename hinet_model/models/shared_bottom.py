"""Shared Bottom: one perceptron that everybody shares, and a tower per scenario and task.

Source: Multitask Learning (Caruana, Machine Learning 1997); ``y_ij = tower_ij(bottom(x))``, equation 1 of the MMoE
paper (KDD 2018) with each (scenario, task) pair as one of its tasks.
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
from hinet_model.models.settings import ModelSettings
from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.nn.mlp import StackedMLP
from hinet_model.nn.tower_group import TowerGroup


class SharedBottomSettings(ModelSettings):
    """Keys of SharedBottom."""

    name: Literal["shared_bottom"] = "shared_bottom"


class SharedBottom(nn.Module):
    """Bottom and towers.

    Args:
        in_dim: Width of the features.
        num_scenarios: Scenarios M.
        num_tasks: Tasks N.
        dims: Widths of the bottom's layers.
        tower_dims: Hidden widths of a tower.
        dropout: Rate of dropout in the bottom.
        tower_dropout: Rate of dropout in the towers.

    Shape:
        x_BD: ``(B, D)``  ->  ``(B, N)`` logits
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int,
        dims: Sequence[int],
        tower_dims: Sequence[int],
        dropout: float,
        tower_dropout: float,
    ) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.bottom = StackedMLP(1, in_dim, dims, dropout)
        self.towers = TowerGroup(num_scenarios, num_tasks, dims[-1], tower_dims, tower_dropout)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all parameters anew."""
        self.bottom.reset_parameters(generator)
        self.towers.reset_parameters(generator)

    def forward(self, x_BD: Tensor, batch: Batch) -> Tensor:
        extract_1BH = self.bottom(x_BD)
        return self.towers.route(extract_1BH.expand(self.num_tasks, -1, -1), batch.scenario_counts)


def _build(settings: SharedBottomSettings, layout: BatchLayout, embedding: FusedEmbedding) -> EmbeddedModel:
    network = SharedBottom(
        embedding.out_dim,
        layout.num_scenarios,
        layout.num_tasks,
        settings.expert_dims,
        settings.tower_dims,
        settings.expert_dropout,
        settings.tower_dropout,
    )
    return embedded(settings, layout, embedding, network)


MODEL = ModelKind(
    SharedBottomSettings,
    _build,
    exempt={"gates": "no experts to choose among"},
)
