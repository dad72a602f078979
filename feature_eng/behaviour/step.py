"""The as-of step: rows and facts in, what each row may know out.

Each feature is a set of *facts*, each known from some second on: that an item was seen,
that a label was 0 or 1, that a row of another table (carts, searches) came. A row sees the
facts known strictly before its own time; so rows of one user at the same second do not see
each other, and a label that is known after its row (from a later table, or when a dwell has
ended) is seen only once it could be known. A label that is not there is no fact.

Rows and facts of one entity meet in one shuffle, in order of their own times, and are gone through once
(`feature_eng.behaviour.running`): a fact that waits travels with its row and says from when on it is known.
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
    others: DataFrame | None = None,
    related: Mapping[str, DataFrame] | None = None,
    *,
    tell: bool = True,
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
        others: Impressions that tell of the past beside them.
        related: Typed rows of the other tables that features read.
        tell: Whether the items and labels of ``examples`` are facts too. Those of requests are not: they need no
            labels, no more than their time and their entities, in the types of ``others``.
    """
    features = contract.behaviour_features
    frame = examples
    # Users come last: histories are wide, and so are shuffled by none but who writes them.
    for entity in sorted(
        dict.fromkeys(entity_of(contract, one) for one in features.values()), key=_users_last(contract)
    ):
        own = {name: one for name, one in features.items() if entity_of(contract, one) == entity}
        asked = examples.select(*entity_values(examples, contract, entity)).distinct()
        frame = _with_features_of(frame, asked, others, related or {}, contract, entity, own, tell=tell)
    return frame.select(*map(quoted, examples.columns), *contract.behaviour_columns) if features else examples


def _users_last(contract: Contract) -> Callable[[Entity], bool]:
    return lambda entity: entity[0] == contract.columns.user


def _with_features_of(
    frame: DataFrame,
    asked: DataFrame,
    others: DataFrame | None,
    related: Mapping[str, DataFrame],
    contract: Contract,
    entity: Entity,
    features: Mapping[str, Behaviour],
    *,
    tell: bool,
) -> DataFrame:
    teller = others if others is not None and not tell else frame
    facts = facts_of(teller, related, contract, features)
    order = []
    if any(isinstance(feature, History) for feature in features.values()):
        order = list(contract.key)  # of one second's facts that of the greater key is the newer
    row = F.struct(*(F.col(quoted(name)) for name in frame.columns))
    names = entity_names(entity)
    asking = (
        _telling(frame, contract, entity, order, facts, row)
        if tell
        else _asking(frame, contract, entity, row)
    )
    telling = [
        _other_facts(related[table], table, contract, entity, facts, teller.schema) for table in facts.tables
    ]
    if others is not None and facts.of_impressions:
        no_row = F.lit(None).cast(T.StructType(frame.schema.fields))
        told = _telling(others, contract, entity, order, facts, no_row)
        telling.append(told.where(reduce(Column.__or__, (F.col(name).isNotNull() for name in facts.types))))
    if others is not None:
        telling = [part.join(asked, on=list(names), how="left_semi") for part in telling]
    timeline = reduce(lambda one, other: one.unionByName(other, allowMissingColumns=True), [asking, *telling])
    sorted_by = [f"order__{place}" for place in range(len(order)) if f"order__{place}" in timeline.columns]
    if order and facts.tables:
        items = [facts.read_by[name] for name, one in features.items() if isinstance(one, History)]
        sorted_by = [_TABLE, *sorted_by, *dict.fromkeys(items)]
    running = Running(names, facts.read_by, features, facts.known_at)
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
    time = column(contract.related_times[table].column)
    return frame.select(
        *entity_values(frame, contract, entity, like),
        time.alias(AT),
        F.lit(1 + list(contract.related_times).index(table)).alias(_TABLE),
        *_values(facts.tables[table], facts),
        *(time.alias(name) for name in dict.fromkeys(facts.known_at.values())),
    )


def _telling(
    frame: DataFrame, contract: Contract, entity: Entity, order: list[str], facts: Facts, row: Column
) -> DataFrame:
    """Impressions at their own time, each with its facts and the seconds from which those are known that wait.

    Args:
        frame: The impressions.
        contract: The data contract.
        entity: What they go by.
        order: Columns by which those of one second are ordered.
        facts: What they bring.
        row: The row that asks, null where none does.
    """
    assert contract.columns.time is not None, "checked by the contract"
    return frame.select(
        *entity_values(frame, contract, entity),
        column(contract.columns.time).alias(AT),
        *([F.lit(0).alias(_TABLE)] if facts.tables else []),
        *(column(name).alias(f"order__{place}") for place, name in enumerate(order)),
        *_values(facts.of_impressions, facts),
        *(F.col(name) for name in dict.fromkeys(facts.known_at.values())),
        row.alias(ROW),
    )


def _values(known: Mapping[str, Column], facts: Facts) -> list[Column]:
    """Every kind of fact, null where rows bring none of it."""
    return [known.get(name, F.lit(None)).cast(dtype).alias(name) for name, dtype in facts.types.items()]
