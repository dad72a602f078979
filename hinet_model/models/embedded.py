"""Features in front of what tells one model from another, and the one way from settings to a network's plain values.

Shape letters in this file:
    B  rows in the batch   D  width of the features   N  tasks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from hinet_model.data.batch import Batch, BatchLayout
from hinet_model.models.features import build_norm
from hinet_model.models.model import ScenarioModel
from hinet_model.models.settings import ModelSettings, network_keys
from hinet_model.nn.block import Block
from hinet_model.nn.dropout import dropout_
from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.nn.normalisation import RowNorm, ScenarioNorm
from hinet_model.nn.routing import check_counts


class EmbeddedModel(ScenarioModel):
    """A model that reads the features of a fused embedding.

    Args:
        embedding: The features of a batch.
        num_scenarios: Scenarios that a batch must have counts of.
        input_dropout: Rate of dropout on the features.
        norm: Normalises the features, if given.

    Shape:
        batch of B rows  ->  ``(B, N)`` logits, of each row's own scenario
    """

    def __init__(
        self,
        embedding: FusedEmbedding,
        num_scenarios: int,
        input_dropout: float,
        norm: RowNorm | ScenarioNorm | None,
    ) -> None:
        super().__init__()
        self.num_scenarios = num_scenarios
        self.input_dropout = input_dropout
        self.embedding = embedding
        self.norm = norm

    def forward(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        check_counts(batch.scenario_counts, self.num_scenarios, batch.num_rows)
        x_BD = self.embedding(batch, rows)
        dtype = x_BD.dtype
        if self.norm is not None:
            x_BD = self.norm(x_BD, batch)
        return self.logits(x_BD, batch).to(dtype)

    def logits(self, x_BD: Tensor, batch: Batch) -> Tensor:
        """Logits ``(B, N)`` of features that have not yet been through `dropped`."""
        raise NotImplementedError

    def dropped(self, x_BD: Tensor) -> Tensor:
        """The features after the dropout on them."""
        return dropout_(x_BD, self.input_dropout, self.training)


class NetworkModel(EmbeddedModel):
    """A network on the features.

    Args:
        embedding: As of any embedded model, like the others that are not named here.
        network: From features and batch to logits ``(B, N)``, rows sorted by scenario.
    """

    def __init__(
        self,
        embedding: FusedEmbedding,
        network: Block,
        num_scenarios: int,
        input_dropout: float,
        norm: RowNorm | ScenarioNorm | None,
    ) -> None:
        super().__init__(embedding, num_scenarios, input_dropout, norm)
        self.network = network

    def logits(self, x_BD: Tensor, batch: Batch) -> Tensor:
        logits: Tensor = self.network(self.dropped(x_BD), batch)
        return logits


Translate = Callable[[Any, BatchLayout, FusedEmbedding], Mapping[str, Any]]


def of_network(
    network: Callable[..., Block], translate: Translate | None = None
) -> Callable[[ModelSettings, BatchLayout, FusedEmbedding], NetworkModel]:
    """How a model of a network is built.

    The network is called with ``in_dim``, ``num_scenarios``, ``num_tasks`` and all of its settings by their names, so
    that each is a parameter of its constructor: a configuration never enters it.

    Args:
        network: Makes the network.
        translate: Values by name for settings that are not plain yet, such as counts and features by name.
    """

    def build(settings: ModelSettings, layout: BatchLayout, embedding: FusedEmbedding) -> NetworkModel:
        plain = {key: getattr(settings, key) for key in network_keys(type(settings))}
        if translate is not None:
            plain |= translate(settings, layout, embedding)
        made = network(
            in_dim=embedding.out_dim,
            num_scenarios=layout.num_scenarios,
            num_tasks=layout.num_tasks,
            **plain,
        )
        norm = build_norm(settings, layout, embedding.out_dim)
        return NetworkModel(embedding, made, layout.num_scenarios, settings.input_dropout, norm)

    return build
