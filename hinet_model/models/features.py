"""The features that a model reads, and the model that a network makes on them."""

from __future__ import annotations

from collections.abc import Sequence

from feature_eng.settings import ConfigError
from hinet_model.batch import BatchLayout
from hinet_model.config import ModelSettings
from hinet_model.models.counts import unknown_name
from hinet_model.models.embedded import EmbeddedModel, Network
from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.nn.normalisation import RowNorm, ScenarioNorm
from hinet_model.nn.row_shard import WHOLE, RowShard


def build_embedding(
    settings: ModelSettings, layout: BatchLayout, times: int = 1, shard: RowShard = WHOLE
) -> FusedEmbedding:
    """The fused embedding of a layout's fields.

    Args:
        settings: Width of a row, and the spread that rows start with.
        layout: The fields.
        times: How many rows' widths stand side by side in one.
        shard: Rows of the table that are held here.
    """
    spans = [(field.positions[0], field.positions[-1] + 1) for field in layout.slot_fields]
    return FusedEmbedding(
        layout.num_embeddings,
        settings.embedding_dim * times,
        spans,
        [field.pooled for field in layout.slot_fields],
        layout.num_numbers,
        settings.embedding_std,
        shard,
    )


def columns_of(
    where: str, names: Sequence[str], layout: BatchLayout, embedding: FusedEmbedding
) -> tuple[int, ...]:
    """Places of named features in a row of features.

    Args:
        where: The setting that names them.
        names: Features of the contract.
        layout: The fields.
        embedding: What puts the features in a row.

    Raises:
        ConfigError: Names that the data do not have.
    """
    places = {field.name: embedding.columns_of(number) for number, field in enumerate(layout.slot_fields)}
    first = len(layout.slot_fields) * embedding.dim
    places |= {name: [first + number] for number, name in enumerate(layout.number_columns)}
    unknown = [unknown_name(where, name, list(places)) for name in names if name not in places]
    if unknown:
        raise ConfigError(unknown)
    return tuple(column for name in names for column in places[name])


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
