"""Facts: what rows of the impressions and of other tables tell of an entity, and from which second on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from feature_eng.contract import Behaviour, Contract, Count, History, Rate, stored_name
from feature_eng.events import column, scenario_index_column

Entity = tuple[str, ...]
"""Raw columns whose values make what a feature goes by, and `SCENARIO` where it goes by that too."""
SCENARIO = ""


def entity_of(contract: Contract, feature: Behaviour) -> Entity:
    """What a feature goes by."""
    own = contract.entity_column(feature)
    return (own, SCENARIO) if feature.per_scenario else (own,)


def entity_names(entity: Entity) -> tuple[str, ...]:
    """Columns that `entity_values` makes."""
    return tuple(f"entity__{place}" for place in range(len(entity)))


def entity_values(
    frame: DataFrame, contract: Contract, entity: Entity, like: T.StructType | None = None
) -> list[Column]:
    """What an entity is made of, under its `entity_names`, in the types of other rows where these are given."""
    return [
        _scenario_index(frame, contract).alias(name)
        if part == SCENARIO
        else _aligned(frame, part, like).alias(name)
        for part, name in zip(entity, entity_names(entity), strict=True)
    ]


def _scenario_index(frame: DataFrame, contract: Contract) -> Column:
    return scenario_index_column(contract, frame.schema[stored_name(contract.scenario.column)].dataType)


def _aligned(frame: DataFrame, name: str, like: T.StructType | None) -> Column:
    """A column in the type that it has in other rows; what that type cannot hold is null, as none of them has it."""
    own = frame.schema[stored_name(name)].dataType
    wanted = own if like is None else like[stored_name(name)].dataType
    if own == wanted:
        return column(name)
    aligned = column(name).try_cast(wanted)
    # A cast cuts fractions off, and would make 7 of 7.5.
    return F.when(aligned.try_cast(own) == column(name), aligned)


@dataclass(frozen=True)
class Facts:
    """What rows bring as facts.

    Args:
        of_impressions: Name of each fact that impressions bring -> its value; null is none.
        known_at: Name of each of those that wait -> column with the second from which it is known.
        tables: Other table -> name of each fact that its rows bring -> its value in the types of the impressions.
        types: Name -> type of the fact.
        read_by: Feature -> the name of its facts.
    """

    of_impressions: dict[str, Column] = field(default_factory=dict)
    known_at: dict[str, str] = field(default_factory=dict)
    tables: dict[str, dict[str, Column]] = field(default_factory=dict)
    types: dict[str, T.DataType] = field(default_factory=dict)
    read_by: dict[str, str] = field(default_factory=dict)


def facts_of(
    teller: DataFrame,
    related: Mapping[str, DataFrame],
    contract: Contract,
    features: Mapping[str, Behaviour],
) -> Facts:
    """What rows bring that features of one entity read.

    Args:
        teller: The impressions that tell of the past.
        related: Rows of the other tables.
        contract: The data contract.
        features: Those of the entity.
    """
    found = Facts()
    names: dict[tuple[object, ...], str] = {}
    main = contract.source.main_table
    for feature_name, feature in features.items():
        what = _what(contract, feature)
        name = names.setdefault(what, f"fact__{len(names)}")
        found.read_by[feature_name] = name
        found.types[name] = T.ByteType()
        is_told_apart = isinstance(feature, History) and feature.kinds
        if isinstance(feature, History):
            item_type = teller.schema[stored_name(contract.history_column(feature))].dataType
            with_kind = T.StructType([T.StructField("item", item_type), T.StructField("kind", T.ByteType())])
            found.types[name] = with_kind if is_told_apart else item_type
        for kind, table in enumerate(feature.table or (main,)):
            if table == main:
                facts, value = found.of_impressions, _fact(contract, feature)
                if (known_at := _known_at(contract, feature)) is not None:
                    found.known_at[name] = known_at
            else:
                facts = found.tables.setdefault(table, {})
                value = _other_fact(related[table], contract, feature, teller.schema)
            facts[name] = _with_kind(value, kind) if is_told_apart else value
    return found


def _other_fact(frame: DataFrame, contract: Contract, feature: Behaviour, like: T.StructType) -> Column:
    """What a row of another table brings: that it came, or its item."""
    if isinstance(feature, History):
        return _aligned(frame, contract.history_column(feature), like)
    return F.lit(1)


def _with_kind(item: Column, kind: int) -> Column:
    return F.when(item.isNotNull(), F.struct(item.alias("item"), F.lit(kind).cast("tinyint").alias("kind")))


def _what(contract: Contract, feature: Behaviour) -> tuple[object, ...]:
    """What tells a feature's facts from another's."""
    if isinstance(feature, Count):
        return ("row", feature.table)
    if isinstance(feature, Rate):
        return ("label", feature.task)
    return ("item", contract.history_column(feature), feature.when, feature.table, feature.kinds)


def _fact(contract: Contract, feature: Behaviour) -> Column:
    if isinstance(feature, Count):
        return F.lit(1).cast("tinyint")
    if isinstance(feature, Rate):
        return F.col(f"label__{feature.task}").cast("tinyint")
    item = column(contract.history_column(feature))
    return item if feature.when is None else F.when(F.col(f"label__{feature.when}") == 1, item)


def _known_at(contract: Contract, feature: Behaviour) -> str | None:
    """Column that says when a row's fact is known, of labels that are known after it."""
    task = feature.task if isinstance(feature, Rate) else getattr(feature, "when", None)
    is_delayed = task is not None and contract.tasks[task].is_delayed
    return f"known_at__{task}" if is_delayed else None
