"""Each raw row typed, or with the reason why it is a reject."""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from feature_eng.contract import Bucketed, Contract, MultiValued, Numeric, Task
from feature_eng.events.values import column, is_blank, is_nan, scenario_index_column, to_seconds, to_typed
from feature_eng.sources.tables import CORRUPT_COLUMN


def checked_impressions(frame: DataFrame, contract: Contract) -> DataFrame:
    """``raw`` and ``typed`` as structs, and the ``reason`` of a reject."""
    columns = contract.columns
    types = _declared_types(contract, contract.source.main_table)
    labels = {task.column: task for task in contract.tasks.values() if task.column is not None}
    typed: dict[str, Column] = {}
    reasons: list[Column] = []
    for name in dict.fromkeys((*columns.key, columns.user, columns.item)):
        reasons.append(F.when(is_blank(name), f"null {name}"))
    for name in dict.fromkeys((*contract.raw_columns, *labels)):
        dtype = frame.schema[name].dataType
        if name == columns.time:
            typed[name] = to_seconds(column(name), dtype)
            reasons.append(F.when(is_blank(name), f"null {name}"))
            reasons.append(F.when(typed[name].isNull(), f"bad time in {name}"))
            continue
        wanted = "integer" if name == columns.position else types.get(name) or _wanted_type(name, contract)
        typed[name] = to_typed(column(name), dtype, wanted, _separator(name, contract))
        if wanted != "string":
            unreadable = (
                column(name).isNotNull() & typed[name].isNull() & ~is_blank(name) & ~is_nan(name, dtype)
            )
            reasons.append(F.when(unreadable, f"unparsable {name}"))
        if name in labels or name == columns.position:
            reasons.append(F.when(typed[name].isNull(), f"null {name}"))
    scenario = contract.scenario.column
    reasons.append(F.when(is_blank(scenario), f"null {scenario}"))
    reasons.append(
        F.when(
            scenario_index_column(contract, frame.schema[scenario].dataType).isNull(),
            f"unknown scenario in {scenario}",
        )
    )
    checked = _as_structs(frame, typed, reasons)
    return _with_duplicates_rejected(checked, contract)


def checked_related(
    frame: DataFrame, contract: Contract, table: str, join_on: tuple[str, ...], time: str
) -> DataFrame:
    """The same of a table of later events."""
    types = _declared_types(contract, table)
    typed: dict[str, Column] = {}
    reasons: list[Column] = []
    for name in join_on:
        wanted = types.get(name, "as it is")
        typed[name] = to_typed(column(name), frame.schema[name].dataType, wanted, None)
        reasons.append(F.when(is_blank(name), f"null {name}"))
        reasons.append(F.when(typed[name].isNull(), f"unparsable {name}"))
    typed[time] = to_seconds(column(time), frame.schema[time].dataType)
    reasons.append(F.when(is_blank(time), f"null {time}"))
    reasons.append(F.when(typed[time].isNull(), f"bad time in {time}"))
    return _as_structs(frame, typed, reasons)


def _as_structs(frame: DataFrame, typed: Mapping[str, Column], reasons: list[Column]) -> DataFrame:
    if CORRUPT_COLUMN in frame.columns:
        reasons = [F.when(column(CORRUPT_COLUMN).isNotNull(), "unreadable record"), *reasons]
    return frame.select(
        F.struct(*(column(name) for name in frame.columns)).alias("raw"),
        F.struct(*(value.alias(name) for name, value in typed.items())).alias("typed"),
        F.coalesce(*reasons).alias("reason"),
    )


def _with_duplicates_rejected(checked: DataFrame, contract: Contract) -> DataFrame:
    columns = contract.columns
    typed = {name: F.col(f"typed.`{name}`") for name in contract.raw_columns}
    order = [typed[name].asc() for name in (columns.time, columns.position) if name is not None]
    # Rows that tie in all of this are equal, so which of them stays makes no difference.
    order.append(F.xxhash64("raw").asc())
    same_key = Window.partitionBy(F.col("reason").isNull(), *(typed[name] for name in columns.key))
    place = F.row_number().over(same_key.orderBy(*order))
    is_repeated = F.col("reason").isNull() & (F.col("place") > 1)
    return checked.withColumn("place", place).select(
        F.col("raw"),
        F.col("typed"),
        F.when(is_repeated, "duplicate key").otherwise(F.col("reason")).alias("reason"),
    )


def _wanted_type(name: str, contract: Contract) -> str:
    readers = [
        f for f in contract.features.values() if isinstance(f, Numeric | Bucketed) and f.column == name
    ]
    thresholds = [task for task in contract.tasks.values() if task.column == name and _compares_numbers(task)]
    return "number" if readers or thresholds else "as it is"


def _compares_numbers(task: Task) -> bool:
    return not isinstance(task.equals, str)


def _separator(name: str, contract: Contract) -> str | None:
    found = (
        f.separator for f in contract.features.values() if isinstance(f, MultiValued) and f.column == name
    )
    return next(found, None)


def _declared_types(contract: Contract, table: str) -> Mapping[str, str]:
    listed = contract.source.tables.get(table)
    return listed.types if listed else {}
