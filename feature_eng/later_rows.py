"""Rows of later tables (orders, payments) and the impressions that they count for, of which labels are made."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from feature_eng.contract import Contract, ContractError, Task, stored_name
from feature_eng.events import Events, column, comparable
from feature_eng.events.joining import seen_keys
from feature_eng.snapshot import CellCount

_LATER_AT, _AMOUNT = "later__at", "later__amount"


def with_matches(
    impressions: DataFrame, later: DataFrame, name: str, task: Task, contract: Contract, end: int | None
) -> DataFrame:
    """Add ``matched_at__<task>``, the time of the first row that counts for an impression, or null.

    Of a task with ``sum`` instead ``sum__<task>``, over all rows that count for it.

    Args:
        impressions: Typed rows of the impressions.
        later: Typed rows of the task's table.
        name: Of the task.
        task: Says what belongs together, and what counts.
        contract: The data contract.
        end: Rows after this second since the epoch do not count.
    """
    key = contract.key
    rows = _numbered(later, task, contract)
    if end is not None:
        rows = rows.where(F.col(_LATER_AT) <= F.lit(end))
    shown_at = _shown_at(contract)
    same = _same_keys(impressions, later, task)
    matched = impressions.join(rows, on=[_inside(task, contract), *same], how="inner")
    if task.attribution != "every":
        # Equal later rows have equal candidates, so that they need not be told apart.
        same_row = Window.partitionBy(*rows.columns)
        touch = F.struct(shown_at, *(column(part) for part in key))
        chosen = F.max(touch) if task.attribution == "last" else F.min(touch)
        matched = (
            matched.withColumn("touch__", touch)
            .withColumn("chosen__", chosen.over(same_row))
            .where(F.col("touch__") == F.col("chosen__"))
        )
    found = (
        F.min(_LATER_AT).alias(f"matched_at__{name}")
        if task.sum is None
        else F.sum(_AMOUNT).alias(f"sum__{name}")
    )
    counted = matched.groupBy(*(column(part).alias(f"key__{place}") for place, part in enumerate(key))).agg(
        found
    )
    same_key = [column(part) == F.col(f"key__{place}") for place, part in enumerate(key)]
    return impressions.join(counted, on=same_key, how="left").drop(
        *(f"key__{place}" for place in range(len(key)))
    )


def check_matches(
    events: Events, cells: Sequence[CellCount], contract: Contract, quiet: Collection[str] = ()
) -> None:
    """Stop where no row at all of a label's table counts for an impression.

    The tables are looked at only where the labels leave it open: none is 1, or all are without a row.

    Args:
        events: What a build read.
        cells: What it counted of its examples.
        contract: What was built.
        quiet: Tables that may be without a row as yet.

    Raises:
        ContractError: Names the task and its table, with the keys on both sides, or how far apart in time rows
            of equal keys lie.
    """
    faults = []
    for place, (name, task) in enumerate(contract.tasks.items()):
        if (
            task.table is None
            or task.table in quiet
            or (any(cell.positives[place] for cell in cells) and not _holds_without_rows(task))
        ):
            continue
        fault = _unmatched(task, events, contract)
        if fault:
            faults.append(f"tasks.{name}: {fault}")
    if faults:
        raise ContractError(faults)


def _unmatched(task: Task, events: Events, contract: Contract) -> str | None:
    assert task.table is not None, "asked for tasks with a table"
    impressions, later = events.impressions, events.related[task.table]
    pairs = impressions.join(
        _numbered(later, task, contract), on=_same_keys(impressions, later, task), how="inner"
    )
    after = F.col(_LATER_AT) - _shown_at(contract)
    found = pairs.agg(
        F.count(F.lit(1)).alias("pairs"),
        F.count_if(_inside(task, contract)).alias("inside"),
        F.min(after).alias("least"),
        F.max(after).alias("most"),
    ).collect()[0]
    if found["inside"]:
        return None
    what, by = f"{task.table!r}", ", ".join(task.join_on)
    if found["pairs"]:
        return (
            f"no row of {what} lies within {task.within:,} s after an impression of equal {by}; of {found['pairs']:,} "
            f"such pairs the row comes {found['least']:,} to {found['most']:,} s after the impression; "
            "expected another 'within', or times read in another way"
        )
    rows = later.count()
    if rows == 0:
        return f"{what} has no rows that can be used, so that every label would be 0"
    keys = {contract.source.main_table: impressions, task.table: later}
    seen = " and ".join(
        seen_keys(table, frame.select(*(column(name) for name in task.join_on)))
        for table, frame in keys.items()
    )
    return f"none of {rows:,} rows of {what} belongs to an impression by {by}; there are {seen}"


def _holds_without_rows(task: Task) -> bool:
    """Whether a sum over no rows makes label 1."""
    if task.sum is None:
        return False
    return task.greater_than < 0 if task.greater_than is not None else (task.at_least or 0) <= 0


def _numbered(later: DataFrame, task: Task, contract: Contract) -> DataFrame:
    """The task's columns of its table by number, so that they meet none of the impressions'."""
    amount = [column(task.sum).cast("double").alias(_AMOUNT)] if task.sum is not None else []
    assert task.table is not None, "asked for a table's task"
    time = contract.related_times[task.table].column
    return later.select(
        *(column(on).alias(f"later__{place}") for place, on in enumerate(task.join_on)),
        column(time).alias(_LATER_AT),
        *amount,
    )


def _same_keys(impressions: DataFrame, later: DataFrame, task: Task) -> list[Column]:
    conditions = []
    for place, on in enumerate(task.join_on):
        mine, theirs = column(on), F.col(f"later__{place}")
        pair = comparable(
            mine, impressions.schema[stored_name(on)].dataType, theirs, later.schema[stored_name(on)].dataType
        )
        conditions.append(pair[0] == pair[1])
    return conditions


def _inside(task: Task, contract: Contract) -> Column:
    """Whether a row lies in the window after an impression, both ends included."""
    assert task.within is not None, "checked by the contract"
    return F.col(_LATER_AT).between(_shown_at(contract), _shown_at(contract) + F.lit(task.within))


def _shown_at(contract: Contract) -> Column:
    assert contract.columns.time is not None, "checked by the contract"
    return column(contract.columns.time)
