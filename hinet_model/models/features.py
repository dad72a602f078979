"""The features that a model reads, and the model that a network makes on them."""

from __future__ import annotations

from hinet_model.batch import BatchLayout
from hinet_model.config import ModelSettings
from hinet_model.models.embedded import EmbeddedModel, Network
from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.nn.normalisation import RowNorm, ScenarioNorm


def build_embedding(settings: ModelSettings, layout: BatchLayout, times: int = 1) -> FusedEmbedding:
    """The fused embedding of a layout's fields.

    Args:
        settings: Width of a row, and the spread that rows start with.
        layout: The fields.
        times: How many rows' widths stand side by side in one.
    """
    spans = [(field.positions[0], field.positions[-1] + 1) for field in layout.slot_fields]
    return FusedEmbedding(
        layout.num_embeddings,
        settings.embedding_dim * times,
        spans,
        [field.pooled for field in layout.slot_fields],
        layout.num_numbers,
        settings.embedding_std,
    )


def build_norm(settings: ModelSettings, layout: BatchLayout, dim: int) -> RowNorm | ScenarioNorm | None:
    """The configured normalisation of ``dim`` features, if any."""
    if settings.normalisation == "layer":
        return RowNorm(dim)
    if settings.normalisation == "scenario":
        return ScenarioNorm(layout.num_scenarios, dim)
    return None


def embedded(
    settings: ModelSettings, layout: BatchLayout, embedding: FusedEmbedding, network: Network
) -> EmbeddedModel:
    """A network on the configured features."""
    norm = build_norm(settings, layout, embedding.out_dim)
    return EmbeddedModel(embedding, network, layout.num_scenarios, settings.input_dropout, norm)
