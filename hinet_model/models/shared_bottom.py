"""Shared Bottom: one perceptron that everybody shares, and a tower per scenario and task.

Source: Multitask Learning (Caruana, Machine Learning 1997); ``y_ij = tower_ij(bottom(x))``, equation 1 of the MMoE
paper (KDD 2018) with each (scenario, task) pair as one of its tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from hinet_model.data.batch import Batch
from hinet_model.models.embedded import of_network
from hinet_model.models.model import ModelKind
from hinet_model.models.settings import ModelSettings
from hinet_model.nn.block import Block
from hinet_model.nn.mlp import StackedMLP
from hinet_model.nn.tower_group import TowerGroup


class SharedBottomSettings(ModelSettings):
    """Keys of SharedBottom."""

    name: Literal["shared_bottom"] = "shared_bottom"


class SharedBottom(Block):
    """Bottom and towers.

    Args:
        in_dim: Width of the features.
        num_scenarios: Scenarios M.
        num_tasks: Tasks N.
        expert_dims: Widths of the bottom's layers.
        tower_dims: Hidden widths of a tower.
        expert_dropout: Rate of dropout in the bottom.
        tower_dropout: Rate of dropout in the towers.

    Shape:
        x_BD: ``(B, D)``  ->  ``(B, N)`` logits
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int,
        expert_dims: Sequence[int],
        tower_dims: Sequence[int],
        expert_dropout: float,
        tower_dropout: float,
    ) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.bottom = StackedMLP(1, in_dim, expert_dims, expert_dropout)
        self.towers = TowerGroup(num_scenarios, num_tasks, expert_dims[-1], tower_dims, tower_dropout)

    def forward(self, x_BD: Tensor, batch: Batch) -> Tensor:
        extract_1BH = self.bottom(x_BD)
        return self.towers.route(extract_1BH.expand(self.num_tasks, -1, -1), batch.scenario_counts)


MODEL = ModelKind(
    SharedBottomSettings,
    of_network(SharedBottom),
    exempt={"gates": "no experts to choose among"},
)
