"""M3oE: shared, scenario and task experts side by side, and learned shares of each.

Source: M3oE: Multi-Domain Multi-Task Mixture-of-Experts Recommendation Framework (SIGIR 2024). Features pass a
star-shaped layer and a skip connection; for scenario ``i`` and task ``j`` the tower then reads
``sum_k g_ij(h)_k F_k(h) + e_D D_i(h) + e_T T_j(h)``, with
``D_i = b_D d_i(h) + (1 - b_D) mean of the other d_m(h)`` and ``T_j`` likewise. The four shares ``e`` and ``b`` are
sigmoids of learned numbers; where there are no others ``b`` is 1 and not learned.
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
from hinet_model.nn.gate import SoftmaxGates
from hinet_model.nn.mlp import StackedMLP
from hinet_model.nn.routing import pieces_of, segments_of
from hinet_model.nn.tower_group import TowerGroup


class M3oESettings(ModelSettings):
    """Keys of M3oE."""

    name: Literal["m3oe"] = "m3oe"
    experts: Count = 4
    """Experts that everybody shares."""


class M3oE(Block):
    """Three groups of experts and their fusion.

    Not as in the authors' code: the star-shaped layer is followed by ReLU itself, not by one more linear layer (with
    nothing between them the two are one map); gates have no bias, and pass their gradient on to ``h``; layers are
    not normalised one by one (`normalisation` does so to the features). The shares are learned with all other
    weights and from the same rows; the paper's search takes turns with the weights.

    Args:
        in_dim: Width of the features.
        num_scenarios: Scenarios M.
        num_tasks: Tasks N.
        experts: Shared experts K.
        expert_dims: Widths: of the star-shaped layer, then of an expert's layers (of the first again if it is the
            only one).
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
        self.num_scenarios, self.num_tasks = num_scenarios, num_tasks
        width, widths = expert_dims[0], list(expert_dims[1:] or expert_dims)
        self.centre = StackedMLP(1, in_dim, [width], 0.0, relu_last=False)
        self.around = StackedMLP(num_scenarios, in_dim, [width], 0.0, relu_last=False)
        self.skip = StackedMLP(1, in_dim, [width], 0.0)
        self.counts = [experts, num_scenarios, num_tasks]
        self.experts = StackedMLP(sum(self.counts), width, widths, expert_dropout)
        self.gates = SoftmaxGates(width, [[[True] * experts] * num_tasks] * num_scenarios)
        self.task_share = nn.Parameter(torch.empty(1))
        self.scenario_share = nn.Parameter(torch.empty(1))
        self.own_scenario = nn.Parameter(torch.empty(1)) if num_scenarios > 1 else None
        self.own_task = nn.Parameter(torch.empty(1)) if num_tasks > 1 else None
        self.towers = TowerGroup(num_scenarios, num_tasks, widths[-1], tower_dims, tower_dropout)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all parameters anew; the scenarios' weights near 1, shares near a half."""
        super().reset_parameters(generator)
        with torch.no_grad():
            for weight in self.around.weights:
                weight.uniform_(0.9, 1.1, generator=generator)
            for share in (self.task_share, self.scenario_share, self.own_scenario, self.own_task):
                if share is not None:
                    share.uniform_(-0.1, 0.1, generator=generator)

    def forward(self, x_BD: Tensor, batch: Batch) -> Tensor:
        h_BD = self._star(x_BD, batch) + self.skip(x_BD).squeeze(0)
        answer_BEH = self.experts(h_BD).transpose(0, 1)
        fusion_MNE = self._fusion()
        gates, towers = self.gates.split(), self.towers.split()
        rows = pieces_of(h_BD, batch.scenario_counts)
        answers = pieces_of(answer_BEH, batch.scenario_counts)
        logits = []
        for scenario, _, _ in segments_of(batch.scenario_counts):
            gate_nNK = self.gates(rows[scenario], scenario, gates[scenario])
            fixed_nNE = fusion_MNE[scenario].to(gate_nNK.dtype).expand(len(gate_nNK), -1, -1)
            extract_nNH = torch.bmm(torch.cat([gate_nNK, fixed_nNE], dim=2), answers[scenario])
            logits.append(self.towers(extract_nNH.transpose(0, 1), towers[scenario]))
        return torch.cat(logits)

    def _star(self, x_BD: Tensor, batch: Batch) -> Tensor:
        around = self.around.split([1] * self.num_scenarios)
        ((shared, base),) = self.centre.layers()
        rows, parts = pieces_of(x_BD, batch.scenario_counts), []
        for scenario, _, _ in segments_of(batch.scenario_counts):
            ((weight, bias),) = around[scenario]
            parts.append(self.centre(rows[scenario], [(weight * shared, bias + base)]).squeeze(0))
        return torch.cat(parts).relu()

    def _fusion(self) -> Tensor:
        """Weights of the scenario and task experts in each scenario and task's sum. ``(M, N, M + N)``"""
        like = self.task_share
        scenario_MM = torch.sigmoid(self.scenario_share) * _shares(
            self.num_scenarios, self.own_scenario, like
        )
        task_NN = torch.sigmoid(self.task_share) * _shares(self.num_tasks, self.own_task, like)
        return torch.cat(
            [
                scenario_MM.unsqueeze(1).expand(-1, self.num_tasks, -1),
                task_NN.unsqueeze(0).expand(self.num_scenarios, -1, -1),
            ],
            dim=2,
        )


def _shares(count: int, own: Tensor | None, like: Tensor) -> Tensor:
    """``(count, count)``: the own expert's share on the diagonal, the rest spread evenly over the others."""
    eye = torch.eye(count, dtype=like.dtype, device=like.device)
    if own is None:
        return eye
    share = torch.sigmoid(own)
    return share * eye + (1 - share) / (count - 1) * (1 - eye)


MODEL = ModelKind(M3oESettings, of_network(M3oE))
