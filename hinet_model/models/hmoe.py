"""HMoE: experts mixed per scenario, and each scenario's score mixed of the scores of all scenarios' towers.

Source: Improving Multi-Scenario Learning to Rank in E-commerce by Exploiting Task Relationships in the Label Space
(CIKM 2020). Feature space: the extract of scenario ``m`` is ``f_m(x) = sum_k g_m(x)_k e_k(x)``. Label space:
``y_i = sum_m w_i(x)_m tower_m(f_m(x))``, where the scores of the other scenarios, ``m != i``, pass no gradient on
(the paper's task-constrained back-propagation): a row trains the tower and the feature gate of its own scenario alone.
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
from hinet_model.nn import stop_gradient as stops
from hinet_model.nn.block import Block
from hinet_model.nn.gate import SoftmaxGates
from hinet_model.nn.mlp import StackedMLP
from hinet_model.nn.routing import pieces_of, segments_of
from hinet_model.nn.tower_group import TowerGroup


class HMoESettings(ModelSettings):
    """Keys of HMoE."""

    name: Literal["hmoe"] = "hmoe"
    experts: Count = 4
    """Experts that everybody shares."""


class HMoE(Block):
    """Shared experts, a gate in feature space and one in label space per scenario.

    Every row runs through the towers of all scenarios (the equations ask for it): the cost of the towers grows
    with the number of scenarios. Scores are mixed before the sigmoid, so that the answer is a logit. The paper has
    one label; here both gates of a scenario serve all of its tasks (`joint: per_task` gives each task its own), and
    a task's scores are mixed with scores of the same task. A gate reads the features; it is the scenario's own, so
    that it need not read which scenario that is.

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
        self.num_scenarios, self.num_tasks = num_scenarios, num_tasks
        self.experts = StackedMLP(experts, in_dim, expert_dims, expert_dropout)
        self.gates = SoftmaxGates(in_dim, [[[True] * experts] * num_scenarios])
        self.label_gates = None
        if num_scenarios > 1:
            self.label_gates = SoftmaxGates(in_dim, [[[True] * num_scenarios]] * num_scenarios)
        self.towers = TowerGroup(num_scenarios, num_tasks, expert_dims[-1], tower_dims, tower_dropout)

    def forward(self, x_BD: Tensor, batch: Batch) -> Tensor:
        answer_BKH = self.experts(x_BD).transpose(0, 1)
        extract_MBH = torch.bmm(self.gates(x_BD), answer_BKH).transpose(0, 1)
        towers = self.towers.split()
        label_gates = None if self.label_gates is None else self.label_gates.split()
        rows = pieces_of(x_BD, batch.scenario_counts)
        extracts = pieces_of(extract_MBH, batch.scenario_counts, dim=1)
        logits = []
        for scenario, _, _ in segments_of(batch.scenario_counts):
            scores = []
            for other, extract_nH in enumerate(extracts[scenario].unbind()):
                score_nN = self.towers(extract_nH.expand(self.num_tasks, -1, -1), towers[other])
                scores.append(score_nN if other == scenario else stops.stop_gradient(score_nN))
            if self.label_gates is None or label_gates is None:
                logits.append(scores[0])
            else:
                weight_n1M = self.label_gates(rows[scenario], scenario, label_gates[scenario])
                logits.append(torch.bmm(weight_n1M, torch.stack(scores, dim=1)).squeeze(1))
        return torch.cat(logits)


MODEL = ModelKind(
    HMoESettings,
    of_network(HMoE),
    exempt={"finite_differences": "other scenarios' scores pass no gradient on"},
)
