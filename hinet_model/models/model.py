"""What the loop, the scorer and the conformance suite rely on in any model, and what its file declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hinet_model.data.batch import Batch, BatchLayout
from hinet_model.models.settings import ModelSettings
from hinet_model.nn.embedding import FusedEmbedding


class ScenarioModel(Protocol):
    """A `torch.nn.Module` that scores every task for each row's own scenario."""

    @property
    def embedding(self) -> FusedEmbedding:
        """The fused table; its weight is trained by a table optimiser, apart from all other parameters."""
        ...

    def __call__(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        """Logits ``(B, N)``; ``rows (U, D)`` stands in for the table's rows of ``batch.unique_ids``."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Switch dropout on, as `torch.nn.Module` does."""
        ...

    def eval(self) -> Any:
        """Switch dropout off, as `torch.nn.Module` does."""
        ...

    def to(self, device: torch.device) -> Any:
        """Move parameters and buffers, as `torch.nn.Module` does."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """All parts, as `torch.nn.Module` has them."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters, as `torch.nn.Module` has them."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters by name, as `torch.nn.Module` has them."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Parameters and buffers, as `torch.nn.Module` has them."""
        ...

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Take parameters and buffers, as `torch.nn.Module` does."""
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
            tasks, on the features of an embedding. Counts that do not fit are a `foundation.settings.ConfigError`.
        exempt: Properties of the conformance suite that it rightly does not have, each with the reason. The
            suite tests that the exemption is needed.
    """

    settings: type[ModelSettings]
    build: Callable[[Any, BatchLayout, FusedEmbedding], ScenarioModel]
    exempt: Mapping[str, str] = field(default_factory=dict)
