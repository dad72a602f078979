"""AITM: tasks in a row, each handing on to the next what it found out.

Source: Modeling the Sequential Dependence among Audience Multi-step Conversions with Multi-task Learning in
Targeted Display Advertising (KDD 2021), adaptive information transfer (AIT): ``z_1 = q_1``,
``z_t = AIT(p_(t-1), q_t)`` with ``p_(t-1) = g_(t-1)(z_(t-1))`` and ``AIT = sum_u w_u h1(u)``,
``w = softmax(<h2(u), h3(u)> / sqrt(k))`` over ``u`` in ``{p, q}``. Its other half, the behavioural expectation
calibrator, is `loss.calibrator_weight`, which is 0 unless it is set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hinet_model.data.batch import Batch
from hinet_model.models.embedded import of_network
from hinet_model.models.model import ModelKind
from hinet_model.models.settings import ModelSettings
from hinet_model.nn.block import Block
from hinet_model.nn.mlp import Layers, StackedMLP
from hinet_model.nn.routing import pieces_of, segments_of
from hinet_model.nn.tower_group import TowerGroup


class AITMSettings(ModelSettings):
    """Keys of AITM."""

    name: Literal["aitm"] = "aitm"


class AITM(Block):
    """A network per task, and the transfers between them.

    Tasks are taken in the contract's order, which should be that of the funnel, the most frequent first. Networks
    ``q_t`` serve all scenarios; transfers ``g``, attention and towers are the scenario's own. Each step of the chain
    has its own ``h1``, ``h2``, ``h3``, with biases, where the authors' code has one set without biases for all steps;
    and no layer is normalised over the batch, so that a row's score does not depend on its batch.

    Args:
        in_dim: Width of the features.
        num_scenarios: Scenarios M.
        num_tasks: Tasks N.
        expert_dims: Widths of a task's network.
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
        self.num_scenarios, self.num_tasks = num_scenarios, num_tasks
        width = expert_dims[-1]
        self.networks = StackedMLP(num_tasks, in_dim, expert_dims, expert_dropout)
        self.transfers: StackedMLP | None = None
        self.projections: StackedMLP | None = None
        if num_tasks > 1:
            self.transfers = StackedMLP(num_scenarios * (num_tasks - 1), width, [width], 0.0)
            self.projections = StackedMLP(
                num_scenarios * (num_tasks - 1), width, [3 * width], 0.0, relu_last=False
            )
        self.towers = TowerGroup(num_scenarios, num_tasks, width, tower_dims, tower_dropout)

    def forward(self, x_BD: Tensor, batch: Batch) -> Tensor:
        own_NBH = self.networks(x_BD)
        if self.transfers is None or self.projections is None:
            return self.towers.route(own_NBH, batch.scenario_counts)
        steps = [1] * (self.num_scenarios * (self.num_tasks - 1))
        transfers, projections = self.transfers.split(steps), self.projections.split(steps)
        rows = pieces_of(own_NBH, batch.scenario_counts, dim=1)
        extracts = []
        for scenario, _, _ in segments_of(batch.scenario_counts):
            first = scenario * (self.num_tasks - 1)
            own = pieces_of(rows[scenario], [1] * self.num_tasks)
            extract_1nH = own[0]
            chain = [extract_1nH]
            for task in range(1, self.num_tasks):
                place = first + task - 1
                handed_1nH = self.transfers(extract_1nH, transfers[place])
                pair_2nH = torch.cat([handed_1nH, own[task]])
                extract_1nH = self._attend(pair_2nH, projections[place])
                chain.append(extract_1nH)
            extracts.append(torch.cat(chain))
        return self.towers.route(torch.cat(extracts, dim=1), batch.scenario_counts)

    def _attend(self, pair_2nH: Tensor, layers: Layers) -> Tensor:
        """Weigh what was handed on against the task's own."""
        assert self.projections is not None
        two, rows, width = pair_2nH.shape
        projected = self.projections(pair_2nH.reshape(1, two * rows, width), layers)
        value, key, query = projected.view(two, rows, 3, width).unbind(dim=2)
        score_2n = (key * query).sum(dim=-1) / math.sqrt(width)
        attended: Tensor = (score_2n.softmax(dim=0).unsqueeze(-1) * value).sum(dim=0, keepdim=True)
        return attended


MODEL = ModelKind(
    AITMSettings,
    of_network(AITM),
    exempt={"gates": "attention over two inputs takes the place of gates"},
)
