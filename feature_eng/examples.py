"""Events -> examples: one row per impression, with its scenario and one label per task.

A label from a later table is 1 when a matching row occurs within the attribution window
after the impression. Every impression in whose window the row falls gets it, not the last
one alone. ``known_at__<task>`` says when such a label could be known at the earliest: when
the row occurred, or for a 0 when the window closed; behaviour features look no further.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType

from feature_eng.contract import Contract, Task, stored_name, to_boolean, to_number
from feature_eng.events import Events, column, comparable, number, scenario_index_column


def to_examples(events: Events, contract: Contract) -> DataFrame:
    """Join impressions with what followed them.

    Returns:
        The contract's raw columns, ``scenario`` (name), ``label__<task>`` (int 0 or 1) and, for
        labels from tables, ``known_at__<task>`` (seconds since the epoch). As many rows as impressions.
    """
    joined = events.impressions
    for name, task in contract.tasks.items():
        if task.table is not None:
            joined = _with_first_match(joined, events.related[task.table], name, task, contract)
    names = F.array(*(F.lit(name) for name in contract.scenario_names))
    dtype = joined.schema[stored_name(contract.scenario.column)].dataType
    scenario = F.element_at(names, scenario_index_column(contract, dtype) + 1)
    return joined.select(
        *(column(name) for name in contract.raw_columns),
        scenario.alias("scenario"),
        *(_label(name, task, joined).alias(f"label__{name}") for name, task in contract.tasks.items()),
        *(
            _known_at(name, task, contract).alias(f"known_at__{name}")
            for name, task in contract.tasks.items()
            if task.is_delayed
        ),
    )


def _label(name: str, task: Task, joined: DataFrame) -> Column:
    if task.table is not None:
        return F.col(f"matched_at__{name}").isNotNull().cast("int")
    assert task.column is not None, "a task has a column or a table"
    value, dtype = column(task.column), joined.schema[stored_name(task.column)].dataType
    if isinstance(task.equals, str) and isinstance(dtype, StringType):
        is_positive = value == task.equals
    elif task.equals is not None:
        truth = to_boolean(task.equals)
        wanted = to_number(task.equals) if truth is None else float(truth)
        is_positive = number(value, dtype) == F.lit(wanted)
    elif task.greater_than is not None:
        is_positive = number(value, dtype) > task.greater_than
    else:
        is_positive = number(value, dtype) >= task.at_least
    return is_positive.cast("int")


def _known_at(name: str, task: Task, contract: Contract) -> Column:
    assert contract.columns.time is not None, "checked by the contract"
    assert task.within is not None, "checked by the contract"
    window_end = column(contract.columns.time) + F.lit(task.within)
    return F.coalesce(F.col(f"matched_at__{name}"), window_end).cast("bigint")


def _with_first_match(
    impressions: DataFrame, later: DataFrame, name: str, task: Task, contract: Contract
) -> DataFrame:
    """Add ``matched_at__<task>``: the time of the first matching row inside the window, or null."""
    assert contract.columns.time is not None, "checked by the contract"
    assert task.within is not None, "checked by the contract"
    key = contract.key
    later_time = task.time or contract.columns.time
    rows = later.select(
        *(column(on).alias(f"later__{place}") for place, on in enumerate(task.join_on)),
        column(later_time).alias("later__at"),
    )
    shown_at = column(contract.columns.time)
    conditions = [F.col("later__at").between(shown_at, shown_at + F.lit(task.within))]
    for place, on in enumerate(task.join_on):
        mine, theirs = column(on), F.col(f"later__{place}")
        pair = comparable(
            mine, impressions.schema[stored_name(on)].dataType, theirs, later.schema[stored_name(on)].dataType
        )
        conditions.append(pair[0] == pair[1])
    matched = impressions.join(rows, on=conditions, how="inner")
    first = matched.groupBy(*(column(part).alias(f"key__{place}") for place, part in enumerate(key))).agg(
        F.min("later__at").alias(f"matched_at__{name}")
    )
    same_key = [column(part) == F.col(f"key__{place}") for place, part in enumerate(key)]
    return impressions.join(first, on=same_key, how="left").drop(
        *(f"key__{place}" for place in range(len(key)))
    )
