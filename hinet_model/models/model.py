"""What the loop, the scorer and the conformance suite rely on in any model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hinet_model.batch import Batch
from hinet_model.nn.embedding import FusedEmbedding


class ScenarioModel(Protocol):
    """A `torch.nn.Module` that scores every task for each row's own scenario."""

    embedding: FusedEmbedding
    """The fused table; its weight is trained by a table optimiser, apart from all other parameters."""

    def __call__(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        """Logits ``(B, N)``; ``rows (U, D)`` stands in for the table's rows of ``batch.unique_ids``."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Switch dropout on, as `torch.nn.Module` does."""
        ...

    def eval(self) -> Any:
        """Switch dropout off, as `torch.nn.Module` does."""
        ...

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all parameters anew from ``generator`` alone."""
        ...

    def scenario_attention(self) -> Tensor | None:
        """The attention table ``(M, M)``; None where the model has none."""
        ...

    def dense_parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter but the embedding table."""
        ...
