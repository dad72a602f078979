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
from torch import Tensor, nn

from hinet_model.data.batch import Batch, BatchLayout
from hinet_model.models.embedded import EmbeddedModel
from hinet_model.models.features import embedded
from hinet_model.models.model import ModelKind
from hinet_model.models.settings import Count, ModelSettings
from hinet_model.nn import stop_gradient as stops
from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.nn.gate import SoftmaxGates
from hinet_model.nn.mlp import StackedMLP
from hinet_model.nn.routing import pieces_of, segments_of
from hinet_model.nn.tower_group import TowerGroup


class HMoESettings(ModelSettings):
    """Keys of HMoE."""

    name: Literal["hmoe"] = "hmoe"
    experts: Count = 4
    """Experts that everybody shares."""


class HMoE(nn.Module):
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
        self.num_scenarios, self.num_tasks = num_scenarios, num_tasks
        self.experts = StackedMLP(num_experts, in_dim, dims, dropout)
        self.gates = SoftmaxGates(in_dim, [[[True] * num_experts] * num_scenarios])
        self.label_gates = None
        if num_scenarios > 1:
            self.label_gates = SoftmaxGates(in_dim, [[[True] * num_scenarios]] * num_scenarios)
        self.towers = TowerGroup(num_scenarios, num_tasks, dims[-1], tower_dims, tower_dropout)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all parameters anew."""
        for part in (self.experts, self.gates, self.label_gates, self.towers):
            if part is not None:
                part.reset_parameters(generator)

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


def _build(settings: HMoESettings, layout: BatchLayout, embedding: FusedEmbedding) -> EmbeddedModel:
    network = HMoE(
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


MODEL = ModelKind(
    HMoESettings,
    _build,
    exempt={"finite_differences": "other scenarios' scores pass no gradient on"},
)
