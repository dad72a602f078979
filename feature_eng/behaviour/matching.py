"""Are features of other tables told anything at all? A join that matches nothing is a mistake of the contract."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from feature_eng.behaviour.facts import Entity, entity_names, entity_of, entity_values
from feature_eng.contract import Behaviour, Contract, ContractError, History
from feature_eng.events import Events, column
from feature_eng.events.joining import seen_keys
from foundation.job import say_table

_FIRST, _LAST = "first__", "last__"


def check_told(examples: DataFrame, events: Events, contract: Contract, quiet: Collection[str] = ()) -> None:
    """Stop where rows of another table tell no example anything.

    Tables are looked at only where the examples leave it open: a feature of this table alone is empty in all of them,
    or only features of several tables read it.

    Args:
        examples: All of the build.
        events: What they were made of.
        contract: What was built.
        quiet: Tables that may be without a row as yet.

    Raises:
        ContractError: Names the features and their table, with the keys on both sides, or how times lie.
    """
    groups: dict[tuple[str, Entity], dict[str, Behaviour]] = {}
    for table in (table for table in contract.related_times if table not in quiet):
        for name, feature in contract.readers_of(table).items():
            groups.setdefault((table, entity_of(contract, feature)), {})[name] = feature
    told = _told(examples, {name: one for group in groups.values() for name, one in group.items()})
    faults = []
    for (table, entity), features in groups.items():
        alone = [name for name, feature in features.items() if feature.table == (table,)]
        if alone and all(name in told for name in alone):
            continue
        fault = _untold(table, entity, events, contract)
        if fault:
            faults.append(f"{', '.join(f'features.{name}' for name in features)}: {fault}")
            continue
        faults += [
            f"features.{name}: {_empty(table, entity, features[name], contract)}"
            for name in alone
            if name not in told
        ]
    if faults:
        raise ContractError(faults)


def _told(examples: DataFrame, features: Mapping[str, Behaviour]) -> set[str]:
    """Features that are not empty in all examples: one reading of their columns; said is in how many they are not."""
    if not features:
        return set()
    counts = [F.count_if(_is_told(name, feature)).alias(name) for name, feature in features.items()]
    rows, *told = examples.agg(F.count(F.lit(1)), *counts).collect()[0]
    say_table(
        ["feature", "told by", "examples that know of rows", "of none"],
        [
            (name, ", ".join(feature.table or ()), count, rows - count)
            for (name, feature), count in zip(features.items(), told, strict=True)
        ],
    )
    return {name for name, count in zip(features, told, strict=True) if count}


def _is_told(name: str, feature: Behaviour) -> Column:
    return (F.size(name) if isinstance(feature, History) else F.col(name)) > 0


def _untold(table: str, entity: Entity, events: Events, contract: Contract) -> str | None:
    """Why no row of the impressions can have seen any of another table; None if one has."""
    impressions, others = events.impressions, events.related[table]
    assert contract.columns.time is not None, "checked by the contract"
    names = list(entity_names(entity))
    firsts = others.select(
        *entity_values(others, contract, entity, impressions.schema),
        column(contract.related_times[table].column).alias(_FIRST),
    )
    lasts = impressions.select(
        *entity_values(impressions, contract, entity), column(contract.columns.time).alias(_LAST)
    )
    pairs = (
        firsts.groupBy(*names).agg(F.min(_FIRST).alias(_FIRST))
        .join(lasts.groupBy(*names).agg(F.max(_LAST).alias(_LAST)), on=names, how="inner")
    )  # fmt: skip
    found = pairs.agg(
        F.count(F.lit(1)).alias("pairs"),
        F.count_if(F.col(_FIRST) < F.col(_LAST)).alias("told"),
        F.min(F.col(_FIRST) - F.col(_LAST)).alias("least"),
    ).collect()[0]
    if found["told"]:
        return None
    if found["pairs"]:
        return (
            f"every row of {table!r} comes after the last impression of equal {_named(entity)}, "
            f"by {found['least']:,} s or more; expected times read in another way"
        )
    rows = others.count()
    if rows == 0:
        return f"{table!r} has no rows that can be used, so that every row would be told nothing"
    seen = " and ".join(
        seen_keys(name, frame.select(*(column(part) for part in entity if part)))
        for name, frame in ((contract.source.main_table, impressions), (table, others))
    )
    return f"none of {rows:,} rows of {table!r} has the {_named(entity)} of an impression; there are {seen}"


def _empty(table: str, entity: Entity, feature: Behaviour, contract: Contract) -> str:
    """Why a feature knows nothing of rows that come before others of equal entity."""
    if feature.within is not None:
        return (
            f"no row of {table!r} lies within {feature.within:,} s before a row of equal {_named(entity)}; expected "
            "another 'within', or times read in another way"
        )
    assert isinstance(feature, History), "a count without a window counts all rows before"
    return (
        f"no row of {table!r} before a row of equal {_named(entity)} has a value in "
        f"{contract.history_column(feature)!r}; expected another column, or its values read in another way"
    )


def _named(entity: Entity) -> str:
    return reduce(lambda one, other: f"{one} and {other}", (part or "scenario" for part in entity))
