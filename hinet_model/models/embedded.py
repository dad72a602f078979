"""The part that all models but HiNet have in common: features in front of a network.

Shape letters in this file:
    B  rows in the batch   D  width of the features   N  tasks
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from hinet_model.data.batch import Batch
from hinet_model.nn.dropout import dropout_
from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.nn.normalisation import RowNorm, ScenarioNorm
from hinet_model.nn.routing import check_counts


class Network(Protocol):
    """A `torch.nn.Module` from features to logits: what makes one model differ from another."""

    def __call__(self, x_BD: Tensor, batch: Batch) -> Tensor:
        """Logits ``(B, N)`` of rows that are sorted by scenario."""
        ...

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all parameters anew from ``generator`` alone."""
        ...


class EmbeddedModel(nn.Module):
    """A network on the features of a fused embedding.

    Args:
        embedding: The features of a batch.
        network: What makes logits of them.
        num_scenarios: Scenarios that a batch must have counts of.
        input_dropout: Rate of dropout on the features.
        norm: Normalises the features, if given.

    Shape:
        batch of B rows  ->  ``(B, N)`` logits, of each row's own scenario
    """

    def __init__(
        self,
        embedding: FusedEmbedding,
        network: Network,
        num_scenarios: int,
        input_dropout: float = 0.0,
        norm: RowNorm | ScenarioNorm | None = None,
    ) -> None:
        super().__init__()
        self.num_scenarios = num_scenarios
        self.input_dropout = input_dropout
        self.embedding = embedding
        self.norm = norm
        self.network = network

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all parameters anew from ``generator`` alone."""
        self.embedding.reset_parameters(generator)
        if self.norm is not None:
            self.norm.reset_parameters(generator)
        self.network.reset_parameters(generator)

    def dense_parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter but the embedding table, in a fixed order."""
        return (parameter for parameter in self.parameters() if parameter is not self.embedding.weight)

    def scenario_attention(self) -> Tensor | None:
        """None: only HiNet has one."""
        return None

    def forward(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        """Score a batch.

        Args:
            batch: Rows sorted by scenario.
            rows: Embedding rows of ``batch.unique_ids``; looked up if not given.

        Raises:
            ValueError: The batch is not sorted for this model's scenarios.
        """
        check_counts(batch.scenario_counts, self.num_scenarios, batch.num_rows)
        x_BD = self.embedding(batch, rows)
        dtype = x_BD.dtype
        if self.norm is not None:
            x_BD = self.norm(x_BD, batch)
        logits = self.network(dropout_(x_BD, self.input_dropout, self.training), batch)
        return logits.to(dtype)
