"""HiNet: a scenario layer that shares and tells apart, under a task layer per scenario.

Source: HiNet: Novel Multi-Scenario & Multi-Task Learning with Hierarchical Information Extraction
(ICDE 2023, arXiv 2303.06095).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hinet_model.batch import Batch
from hinet_model.nn.dropout import dropout_
from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.nn.expert_group import ScenarioExtractors
from hinet_model.nn.routing import check_counts
from hinet_model.nn.scenario_attention import ScenarioAttention
from hinet_model.nn.task_layer import TaskLayer


@dataclass(frozen=True)
class HiNetSizes:
    """Plain sizes of a HiNet; `hinet_model.models.build` makes them from a configuration.

    Args:
        sub_experts: Of the shared extractor, then of each scenario's; one more than scenarios.
        sub_expert_dims: Widths of a sub-expert's layers.
        shared_experts: Of the task layer, per scenario.
        specific_experts: Of the task layer, per scenario and task.
        expert_dims: Widths of a task-layer expert's layers.
        tower_dims: Hidden widths of a tower.
        scenario_embedding_dim: Width of ``Emb(s_i)``.
        gates: False averages experts and sub-experts.
        hierarchy: False leaves the scenario layer out.
        scenario_attention: False leaves ``A_i`` out.
        input_dropout: Rate of dropout on the features.
        dropout: Rate of dropout in the sub-experts.
        expert_dropout: Rate of dropout in the task-layer experts.
        tower_dropout: Rate of dropout in the towers.
    """

    sub_experts: tuple[int, ...]
    sub_expert_dims: tuple[int, ...]
    shared_experts: tuple[int, ...]
    specific_experts: tuple[tuple[int, ...], ...]
    expert_dims: tuple[int, ...]
    tower_dims: tuple[int, ...]
    scenario_embedding_dim: int
    gates: bool = True
    hierarchy: bool = True
    scenario_attention: bool = True
    input_dropout: float = 0.0
    dropout: float = 0.0
    expert_dropout: float = 0.0
    tower_dropout: float = 0.0


class HiNet(nn.Module):
    """HiNet for any number of scenarios and tasks.

    With one scenario there is no attention and ``C = concat[G, S]``; with two its table is fixed.

    Args:
        embedding: The features of a batch.
        sizes: Sizes and options.

    Shape:
        batch of B rows  ->  ``(B, N)`` logits, of each row's own scenario
    """

    def __init__(self, embedding: FusedEmbedding, sizes: HiNetSizes) -> None:
        super().__init__()
        self.num_scenarios = len(sizes.shared_experts)
        self.input_dropout = sizes.input_dropout
        self.embedding = embedding
        self.attention: ScenarioAttention | None = None
        self.extractors: ScenarioExtractors | None = None
        if sizes.hierarchy:
            if sizes.scenario_attention and self.num_scenarios > 1:
                self.attention = ScenarioAttention(self.num_scenarios, sizes.scenario_embedding_dim)
            self.extractors = ScenarioExtractors(
                embedding.out_dim,
                sizes.sub_experts,
                sizes.sub_expert_dims,
                sizes.dropout,
                gates=sizes.gates,
                attention=self.attention is not None,
            )
        self.task_layer = TaskLayer(
            embedding.out_dim if self.extractors is None else self.extractors.out_dim,
            sizes.shared_experts,
            sizes.specific_experts,
            sizes.expert_dims,
            sizes.tower_dims,
            sizes.expert_dropout,
            sizes.tower_dropout,
            gates=sizes.gates,
        )

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all parameters anew from ``generator`` alone."""
        for part in (self.embedding, self.attention, self.extractors, self.task_layer):
            if part is not None:
                part.reset_parameters(generator)

    def dense_parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter but the embedding table, in a fixed order."""
        return (parameter for parameter in self.parameters() if parameter is not self.embedding.weight)

    def scenario_attention(self) -> Tensor | None:
        """The attention table ``(M, M)``; None for one scenario, or where attention is switched off."""
        return None if self.attention is None else self.attention()

    def forward(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        """Score a batch.

        Args:
            batch: Rows sorted by scenario.
            rows: Embedding rows of ``batch.unique_ids``; looked up if not given.

        Raises:
            ValueError: The batch is not sorted for this model's scenarios.
        """
        check_counts(batch.scenario_counts, self.num_scenarios, batch.num_rows)
        x_BD = dropout_(self.embedding(batch, rows), self.input_dropout, self.training)
        if self.extractors is not None:
            x_BD = self.extractors(
                x_BD, batch.scenario_index, batch.scenario_counts, self.scenario_attention()
            )
        logits: Tensor = self.task_layer(x_BD, batch.scenario_counts)
        return logits.float()
