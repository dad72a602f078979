"""The as-of step: rows and facts in, what each row may know out.

Each feature is a set of *facts*, each known from some second on: that an item was seen,
that a label was 0 or 1. A row sees the facts known strictly before its own time; so rows
of one user at the same second do not see each other, and a label that is known after its
row (from a later table, or when a dwell has ended) is seen only once it could be known.
A label that is not there is no fact.

Rows and facts of one entity meet in one shuffle, in order of time, and are gone through once
(`feature_eng.behaviour.running`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from feature_eng.behaviour.running import AT, ROW, Running
from feature_eng.contract import Behaviour, Contract, Count, History, Rate, quoted, stored_name
from feature_eng.events import column, scenario_index_column

Entity = tuple[str, ...]
"""Raw columns whose values make what a feature goes by, and `_SCENARIO` where it goes by that too."""
_SCENARIO = ""


def with_behaviour(examples: DataFrame, contract: Contract, told_by: DataFrame | None = None) -> DataFrame:
    """Add the contract's behaviour features under their names.

    - history: array of the last items, newest first, of one time the greatest key first; empty when none
    - count: bigint
    - rate: double, ``(positives + prior * prior_rows) / (labels + prior_rows)``

    Args:
        examples: Rows that ask.
        contract: The data contract.
        told_by: Rows whose labels and items are the facts; the rows themselves when left out. Then ``examples``
            need no labels, no more than their time and their entities, in the types of these.
    """
    features = contract.behaviour_features
    frame = examples
    # Users come last: histories are wide, and so are shuffled by none but who writes them.
    for entity in sorted(
        dict.fromkeys(_entity(contract, one) for one in features.values()), key=_users_last(contract)
    ):
        own = {name: one for name, one in features.items() if _entity(contract, one) == entity}
        frame = _with_features_of(frame, told_by, contract, entity, own)
    return frame.select(*map(quoted, examples.columns), *features) if features else examples


def _entity(contract: Contract, feature: Behaviour) -> Entity:
    own = contract.entity_column(feature)
    return (own, _SCENARIO) if feature.per_scenario else (own,)


def _names(entity: Entity) -> tuple[str, ...]:
    return tuple(f"entity__{place}" for place in range(len(entity)))


def _values(frame: DataFrame, contract: Contract, entity: Entity) -> list[Column]:
    """What an entity is made of, under its `_names`."""
    dtype = frame.schema[stored_name(contract.scenario.column)].dataType
    return [
        (scenario_index_column(contract, dtype) if part == _SCENARIO else column(part)).alias(name)
        for part, name in zip(entity, _names(entity), strict=True)
    ]


def _users_last(contract: Contract) -> Callable[[Entity], bool]:
    return lambda entity: entity[0] == contract.columns.user


@dataclass(frozen=True)
class _Facts:
    """What rows bring as facts.

    Args:
        moments: Column with the second from which they are known -> name and value of each fact; null is none.
        read_by: Feature -> the name of its facts.
    """

    moments: dict[str, dict[str, Column]] = field(default_factory=dict)
    read_by: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.read_by.values()))


def _with_features_of(
    frame: DataFrame,
    told_by: DataFrame | None,
    contract: Contract,
    entity: Entity,
    features: Mapping[str, Behaviour],
) -> DataFrame:
    facts = _facts(contract, features)
    order = []
    if any(isinstance(feature, History) for feature in features.values()):
        # Of one second's facts the later impression is the newer, then the greater key.
        order = [name for name in (contract.columns.time, *contract.key) if name is not None]
    teller = frame if told_by is None else told_by
    timeline = (
        _timeline(frame, contract, entity, order, facts)
        if told_by is None
        else _told(frame, told_by, contract, entity, order, facts)
    )
    names = _names(entity)
    sorted_by = [AT, *(f"order__{place}" for place in range(len(order)))]
    running = Running(names, facts.read_by, features)
    item_types = {
        name: T.ArrayType(teller.schema[stored_name(contract.history_column(feature))].dataType)
        for name, feature in features.items()
        if isinstance(feature, History)
    }
    made = [
        T.StructField(name, item_types.get(name, T.LongType() if isinstance(one, Count) else T.DoubleType()))
        for name, one in features.items()
    ]
    return (
        timeline.repartition(*names)
        .sortWithinPartitions(*names, *sorted_by)
        .drop(*sorted_by[1:])
        .mapInArrow(running, T.StructType([*frame.schema, *made]))
    )


def _timeline(
    frame: DataFrame, contract: Contract, entity: Entity, order: list[str], facts: _Facts
) -> DataFrame:
    """Rows of ``frame``, each with the facts known at its own time, and rows of facts that are known later."""
    row = F.struct(*(F.col(quoted(name)) for name in frame.columns))
    return _facts_in_time(frame, contract, entity, order, facts, row, T.StructType(frame.schema.fields))


def _told(
    frame: DataFrame, told_by: DataFrame, contract: Contract, entity: Entity, order: list[str], facts: _Facts
) -> DataFrame:
    """Rows of ``frame``, which bring no facts, and the facts of others, of the same entities."""
    kind = T.StructType(frame.schema.fields)
    of_others = _facts_in_time(told_by, contract, entity, order, facts, F.lit(None).cast(kind), kind)
    asked = _values(frame, contract, entity)
    of_others = of_others.join(frame.select(*asked).distinct(), on=list(_names(entity)), how="left_semi")
    assert contract.columns.time is not None, "checked by the contract"
    asking = frame.select(
        *asked,
        column(contract.columns.time).alias(AT),
        F.struct(*(F.col(quoted(name)) for name in frame.columns)).alias(ROW),
    )
    return of_others.unionByName(asking, allowMissingColumns=True)


def _facts_in_time(
    frame: DataFrame,
    contract: Contract,
    entity: Entity,
    order: list[str],
    facts: _Facts,
    row: Column,
    kind: T.StructType,
) -> DataFrame:
    time = contract.columns.time
    assert time is not None, "checked by the contract"
    no_row = F.lit(None).cast(kind)
    types = {
        name: frame.select(value.alias("fact")).schema["fact"].dataType
        for given in facts.moments.values()
        for name, value in given.items()
    }

    def at(moment: str, of: Column) -> Column:
        known = facts.moments.get(moment, {})
        return F.struct(
            *_values(frame, contract, entity),
            column(moment).alias(AT),
            *(column(name).alias(f"order__{place}") for place, name in enumerate(order)),
            *(known.get(name, F.lit(None)).cast(types[name]).alias(name) for name in facts.names),
            of.alias(ROW),
        )

    later = [moment for moment in facts.moments if moment != time]
    if not later:
        return frame.select(at(time, row).alias("one")).select("one.*")
    several = F.array(
        at(time, row), *(F.when(_is_any(facts, moment), at(moment, no_row)) for moment in later)
    )
    # Never known, or nothing to know: no row at all.
    return frame.select(F.explode(F.filter(several, lambda one: one.isNotNull())).alias("one")).select(
        "one.*"
    )


def _is_any(facts: _Facts, moment: str) -> Column:
    some = F.coalesce(*(value.isNotNull() for value in facts.moments[moment].values()))
    for value in facts.moments[moment].values():
        some |= value.isNotNull()
    return column(moment).isNotNull() & some


def _facts(contract: Contract, features: Mapping[str, Behaviour]) -> _Facts:
    found = _Facts()
    names: dict[tuple[str, ...], str] = {}
    for feature_name, feature in features.items():
        what = _what(contract, feature)
        name = names.setdefault(what, f"fact__{len(names)}")
        found.read_by[feature_name] = name
        found.moments.setdefault(_known_at(contract, feature), {})[name] = _fact(contract, feature)
    return found


def _what(contract: Contract, feature: Behaviour) -> tuple[str, ...]:
    """What tells a feature's facts from another's."""
    if isinstance(feature, Count):
        return ("row",)
    if isinstance(feature, Rate):
        return ("label", feature.task)
    return ("item", contract.history_column(feature), feature.when or "")


def _fact(contract: Contract, feature: Behaviour) -> Column:
    if isinstance(feature, Count):
        return F.lit(1).cast("tinyint")
    if isinstance(feature, Rate):
        return F.col(f"label__{feature.task}").cast("tinyint")
    item = column(contract.history_column(feature))
    return item if feature.when is None else F.when(F.col(f"label__{feature.when}") == 1, item)


def _known_at(contract: Contract, feature: Behaviour) -> str:
    """Column that says when a row's fact is known: its time, but for labels that are known after it."""
    assert contract.columns.time is not None, "checked by the contract"
    task = feature.task if isinstance(feature, Rate) else getattr(feature, "when", None)
    is_delayed = task is not None and contract.tasks[task].is_delayed
    return f"known_at__{task}" if is_delayed else contract.columns.time
