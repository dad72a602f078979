"""The features that a model reads: their layout, their embedding, their normalisation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from foundation.settings import ConfigError
from hinet_model.data.batch import BatchLayout
from hinet_model.models.counts import unknown_name
from hinet_model.models.settings import OuterSettings
from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.nn.normalisation import RowNorm, ScenarioNorm
from hinet_model.nn.row_shard import WHOLE, RowShard

LEAST_ROW_DIM = 4
"""Narrowest row of a table of mixed widths: a value of width 16 is then four look-ups."""


def build_layout(settings: OuterSettings, schema: Mapping[str, Any]) -> BatchLayout:
    """Lay out an encoder's fields for a model, with the widths that its settings give them.

    Args:
        settings: The `model` section of a run's settings.
        schema: What an encoder's `model_schema()` says.

    Raises:
        ConfigError: Widths of features that the data do not have, that are numbers, or that use the rows of a
            feature of another width; widths without a divisor of some size in common. All faults at once.
        hinet_model.data.batch.BatchError: The schema contradicts itself.
    """
    if not settings.embedding_dims:
        return BatchLayout.from_schema(schema)
    numbers = {field["name"] for field in schema["fields"] if field["kind"] == "number"}
    owners = {
        field["name"]: field["shares"] or field["name"]
        for field in schema["fields"]
        if field["name"] not in numbers
    }
    faults = []
    for name, width in settings.embedding_dims.items():
        where, owner = f"model.embedding_dims.{name}", owners.get(name)
        if name in numbers:
            faults.append(f"{where}: '{name}' is a number; expected one of {', '.join(owners)}")
        elif owner is None:
            faults.append(unknown_name(where, name, list(owners)))
        elif width != _width(settings, owner):
            faults.append(
                f"{where}: {width}, but '{name}' uses the rows of '{owner}', whose width is "
                f"{_width(settings, owner)}; expected the same, or none"
            )
    widths = {name: _width(settings, name) for name, owner in owners.items() if name == owner}
    distinct = sorted(set(widths.values()))
    row_dim = math.gcd(*distinct)
    if row_dim < LEAST_ROW_DIM and len(distinct) > 1:
        faults.append(
            f"model.embedding_dims: the widths {', '.join(map(str, distinct))} make rows of {row_dim}, their "
            f"greatest common divisor, and each value many of them; expected {LEAST_ROW_DIM} at least, or one "
            "width for all"
        )
    if faults:
        raise ConfigError(faults)
    return BatchLayout.from_schema(schema, widths)


def _width(settings: OuterSettings, owner: str) -> int:
    """Width of a feature that has rows of its own."""
    return settings.embedding_dims.get(owner, settings.embedding_dim)


def _row_dim(settings: OuterSettings, layout: BatchLayout) -> int:
    """Width of a row of the table.

    Raises:
        ValueError: The layout was made with other widths than the settings give.
    """
    widths = [_width(settings, field.shares or field.name) for field in layout.slot_fields]
    row_dim = math.gcd(*widths) or settings.embedding_dim
    if [field.parts * row_dim for field in layout.slot_fields] != widths:
        raise ValueError("the layout was made with other embedding_dims; make it with build_layout")
    return row_dim


def build_embedding(
    settings: OuterSettings, layout: BatchLayout, times: int = 1, shard: RowShard = WHOLE
) -> FusedEmbedding:
    """The fused embedding of a layout's fields.

    Args:
        settings: Widths of the features, their products, and the spread that rows start with.
        layout: The fields, laid out with the same widths.
        times: How many rows' widths stand side by side in one.
        shard: Rows of the table that are held here.

    Raises:
        ConfigError: Products of features that the data do not have, or that cannot be multiplied; attention that
            would pool nothing.
    """
    spans = [(field.positions[0], field.positions[-1] + 1) for field in layout.slot_fields]
    beside = _beside(settings, layout)
    return FusedEmbedding(
        layout.num_embeddings,
        _row_dim(settings, layout) * times,
        spans,
        [field.pooled for field in layout.slot_fields],
        layout.num_numbers,
        settings.embedding_std,
        [field.parts for field in layout.slot_fields],
        shard,
        _products(settings, layout),
        beside,
        # Where rows' widths stand side by side, each model pools its own.
        _queries(settings, layout, beside) if times == 1 else None,
    )


def _queries(settings: OuterSettings, layout: BatchLayout, beside: Sequence[int | None]) -> list[int | None]:
    """Number of the field that asks where attention pools a field's slots; none where all count alike.

    Raises:
        ConfigError: Attention that would pool nothing.
    """
    fields = layout.slot_fields
    if settings.pooling == "mean":
        return [None] * len(fields)
    single = {field.name: number for number, field in enumerate(fields) if not field.pooled}
    found = [
        single.get(field.shares or "") if field.pooled and other is None else None
        for field, other in zip(fields, beside, strict=True)
    ]
    if all(query is None for query in found):
        raise ConfigError(
            [
                "model.pooling: attention pools histories of features that rows have as well, and there are none"
            ]
        )
    return found


def _beside(settings: OuterSettings, layout: BatchLayout) -> list[int | None]:
    """Number of the field to whose slots each one's are added; none where sequences are read apart.

    Raises:
        ConfigError: Widths that differ: all faults.
    """
    fields = layout.slot_fields
    if settings.sequences == "apart":
        return [None] * len(fields)
    places = {field.name: number for number, field in enumerate(fields)}
    found = [None if field.beside is None else places[field.beside] for field in fields]
    faults = []
    for field, other in zip(fields, found, strict=True):
        if other is not None and field.parts != fields[other].parts:
            mine, theirs = (_width(settings, one.shares or one.name) for one in (field, fields[other]))
            faults.append(
                f"model.embedding_dims: '{field.name}' is of width {mine} and '{fields[other].name}', to which "
                f"model.sequences adds it, of width {theirs}; expected one width"
            )
    if faults:
        raise ConfigError(faults)
    return found


def _products(settings: OuterSettings, layout: BatchLayout) -> list[tuple[list[int], list[int]]]:
    """Numbers of the id features on the two sides of each product.

    Raises:
        ConfigError: Features that the data do not have or that are numbers, and widths that differ: all faults.
    """
    places = {field.name: number for number, field in enumerate(layout.slot_fields)}
    faults = []
    for number, product in enumerate(settings.products):
        where = f"model.products.{number}"
        named = [*product.left, *product.right]
        for name in named:
            if name in layout.number_columns:
                faults.append(f"{where}: '{name}' is a number; expected one of {', '.join(places)}")
            elif name not in places:
                faults.append(unknown_name(where, name, list(places)))
            elif settings.sequences == "together" and layout.slot_fields[places[name]].beside is not None:
                other = layout.slot_fields[places[name]].beside
                faults.append(f"{where}: model.sequences adds '{name}' to '{other}'; expected '{other}'")
        fields = [layout.slot_fields[places[name]] for name in named if name in places]
        widths = {field.name: _width(settings, field.shares or field.name) for field in fields}
        if len(set(widths.values())) > 1:
            told = ", ".join(f"'{name}' {width}" for name, width in widths.items())
            faults.append(f"{where}: features of several widths, {told}; expected one width")
    if faults:
        raise ConfigError(faults)
    return [
        ([places[name] for name in product.left], [places[name] for name in product.right])
        for product in settings.products
    ]


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
    first = embedding.first_number
    places |= {name: [first + number] for number, name in enumerate(layout.number_columns)}
    unknown = [unknown_name(where, name, list(places)) for name in names if name not in places]
    if unknown:
        raise ConfigError(unknown)
    return tuple(column for name in names for column in places[name])


def build_norm(settings: OuterSettings, layout: BatchLayout, dim: int) -> RowNorm | ScenarioNorm | None:
    """The configured normalisation of ``dim`` features, if any."""
    if settings.normalisation == "layer":
        return RowNorm(dim)
    if settings.normalisation == "scenario":
        return ScenarioNorm(layout.num_scenarios, dim)
    return None
