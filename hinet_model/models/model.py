"""What the loop, the scorer and the conformance suite rely on in any model, and what its file declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hinet_model.data.batch import Batch, BatchLayout
from hinet_model.models.settings import ModelSettings
from hinet_model.nn.block import Block
from hinet_model.nn.embedding import FusedEmbedding


class ScenarioModel(Block):
    """A model that scores every task for each row's own scenario."""

    embedding: FusedEmbedding
    """The fused table; its weight is trained by a table optimiser, apart from all other parameters."""

    def forward(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        """Score a batch.

        Args:
            batch: Rows sorted by scenario.
            rows: Embedding rows ``(U, D)`` of ``batch.unique_ids``; looked up if not given.

        Returns:
            Logits ``(B, N)``.

        Raises:
            ValueError: The batch is not sorted for this model's scenarios.
        """
        raise NotImplementedError

    def dense_parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter but the embedding table, in a fixed order."""
        return (parameter for parameter in self.parameters() if parameter is not self.embedding.weight)

    def scenario_attention(self) -> Tensor | None:
        """The attention table ``(M, M)``; None where the model has none."""
        return None


def table_name(model: ScenarioModel) -> str:
    """Name of the embedding table among the model's parameters."""
    table = model.embedding.weight
    return next(name for name, parameter in model.named_parameters() if parameter is table)


@dataclass(frozen=True)
class ModelKind:
    """A model as its file declares it, in a constant named ``MODEL``.

    Args:
        settings: Its keys, and their defaults; ``name`` is that of the file.
        build: Makes the model of such settings, its initial weights not yet drawn, for a layout's scenarios and
            tasks, on the features of an embedding; for most models `hinet_model.models.embedded.of_network`. Counts
            that do not fit are a `foundation.settings.ConfigError`.
        exempt: Properties of the conformance suite that it rightly does not have, each with the reason. The
            suite tests that the exemption is needed.
    """

    settings: type[ModelSettings]
    build: Callable[[Any, BatchLayout, FusedEmbedding], ScenarioModel]
    exempt: Mapping[str, str] = field(default_factory=dict)
