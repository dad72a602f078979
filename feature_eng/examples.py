"""Events -> examples: one row per impression, with its scenario and one label per task.

A label is 1, 0 or null: there is none, or none yet. It is there once it could be known: at the row's
own time, ``known_after`` it, or, from a later table, when the attribution window has closed (a 1 as soon
as it is sure). What the data's end is past is *mature*; a row with a label that is not is kept, its
unknown labels are null, and it belongs to no split: counted as 0 it would teach that the newest rows
never convert, counted only where a 1 came early, that they always do.

``known_at__<task>`` says when a label could be known at the earliest; behaviour features look no further.
"""

from __future__ import annotations

from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, StringType

from feature_eng.contract import Contract, Task, stored_name, to_boolean, to_number
from feature_eng.data_end import data_end, extents
from feature_eng.events import Events, column, number, scenario_index_column
from feature_eng.later_rows import with_matches


def to_examples(
    events: Events, contract: Contract, as_of: int | None = None, end: int | None = None
) -> DataFrame:
    """Join impressions with what followed them.

    Args:
        events: Typed rows of all tables.
        contract: The data contract.
        as_of: Nothing later than this second since the epoch is known. ``None``: the data end with the last
            row of the impressions or of the tables that labels come from; a label that stands in the row
            itself is then known, whatever column says when it came about.
        end: The second with which the data end, where ``events`` are only some of them.

    Returns:
        The contract's raw columns, ``scenario`` (name), ``label__<task>`` (int 0 or 1, or null), and where
        the contract calls for them: ``known_at__<task>`` (seconds since the epoch; null for never) of labels
        that are known after the row's time, and ``is_mature``. As many rows as impressions.
    """
    if end is None:
        end = as_of if as_of is not None else data_end(extents(events, contract))
    joined = events.impressions
    for name, task in contract.tasks.items():
        if task.table is not None:
            joined = with_matches(joined, events.related[task.table], name, task, contract, end)
    scenario = _scenario(joined, contract)
    selected = [*(column(name) for name in contract.raw_columns), scenario.alias("scenario")]
    known_at: list[Column] = []
    for name, task in contract.tasks.items():
        label = _label(name, task, joined)
        due = _due(task, contract, as_of)
        in_scenario = _in_scenario(task, scenario)
        if due is not None:
            is_due = due <= F.lit(end)
            # Without `sum`, a 1 from a table is sure before its window closes.
            is_sure = label == 1 if task.table is not None and task.sum is None else F.lit(False)
            label = F.when(is_sure | F.coalesce(is_due, F.lit(True)), label)
        if task.scenarios is not None:
            label = F.when(in_scenario, label)
        selected.append(label.cast("int").alias(f"label__{name}"))
        if task.is_delayed:
            known_at.append(_known_at(name, task, contract).cast("bigint").alias(f"known_at__{name}"))
    return joined.select(*selected, *known_at, *_is_mature(scenario, contract, as_of, end))


def times_of(impressions: DataFrame, contract: Contract, as_of: int | None, end: int | None) -> DataFrame:
    """Time and ``is_mature`` of the examples, which need no row of another table.

    Args:
        impressions: Typed rows.
        contract: A contract with a time.
        as_of: As `to_examples` has it.
        end: The second with which the data end.
    """
    assert contract.columns.time is not None, "asked for rows with times"
    scenario = _scenario(impressions, contract)
    return impressions.select(column(contract.columns.time), *_is_mature(scenario, contract, as_of, end))


def _scenario(rows: DataFrame, contract: Contract) -> Column:
    """Name of the scenario."""
    names = F.array(*(F.lit(name) for name in contract.scenario_names))
    dtype = rows.schema[stored_name(contract.scenario.column)].dataType
    return F.element_at(names, scenario_index_column(contract, dtype) + 1)


def _in_scenario(task: Task, scenario: Column) -> Column:
    """Whether a row's scenario has the task."""
    return F.lit(True) if task.scenarios is None else scenario.isin(list(task.scenarios))


def _is_mature(scenario: Column, contract: Contract, as_of: int | None, end: int | None) -> list[Column]:
    """Whether a row and all its labels are known; none where no label waits, and all rows are known."""
    known = []
    if as_of is not None and contract.columns.time is not None:
        # In a scenario without labels nothing else tells a row from one that is known.
        known.append(column(contract.columns.time) <= F.lit(as_of))
    for task in contract.tasks.values():
        due = _due(task, contract, as_of)
        if due is not None:
            known.append(~_in_scenario(task, scenario) | F.coalesce(due <= F.lit(end), F.lit(True)))
    return [reduce(Column.__and__, known).alias("is_mature")] if known else []


def _label(name: str, task: Task, joined: DataFrame) -> Column:
    """The label as if everything were known."""
    if task.sum is not None:
        return _threshold(task, F.coalesce(F.col(f"sum__{name}"), F.lit(0.0))).cast("int")
    if task.table is not None:
        return F.col(f"matched_at__{name}").isNotNull().cast("int")
    assert task.column is not None, "a task has a column or a table"
    label = _rule(task, column(task.column), joined.schema[stored_name(task.column)].dataType).cast("int")
    return F.coalesce(label, F.lit(0)) if task.null_is == 0 else label


def _rule(task: Task, value: Column, dtype: DataType) -> Column:
    if isinstance(task.equals, str) and isinstance(dtype, StringType):
        return value == task.equals
    if task.equals is not None:
        truth = to_boolean(task.equals)
        wanted = to_number(task.equals) if truth is None else float(truth)
        return number(value, dtype) == F.lit(wanted)
    return _threshold(task, number(value, dtype))


def _threshold(task: Task, value: Column) -> Column:
    return value > task.greater_than if task.greater_than is not None else value >= task.at_least


def _due(task: Task, contract: Contract, as_of: int | None) -> Column | None:
    """When a label is known at the latest; ``None`` where it stands in the row and nothing says that it waits."""
    if contract.columns.time is None:
        return None
    shown_at = column(contract.columns.time)
    if task.within is not None:
        return shown_at + F.lit(task.within)
    if isinstance(task.known_after, int):
        return shown_at + F.lit(task.known_after)
    if as_of is None:
        return None
    return shown_at if task.known_after is None else _after_column(task, shown_at)


def _known_at(name: str, task: Task, contract: Contract) -> Column:
    """When a label could be known at the earliest."""
    assert contract.columns.time is not None, "checked by the contract"
    shown_at = column(contract.columns.time)
    if task.known_after is not None:
        seconds = task.known_after
        return shown_at + F.lit(seconds) if isinstance(seconds, int) else _after_column(task, shown_at)
    assert task.within is not None, "checked by the contract"
    window_end = shown_at + F.lit(task.within)
    # A sum may fall below its threshold again, so that it is known when its window has closed.
    return window_end if task.sum is not None else F.coalesce(F.col(f"matched_at__{name}"), window_end)


def _after_column(task: Task, shown_at: Column) -> Column:
    assert task.known_after_column is not None, "asked for tasks with such a column"
    return (shown_at + F.ceil(column(task.known_after_column))).cast("bigint")
