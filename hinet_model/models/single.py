"""Single: a network of its own for every scenario and task; they share the embedding table and nothing else.

Source: the single-task baseline of the multi-task literature, ``y_ij = tower_ij(mlp_ij(x))``. With `joint:
per_scenario` the tables are apart too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hinet_model.data.batch import Batch
from hinet_model.models.embedded import of_network
from hinet_model.models.model import ModelKind
from hinet_model.models.settings import ModelSettings
from hinet_model.nn.block import Block
from hinet_model.nn.mlp import StackedMLP
from hinet_model.nn.routing import pieces_of, segments_of
from hinet_model.nn.tower_group import TowerGroup


class SingleSettings(ModelSettings):
    """Keys of Single."""

    name: Literal["single"] = "single"


class Single(Block):
    """One perceptron and tower per scenario and task.

    Args:
        in_dim: Width of the features.
        num_scenarios: Scenarios M.
        num_tasks: Tasks N.
        expert_dims: Widths of a perceptron's layers.
        tower_dims: Hidden widths of a tower.
        expert_dropout: Rate of dropout in the perceptrons.
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
        self.counts = [num_tasks] * num_scenarios
        self.perceptrons = StackedMLP(num_scenarios * num_tasks, in_dim, expert_dims, expert_dropout)
        self.towers = TowerGroup(num_scenarios, num_tasks, expert_dims[-1], tower_dims, tower_dropout)

    def forward(self, x_BD: Tensor, batch: Batch) -> Tensor:
        layers, towers = self.perceptrons.split(self.counts), self.towers.split()
        rows = pieces_of(x_BD, batch.scenario_counts)
        return torch.cat(
            [
                self.towers(self.perceptrons(rows[scenario], layers[scenario]), towers[scenario])
                for scenario, _, _ in segments_of(batch.scenario_counts)
            ]
        )


MODEL = ModelKind(
    SingleSettings,
    of_network(Single),
    exempt={"gates": "no experts to choose among"},
)
