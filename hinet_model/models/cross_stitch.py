"""Cross-stitch: a network per task, whose layers are mixed with those of the other tasks' networks.

Source: Cross-Stitch Networks for Multi-Task Learning (CVPR 2016), equation 1: ``~x_A = a_AA x_A + a_AB x_B``. The
networks serve all scenarios; the mixing weights of every layer, and the towers, are the scenario's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from hinet_model.data.batch import Batch
from hinet_model.models.embedded import of_network
from hinet_model.models.model import ModelKind
from hinet_model.models.settings import ModelSettings
from hinet_model.nn.block import Block
from hinet_model.nn.mlp import StackedMLP
from hinet_model.nn.tower_group import TowerGroup

_OWN = 0.9
"""What a task's network starts with of its own layer; the rest is spread over the others'."""
_SPREAD = 0.01


class CrossStitchSettings(ModelSettings):
    """Keys of CrossStitch."""

    name: Literal["cross_stitch"] = "cross_stitch"


class CrossStitch(Block):
    """Networks per task, stitched layer by layer.

    A layer has one mixing weight for every two tasks, as its equation reads; for convolutions the paper learns one
    per channel. The stitches learn at the rate of all other weights, where the paper raises theirs.

    Args:
        in_dim: Width of the features.
        num_scenarios: Scenarios M.
        num_tasks: Tasks N.
        expert_dims: Widths of a network's layers.
        tower_dims: Hidden widths of a tower.
        expert_dropout: Rate of dropout in the networks.
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
        widths = [in_dim, *expert_dims]
        self.layers = nn.ModuleList(
            StackedMLP(num_tasks, wide, [narrow], expert_dropout) for wide, narrow in pairwise(widths)
        )
        self.stitches = nn.Parameter(torch.empty(num_scenarios, len(expert_dims), num_tasks, num_tasks))
        self.towers = TowerGroup(num_scenarios, num_tasks, expert_dims[-1], tower_dims, tower_dropout)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all parameters anew; stitches near the identity."""
        for layer in self.layers:
            assert isinstance(layer, StackedMLP)
            layer.reset_parameters(generator)
        with torch.no_grad():
            others = (1 - _OWN) / max(self.num_tasks - 1, 1)
            self.stitches.uniform_(-_SPREAD, _SPREAD, generator=generator).add_(others)
            self.stitches.diagonal(dim1=-2, dim2=-1).add_(_OWN - others)
        self.towers.reset_parameters(generator)

    def forward(self, x_BD: Tensor, batch: Batch) -> Tensor:
        hidden = x_BD
        for depth, layer in enumerate(self.layers):
            hidden_NBH = layer(hidden)
            stitch_BNN = self.stitches[:, depth].index_select(0, batch.scenario_index)
            hidden = torch.bmm(stitch_BNN, hidden_NBH.transpose(0, 1)).transpose(0, 1)
        return self.towers.route(hidden, batch.scenario_counts)


MODEL = ModelKind(
    CrossStitchSettings,
    of_network(CrossStitch),
    exempt={"gates": "stitches are weights, not gates"},
)
