"""PEPNet: gates that scale embeddings by the scenario, and layers by the row.

Source: PEPNet: Parameter and Embedding Personalized Network (KDD 2023). Gate NU:
``d = 2 sigmoid(W' relu(W x + b) + b')``. EPNet: ``O = d(Emb(s) | sg(E)) * E``. PPNet: each hidden layer of each
task's network is scaled by its part of ``d_task(prior | sg(O))``. The prior is what tells users and items apart (the
paper: ids of user, item and author). Gradients stop (``sg``) where gates read features in general, and pass where they
read a prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hinet_model.data.batch import Batch, BatchLayout
from hinet_model.models.embedded import of_network
from hinet_model.models.features import columns_of
from hinet_model.models.model import ModelKind
from hinet_model.models.settings import Count, ModelSettings
from hinet_model.nn import stop_gradient as stops
from hinet_model.nn.block import Block
from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.nn.mlp import StackedMLP
from hinet_model.nn.tower_group import TowerGroup


class PEPNetSettings(ModelSettings):
    """Keys of PEPNet."""

    name: Literal["pepnet"] = "pepnet"
    scenario_embedding_dim: Count = 64
    """Width of the indicator's embedding, which all gates read."""
    gate_dim: Count = 32
    """Hidden width of the gates."""
    prior_features: list[str] = Field(default=[])
    """Features of the contract, ids of user and item say, that the gates of layers read as their prior."""


class PEPNet(Block):
    """Gated features, a gated network per task, and a tower per scenario and task.

    The gates of layers read the indicator beside the prior, and alone where no prior is named. The networks serve
    all scenarios, as the paper's do; the towers on top, which it does not have, are not gated.

    Args:
        in_dim: Width of the features.
        num_scenarios: Scenarios M.
        num_tasks: Tasks N.
        expert_dims: Widths of a task's network.
        tower_dims: Hidden widths of a tower.
        scenario_embedding_dim: Width of the indicator's embedding.
        gate_dim: Hidden width of the gates.
        prior_features: Places of the prior among the features.
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
        scenario_embedding_dim: int,
        gate_dim: int,
        prior_features: Sequence[int],
        expert_dropout: float,
        tower_dropout: float,
    ) -> None:
        super().__init__()
        gate_in = scenario_embedding_dim + in_dim
        widths = [in_dim, *expert_dims]
        self.dims = list(expert_dims)
        self.prior_columns: Tensor
        self.register_buffer(
            "prior_columns", torch.tensor(prior_features, dtype=torch.int64), persistent=False
        )
        self.indicator = nn.Parameter(torch.empty(num_scenarios, scenario_embedding_dim))
        self.embedding_gate = StackedMLP(1, gate_in, [gate_dim, in_dim], 0.0, relu_last=False)
        self.layer_gates = StackedMLP(
            num_tasks, gate_in + len(prior_features), [gate_dim, sum(expert_dims)], 0.0, relu_last=False
        )
        self.layers = nn.ModuleList(
            StackedMLP(num_tasks, wide, [narrow], expert_dropout) for wide, narrow in pairwise(widths)
        )
        self.towers = TowerGroup(num_scenarios, num_tasks, expert_dims[-1], tower_dims, tower_dropout)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all parameters anew."""
        with torch.no_grad():
            self.indicator.normal_(generator=generator)
        self.embedding_gate.reset_parameters(generator)
        self.layer_gates.reset_parameters(generator)
        for layer in self.layers:
            assert isinstance(layer, StackedMLP)
            layer.reset_parameters(generator)
        self.towers.reset_parameters(generator)

    def forward(self, x_BD: Tensor, batch: Batch) -> Tensor:
        indicator_BD = self.indicator.index_select(0, batch.scenario_index)
        scale_1BD = self.embedding_gate(torch.cat([indicator_BD, stops.stop_gradient(x_BD)], dim=1))
        scaled_BD = 2 * torch.sigmoid(scale_1BD.squeeze(0)) * x_BD
        prior_BD = torch.cat([indicator_BD, x_BD.index_select(1, self.prior_columns)], dim=1)
        score_NBL = self.layer_gates(torch.cat([prior_BD, stops.stop_gradient(scaled_BD)], dim=1))
        scales = torch.split(2 * torch.sigmoid(score_NBL), self.dims, dim=-1)
        hidden = scaled_BD
        for layer, scale_NBH in zip(self.layers, scales, strict=True):
            hidden = scale_NBH * layer(hidden)
        return self.towers.route(hidden, batch.scenario_counts)


def _columns(settings: PEPNetSettings, layout: BatchLayout, embedding: FusedEmbedding) -> dict[str, Any]:
    return {"prior_features": columns_of("model.prior_features", settings.prior_features, layout, embedding)}


MODEL = ModelKind(
    PEPNetSettings,
    of_network(PEPNet, _columns),
    exempt={
        "gates": "its gates scale, they do not choose",
        "finite_differences": "gates pass no gradient on to the features they read",
    },
)
