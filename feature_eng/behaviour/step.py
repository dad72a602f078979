"""The as-of step: rows and facts in, what each row may know out.

Each feature is a set of *facts*, each known from some second on: that an item was seen,
that a label was 0 or 1, that a row of another table (carts, searches) came. A row sees the
facts known strictly before its own time; so rows of one user at the same second do not see
each other, and a label that is known after its row (from a later table, or when a dwell has
ended) is seen only once it could be known. A label that is not there is no fact.

Rows and facts of one entity meet in one shuffle, in order of time, and are gone through once
(`feature_eng.behaviour.running`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from feature_eng.behaviour.facts import Entity, Facts, entity_names, entity_of, entity_values, facts_of
from feature_eng.behaviour.running import AT, ROW, Running
from feature_eng.contract import AGES, KINDS, Behaviour, Contract, Count, History, quoted
from feature_eng.events import column

_TABLE = "table__"
"""Column with the place of the table that a fact is of, by which facts of one second are ordered."""


def with_behaviour(
    examples: DataFrame,
    contract: Contract,
    told_by: DataFrame | None = None,
    related: Mapping[str, DataFrame] | None = None,
) -> DataFrame:
    """Add the contract's behaviour features under their names.

    - history: array of the last items, newest first, empty when none. Of one second rows of a table that the contract
      names later are the newer; of the impressions the greatest key, of another table the greatest item
      With ``ages`` beside it ``<name>__ages``, array<bigint>, for how many seconds each has been known; with ``kinds``
      ``<name>__kinds``, array<string>, the table of each
    - count: bigint
    - rate: double, ``(positives + prior * prior_rows) / (labels + prior_rows)``

    Args:
        examples: Rows that ask.
        contract: The data contract.
        told_by: Rows whose labels and items are the facts; the rows themselves when left out. Then ``examples``
            need no labels, no more than their time and their entities, in the types of these.
        related: Typed rows of the other tables that features read.
    """
    features = contract.behaviour_features
    frame = examples
    # Users come last: histories are wide, and so are shuffled by none but who writes them.
    for entity in sorted(
        dict.fromkeys(entity_of(contract, one) for one in features.values()), key=_users_last(contract)
    ):
        own = {name: one for name, one in features.items() if entity_of(contract, one) == entity}
        asked = examples.select(*entity_values(examples, contract, entity)).distinct()
        frame = _with_features_of(frame, asked, told_by, related or {}, contract, entity, own)
    return frame.select(*map(quoted, examples.columns), *contract.behaviour_columns) if features else examples


def _users_last(contract: Contract) -> Callable[[Entity], bool]:
    return lambda entity: entity[0] == contract.columns.user


def _with_features_of(
    frame: DataFrame,
    asked: DataFrame,
    told_by: DataFrame | None,
    related: Mapping[str, DataFrame],
    contract: Contract,
    entity: Entity,
    features: Mapping[str, Behaviour],
) -> DataFrame:
    teller = frame if told_by is None else told_by
    facts = facts_of(teller, related, contract, features)
    order = []
    if any(isinstance(feature, History) for feature in features.values()):
        # Of one second's facts the later impression is the newer, then the greater key.
        order = [name for name in (contract.columns.time, *contract.key) if name is not None]
    row = F.struct(*(F.col(quoted(name)) for name in frame.columns))
    kind = T.StructType(frame.schema.fields)
    names = entity_names(entity)
    if told_by is None:
        parts = [_facts_in_time(frame, contract, entity, order, facts, row, kind)]
    else:
        parts = [_asking(frame, contract, entity, row)]
        if facts.moments:
            no_row = F.lit(None).cast(kind)
            parts.append(_facts_in_time(told_by, contract, entity, order, facts, no_row, kind))
    parts += [
        _other_facts(related[table], table, contract, entity, facts, teller.schema) for table in facts.tables
    ]
    if told_by is not None:
        parts[1:] = [part.join(asked, on=list(names), how="left_semi") for part in parts[1:]]
    timeline = reduce(lambda one, other: one.unionByName(other, allowMissingColumns=True), parts)
    sorted_by = [f"order__{place}" for place in range(len(order)) if facts.moments or told_by is None]
    if order and facts.tables:
        items = [facts.read_by[name] for name, one in features.items() if isinstance(one, History)]
        sorted_by = [_TABLE, *sorted_by, *dict.fromkeys(items)]
    running = Running(names, facts.read_by, features)
    made = [
        made
        for name, one in features.items()
        for made in _made_by(name, one, facts.types[facts.read_by[name]])
    ]
    return (
        timeline.repartition(*names)
        .sortWithinPartitions(*names, AT, *sorted_by)
        .drop(_TABLE, *(name for name in sorted_by if name not in facts.types))
        .mapInArrow(running, T.StructType([*frame.schema, *made]))
    )


def _made_by(name: str, feature: Behaviour, fact: T.DataType) -> list[T.StructField]:
    """The columns of a feature whose facts are of a type."""
    if not isinstance(feature, History):
        return [T.StructField(name, T.LongType() if isinstance(feature, Count) else T.DoubleType())]
    item = fact["item"].dataType if isinstance(fact, T.StructType) else fact
    types = {AGES: T.LongType(), KINDS: T.StringType()}
    return [
        T.StructField(column, T.ArrayType(types.get(column.removeprefix(name), item)))
        for column in feature.columns(name)
    ]


def _asking(frame: DataFrame, contract: Contract, entity: Entity, row: Column) -> DataFrame:
    """Rows that ask and bring no facts."""
    assert contract.columns.time is not None, "checked by the contract"
    return frame.select(
        *entity_values(frame, contract, entity),
        column(contract.columns.time).alias(AT),
        row.alias(ROW),
    )


def _other_facts(
    frame: DataFrame, table: str, contract: Contract, entity: Entity, facts: Facts, like: T.StructType
) -> DataFrame:
    """The facts that rows of another table bring, each known from its own second on."""
    known = facts.tables[table]
    return frame.select(
        *entity_values(frame, contract, entity, like),
        column(contract.related_times[table].column).alias(AT),
        F.lit(1 + list(contract.related_times).index(table)).alias(_TABLE),
        *(known.get(name, F.lit(None)).cast(dtype).alias(name) for name, dtype in facts.types.items()),
    )


def _facts_in_time(
    frame: DataFrame,
    contract: Contract,
    entity: Entity,
    order: list[str],
    facts: Facts,
    row: Column,
    kind: T.StructType,
) -> DataFrame:
    """Rows, each with the facts known at its own time, and rows of facts that are known later.

    Args:
        frame: The impressions.
        contract: The data contract.
        entity: What they go by.
        order: Columns by which those of one second are ordered.
        facts: What they bring.
        row: The row that asks, at its own time.
        kind: Its type.
    """
    time = contract.columns.time
    assert time is not None, "checked by the contract"
    no_row = F.lit(None).cast(kind)

    def at(moment: str, of: Column) -> Column:
        known = facts.moments.get(moment, {})
        return F.struct(
            *entity_values(frame, contract, entity),
            column(moment).alias(AT),
            *([F.lit(0).alias(_TABLE)] if facts.tables else []),
            *(column(name).alias(f"order__{place}") for place, name in enumerate(order)),
            *(known.get(name, F.lit(None)).cast(dtype).alias(name) for name, dtype in facts.types.items()),
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


def _is_any(facts: Facts, moment: str) -> Column:
    some = F.coalesce(*(value.isNotNull() for value in facts.moments[moment].values()))
    for value in facts.moments[moment].values():
        some |= value.isNotNull()
    return column(moment).isNotNull() & some
