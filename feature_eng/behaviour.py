"""What the user did, or what happened to the item, before a row and only before it.

Each feature is a set of *facts*, each known from some second on: that an item was seen,
that a label was 0 or 1. A row sees the facts known strictly before its own time; so rows
of one user at the same second do not see each other, and a label that is known after its
row (from a later table, or when a dwell has ended) is seen only once it could be known.
A label that is not there is no fact.

Running values are kept per fact, and a row takes the last one before it: the work grows
with the number of rows, not with the square of a busy user's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType

from feature_eng.contract import Behaviour, Contract, Count, History, Rate, quoted, stored_name
from feature_eng.events import column

_ENTITY, _AT = "entity__", "at__"


def with_behaviour(examples: DataFrame, contract: Contract) -> DataFrame:
    """Add the contract's behaviour features under their names, and drop ``known_at__*``.

    - history: array of the last items, newest first, of one time the greatest key first; empty when none
    - count: bigint
    - rate: double, ``(positives + prior * prior_rows) / (labels + prior_rows)``
    """
    kept = [quoted(name) for name in examples.columns if not name.startswith("known_at__")]
    features = contract.behaviour_features
    frame = examples
    for by in ("user", "item"):
        of_entity = {name: feature for name, feature in features.items() if _entity(feature) == by}
        if of_entity:
            frame = _with_features_of(frame, examples, contract, by, of_entity)
    return frame.select(
        *kept,
        *(_finished(name, feature, examples, contract).alias(name) for name, feature in features.items()),
    )


def _entity(feature: Behaviour) -> str:
    return "user" if isinstance(feature, History) else feature.by


def _with_features_of(
    frame: DataFrame, examples: DataFrame, contract: Contract, by: str, features: Mapping[str, Behaviour]
) -> DataFrame:
    """Join the running values of one entity's features as of each row's time."""
    assert contract.columns.time is not None, "checked by the contract"
    role = contract.columns.user if by == "user" else contract.columns.item
    assert role is not None, "checked by the contract"
    entity = column(role)
    time = column(contract.columns.time)
    seconds = _facts_by_second(examples, contract, entity, features)
    for name, feature in features.items():
        if isinstance(feature, History):
            seconds = _with_running_history(seconds, _value(name, "items"), feature.last)
    before = Window.partitionBy(_ENTITY).orderBy(_AT).rangeBetween(Window.unboundedPreceding, -1)
    as_of = seconds.select(
        F.col(_ENTITY),
        F.col(_AT),
        *(_merge(seconds, name, F.last).over(before).alias(name) for name in _values(seconds)),
    )
    joined = frame.join(as_of, on=(entity == F.col(_ENTITY)) & (time == F.col(_AT)), how="left")
    return joined.drop(_ENTITY, _AT)


def _facts_by_second(
    examples: DataFrame, contract: Contract, entity: Column, features: Mapping[str, Behaviour]
) -> DataFrame:
    """One row per entity and second at which it has a row or a fact becomes known."""
    assert contract.columns.time is not None, "checked by the contract"
    # Facts known at the same moment are gathered in one pass. Each row's own time is among the
    # moments, facts or not, because the row looks its values up there.
    by_moment: dict[str, list[Column]] = {contract.columns.time: []}
    for name, feature in features.items():
        by_moment.setdefault(_known_at(contract, feature), []).extend(_facts(contract, name, feature))
    gathered = [
        # Never known: without this, a null would count as earlier than everything.
        examples.where(column(moment).isNotNull())
        .groupBy(entity.alias(_ENTITY), column(moment).alias(_AT))
        .agg(F.lit(None).cast("bigint").alias("none__"), *facts)
        for moment, facts in by_moment.items()
    ]
    if len(gathered) == 1:
        return gathered[0].drop("none__")
    union = reduce(lambda left, right: left.unionByName(right, allowMissingColumns=True), gathered)
    union = union.drop("none__")
    merged = (_merge(union, name, F.first).alias(name) for name in _values(union))
    return union.groupBy(_ENTITY, _AT).agg(*merged)


def _facts(contract: Contract, name: str, feature: Behaviour) -> list[Column]:
    """What one second's rows add to a feature."""
    if isinstance(feature, Count):
        return [F.count(F.lit(1)).alias(_value(name, "rows"))]
    if isinstance(feature, Rate):
        label = F.col(f"label__{feature.task}")
        return [
            F.count(label).alias(_value(name, "rows")),
            F.sum(label).alias(_value(name, "positives")),
        ]
    item = column(contract.history_column(feature))
    counts = item.isNotNull()
    if feature.when is not None:
        counts &= F.col(f"label__{feature.when}") == 1
    # Of one second's facts the later impression is the newer, then the greater key.
    order = [column(part) for part in (contract.columns.time, *contract.key) if part is not None]
    parts = [part.alias(f"order_{place}") for place, part in enumerate(order)]
    seen = F.collect_list(F.when(counts, F.struct(*parts, item.alias("item"))))
    newest = F.slice(F.sort_array(seen, asc=False), 1, feature.last)["item"]
    return [F.when(F.size(newest) > 0, newest).alias(_value(name, "items"))]


def _with_running_history(seconds: DataFrame, name: str, last: int) -> DataFrame:
    """Where items are added, replace them by the last items up to and including that second."""
    has_items = F.col(name).isNotNull()
    # Each such second adds an item at least, so `last` of them are enough.
    recent = Window.partitionBy(_ENTITY, has_items).orderBy(_AT).rowsBetween(-(last - 1), 0)
    running = F.slice(F.flatten(F.reverse(F.collect_list(name).over(recent))), 1, last)
    return seconds.withColumn(name, F.when(has_items, running))


def _values(seconds: DataFrame) -> list[str]:
    return [name for name in seconds.columns if name not in (_ENTITY, _AT)]


def _merge(seconds: DataFrame, name: str, pick: Callable[[str, bool], Column]) -> Column:
    """Numbers add up; of histories one is picked, nulls passed over."""
    is_history = isinstance(seconds.schema[name].dataType, ArrayType)
    return pick(name, True) if is_history else F.sum(name)


def _known_at(contract: Contract, feature: Behaviour) -> str:
    """Column that says when a row's fact is known: its time, but for labels that are known after it."""
    assert contract.columns.time is not None, "checked by the contract"
    task = feature.task if isinstance(feature, Rate) else getattr(feature, "when", None)
    is_delayed = task is not None and contract.tasks[task].is_delayed
    return f"known_at__{task}" if is_delayed else contract.columns.time


def _finished(name: str, feature: Behaviour, examples: DataFrame, contract: Contract) -> Column:
    if isinstance(feature, History):
        item = examples.schema[stored_name(contract.history_column(feature))].dataType
        empty = F.array().cast(ArrayType(item))
        return F.coalesce(F.col(_value(name, "items")), empty)
    rows = F.coalesce(F.col(_value(name, "rows")), F.lit(0).cast("bigint"))
    if isinstance(feature, Count):
        return rows
    positives = F.coalesce(F.col(_value(name, "positives")), F.lit(0).cast("bigint"))
    return (positives + F.lit(feature.prior * feature.prior_rows)) / (rows + F.lit(feature.prior_rows))


def _value(name: str, what: str) -> str:
    return f"{name}__{what}"
