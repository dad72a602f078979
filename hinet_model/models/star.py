"""STAR: a network of all scenarios in the centre, one per scenario around it, multiplied weight by weight.

Source: One Model to Serve All: Star Topology Adaptive Recommender for Multi-Domain CTR Prediction (CIKM 2021).
Partitioned normalisation (equations 3 and 4, see `ScenarioNorm`), star topology of every layer, ``W_p* = W_p . W``
and ``b_p* = b_p + b`` (equations 5 and 6), and an auxiliary network that reads the scenario's indicator too and
whose logit is added. The layers before the towers serve all tasks; towers, of star topology too, are per task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from hinet_model.data.batch import Batch
from hinet_model.models.embedded import of_network
from hinet_model.models.model import ModelKind
from hinet_model.models.settings import Count, ModelSettings
from hinet_model.nn.block import Block
from hinet_model.nn.mlp import Layers, StackedMLP
from hinet_model.nn.routing import pieces_of, segments_of
from hinet_model.nn.tower_group import TowerGroup

_SPREAD = 0.1
"""How far the scenarios' weights may start from 1, with which the product is the centre's weight."""


class StarSettings(ModelSettings):
    """Keys of Star."""

    name: Literal["star"] = "star"
    normalisation: Literal["scenario"] = "scenario"
    """By running statistics and with scales of the row's scenario: partitioned normalisation is part of STAR."""
    scenario_embedding_dim: Count = 64
    """Width of the indicator's embedding, which the auxiliary network reads."""


class Star(Block):
    """Star-shaped layers and towers, and the auxiliary network.

    The paper has one task: here the auxiliary network's hidden layer serves all tasks, and each has its output. It
    reads the features as the layers do, after partitioned normalisation, and knows the scenario by the indicator.

    Args:
        in_dim: Width of the features.
        num_scenarios: Scenarios M.
        num_tasks: Tasks N.
        expert_dims: Widths of the layers before the towers.
        tower_dims: Hidden widths of a tower.
        scenario_embedding_dim: Width of the indicator's embedding.
        expert_dropout: Rate of dropout before the towers.
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
        scenario_embedding_dim: int,
        expert_dropout: float,
        tower_dropout: float,
    ) -> None:
        super().__init__()
        self.num_scenarios, self.num_tasks = num_scenarios, num_tasks
        self.centre = StackedMLP(1, in_dim, expert_dims, expert_dropout)
        self.around = StackedMLP(num_scenarios, in_dim, expert_dims, expert_dropout)
        self.tower_centre = StackedMLP(
            num_tasks, expert_dims[-1], [*tower_dims, 1], tower_dropout, relu_last=False
        )
        self.towers = TowerGroup(num_scenarios, num_tasks, expert_dims[-1], tower_dims, tower_dropout)
        self.indicator = nn.Parameter(torch.empty(num_scenarios, scenario_embedding_dim))
        self.auxiliary = StackedMLP(1, in_dim + scenario_embedding_dim, [expert_dims[-1]], expert_dropout)
        self.auxiliary_out = StackedMLP(num_tasks, expert_dims[-1], [1], 0.0, relu_last=False)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all parameters anew; the scenarios' weights near 1."""
        for part in (self.centre, self.around, self.tower_centre, self.towers):
            part.reset_parameters(generator)
        with torch.no_grad():
            for weight in (*self.around.weights, *self.towers.towers.weights):
                weight.uniform_(1 - _SPREAD, 1 + _SPREAD, generator=generator)
            self.indicator.normal_(generator=generator)
        self.auxiliary.reset_parameters(generator)
        self.auxiliary_out.reset_parameters(generator)

    def forward(self, x_BD: Tensor, batch: Batch) -> Tensor:
        around, towers = self.around.split([1] * self.num_scenarios), self.towers.split()
        rows = pieces_of(x_BD, batch.scenario_counts)
        logits = []
        for scenario, _, _ in segments_of(batch.scenario_counts):
            hidden_1nH = self.centre(rows[scenario], _star(around[scenario], self.centre.layers()))
            layers = _star(towers[scenario], self.tower_centre.layers())
            logits.append(self.towers(hidden_1nH.expand(self.num_tasks, -1, -1), layers))
        indicator_BD = self.indicator.index_select(0, batch.scenario_index)
        auxiliary_1BH = self.auxiliary(torch.cat([x_BD, indicator_BD], dim=1))
        auxiliary_NB1 = self.auxiliary_out(auxiliary_1BH.squeeze(0))
        auxiliary_BN: Tensor = auxiliary_NB1.squeeze(-1).t()
        return torch.cat(logits) + auxiliary_BN


def _star(around: Layers, centre: Layers) -> Layers:
    """A scenario's own layers: weights multiplied with the centre's, biases added to them."""
    return [
        (weight * shared, bias + base) for (weight, bias), (shared, base) in zip(around, centre, strict=True)
    ]


MODEL = ModelKind(
    StarSettings,
    of_network(Star),
    exempt={
        "gates": "no experts to choose among",
        "normalisation": "partitioned normalisation is part of it",
    },
)
