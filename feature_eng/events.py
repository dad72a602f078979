"""Raw rows -> typed events. Every normalisation of raw values ends here.

No row is lost: each comes out as an event, or among the rejects with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DateType,
    FractionalType,
    IntegralType,
    NumericType,
    StringType,
    TimestampNTZType,
    TimestampType,
)

from feature_eng.contract import Bucketed, Contract, ContractError, MultiValued, Numeric, ScenarioValues, Task
from feature_eng.contract_parts import NUMBER_PATTERN
from feature_eng.sources.tables import CORRUPT_COLUMN
from foundation.settings import suggestion

# Seconds up to the year 3000: milliseconds given for seconds lie beyond, and are refused.
LATEST_SECOND = 32_503_680_000


@dataclass(frozen=True)
class Events:
    """Typed rows of all tables, and the rows that could not become one.

    Attributes:
        impressions: The contract's raw columns and those the labels need; unique by key.
            Whole numbers are bigint, other numbers double, time is seconds since the epoch.
        related: Later events by table name (orders, ...): the join columns and the time.
        rejects: ``table``, ``reason`` and ``row``, the raw row as JSON.
    """

    impressions: DataFrame
    related: Mapping[str, DataFrame]
    rejects: DataFrame


@dataclass(frozen=True)
class RowCount:
    """What became of one raw table's rows; ``rows_in = rows_out + rejected``."""

    rows_in: int
    rows_out: int
    rejected: int


def to_events(raw: Mapping[str, DataFrame], contract: Contract) -> Events:
    """Type and check the raw tables.

    Of several rows with the same key the first in time stays (then the first by position).

    Args:
        raw: Table name -> raw rows, as :func:`feature_eng.sources.raw.read_raw` gives them.
        contract: What the columns mean.

    Raises:
        ContractError: Tables or columns that the contract names and the data lack, all of them.
    """
    faults = list(_missing_columns(raw, contract))
    if faults:
        raise ContractError(faults)
    main = contract.source.main_table
    checked = {main: _checked_impressions(raw[main], contract)}
    for table, (join_on, time) in _related_columns(contract).items():
        checked[table] = _checked_related(raw[table], contract, table, join_on, time)
    accepted = {
        table: frame.where(F.col("reason").isNull()).select("typed.*") for table, frame in checked.items()
    }
    rejects = [
        frame.where(F.col("reason").isNotNull()).select(
            F.lit(table).alias("table"),
            F.col("reason"),
            F.to_json("raw", {"ignoreNullFields": "false"}).alias("row"),
        )
        for table, frame in checked.items()
    ]
    return Events(
        impressions=accepted.pop(main),
        related=accepted,
        rejects=reduce(DataFrame.unionByName, rejects),
    )


def count_rows(raw: Mapping[str, DataFrame], events: Events, contract: Contract) -> dict[str, RowCount]:
    """Count each table's rows in, out and rejected.

    Raises:
        RuntimeError: A row was lost or doubled on the way.
    """
    by_table = {row["table"]: row["count"] for row in events.rejects.groupBy("table").count().collect()}
    counts: dict[str, RowCount] = {}
    for table, frame in {contract.source.main_table: events.impressions, **events.related}.items():
        count = RowCount(raw[table].count(), frame.count(), by_table.get(table, 0))
        if count.rows_in != count.rows_out + count.rejected:
            raise RuntimeError(f"table {table!r} does not add up: {count}")
        counts[table] = count
    return counts


def scenario_index_column(contract: Contract, dtype: DataType | None = None) -> Column:
    """Place of a row's scenario in the contract, from the raw scenario column; null when unknown.

    Agrees with :meth:`feature_eng.contract.Contract.scenario_index` value by value.

    Args:
        contract: Names the column and its values.
        dtype: The column's type; knowing it spares reading numbers by way of text.
    """
    raw = column(contract.scenario.column)
    cases = [
        F.when(_is_one_of(raw, dtype, values), F.lit(index).cast("int"))
        for index, values in enumerate(contract.scenario.values.values())
    ]
    return F.coalesce(*cases)


def column(name: str) -> Column:
    """A top-level column by its exact name, dots and all."""
    return F.col(f"`{name}`")


def number(value: Column, dtype: DataType | None = None) -> Column:
    """A raw value as a finite double, null otherwise; see :func:`feature_eng.contract.to_number`."""
    if isinstance(dtype, IntegralType):
        return value.cast("double")
    text = F.trim(value.cast("string"))
    parsed = F.when(text.rlike(f"^({NUMBER_PATTERN})\\z"), text.try_cast("double"))
    return F.when(F.abs(parsed) != float("inf"), parsed)


def _is_one_of(raw: Column, dtype: DataType | None, values: ScenarioValues) -> Column:
    if values.range is not None:
        low, high = values.range
        inside = number(raw, dtype).isNotNull()
        if low is not None:
            inside &= number(raw, dtype) >= low
        return inside if high is None else inside & (number(raw, dtype) <= high)
    texts = [value for value in values.one_of or () if isinstance(value, str)]
    numbers = [float(value) for value in values.one_of or () if not isinstance(value, str)]
    found = F.lit(False)
    if texts:
        found |= F.coalesce(raw.cast("string").isin(texts), F.lit(False))
    return found | F.coalesce(number(raw, dtype).isin(numbers), F.lit(False)) if numbers else found


def _checked_impressions(frame: DataFrame, contract: Contract) -> DataFrame:
    """``raw`` and ``typed`` as structs, and the ``reason`` of a reject."""
    columns = contract.columns
    types = _declared_types(contract, contract.source.main_table)
    labels = {task.column: task for task in contract.tasks.values() if task.column is not None}
    typed: dict[str, Column] = {}
    reasons: list[Column] = []
    for name in dict.fromkeys((*columns.key, columns.user, columns.item)):
        reasons.append(F.when(_is_blank(name), f"null {name}"))
    for name in dict.fromkeys((*contract.raw_columns, *labels)):
        dtype = frame.schema[name].dataType
        if name == columns.time:
            typed[name] = _seconds(column(name), dtype)
            reasons.append(F.when(_is_blank(name), f"null {name}"))
            reasons.append(F.when(typed[name].isNull(), f"bad time in {name}"))
            continue
        wanted = "integer" if name == columns.position else types.get(name) or _wanted_type(name, contract)
        typed[name] = _typed(column(name), dtype, wanted, _separator(name, contract))
        if wanted != "string":
            unreadable = (
                column(name).isNotNull() & typed[name].isNull() & ~_is_blank(name) & ~_is_nan(name, dtype)
            )
            reasons.append(F.when(unreadable, f"unparsable {name}"))
        if name in labels or name == columns.position:
            reasons.append(F.when(typed[name].isNull(), f"null {name}"))
    scenario = contract.scenario.column
    reasons.append(F.when(_is_blank(scenario), f"null {scenario}"))
    reasons.append(
        F.when(
            scenario_index_column(contract, frame.schema[scenario].dataType).isNull(),
            f"unknown scenario in {scenario}",
        )
    )
    checked = _as_structs(frame, typed, reasons)
    return _with_duplicates_rejected(checked, contract)


def _checked_related(
    frame: DataFrame, contract: Contract, table: str, join_on: tuple[str, ...], time: str
) -> DataFrame:
    types = _declared_types(contract, table)
    typed: dict[str, Column] = {}
    reasons: list[Column] = []
    for name in join_on:
        wanted = types.get(name, "as it is")
        typed[name] = _typed(column(name), frame.schema[name].dataType, wanted, None)
        reasons.append(F.when(_is_blank(name), f"null {name}"))
        reasons.append(F.when(typed[name].isNull(), f"unparsable {name}"))
    typed[time] = _seconds(column(time), frame.schema[time].dataType)
    reasons.append(F.when(_is_blank(time), f"null {time}"))
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


def _typed(value: Column, dtype: DataType, wanted: str, separator: str | None) -> Column:
    if isinstance(dtype, ArrayType):
        return F.array_join(value.cast("array<string>"), separator or "|")
    if wanted == "number":
        return value.cast("bigint") if isinstance(dtype, IntegralType) else number(value, dtype)
    if wanted == "integer":
        if isinstance(dtype, IntegralType):
            return value.cast("bigint")
        whole = number(value)
        # Whole text is read as such: by way of a double, ids above 2^53 would collide.
        digits = F.trim(value.cast("string"))
        from_text = F.when(digits.rlike(r"^[+-]?\d+\z"), digits.try_cast("bigint"))
        return F.coalesce(from_text, F.when(whole == F.floor(whole), whole.try_cast("bigint")))
    if wanted == "string":
        return value.cast("string")
    if isinstance(dtype, IntegralType | BooleanType):
        return value.cast("bigint")
    if isinstance(dtype, FractionalType):
        return F.when(~F.isnan(value.cast("double")), value.cast("double"))
    return value.cast("string")


def _seconds(value: Column, dtype: DataType) -> Column:
    """Whole seconds since the epoch; text without a time zone is taken as UTC."""
    if isinstance(dtype, TimestampType):
        seconds = F.unix_seconds(value)
    elif isinstance(dtype, NumericType):
        seconds = F.floor(number(value, dtype)).cast("bigint")
    elif isinstance(dtype, StringType | DateType | TimestampNTZType):
        text = F.trim(value.cast("string"))
        has_zone = text.rlike(r"[:\d](Z|[+-]\d{2}(:?\d{2})?)\z") & text.rlike(r"[T ]\d{2}:")
        with_time = F.when(text.rlike(r"^\d{4}-\d{2}-\d{2}\z"), F.concat(text, F.lit("T00:00:00"))).otherwise(
            text
        )
        # Left alone, Spark completes a bare time of day with today's date, and reads text
        # without a zone in the session's.
        instant = F.when(has_zone, text).otherwise(F.concat(with_time, F.lit("Z")))
        is_date = text.rlike(r"^\d{4}-\d{2}-\d{2}")
        iso = F.when(is_date, F.unix_seconds(instant.try_cast("timestamp")))
        seconds = F.coalesce(F.floor(number(text)).try_cast("bigint"), iso)
    else:
        seconds = F.lit(None).cast("bigint")
    return F.when(seconds.between(0, LATEST_SECOND), seconds)


def _is_blank(name: str) -> Column:
    return column(name).isNull() | (F.trim(column(name).cast("string")) == "")


def _is_nan(name: str, dtype: DataType) -> Column:
    """Whether a double is NaN, which many writers use for null."""
    return F.isnan(column(name).cast("double")) if isinstance(dtype, FractionalType) else F.lit(False)


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


def _related_columns(contract: Contract) -> dict[str, tuple[tuple[str, ...], str]]:
    """Table -> the columns that tasks join it on, and its time column."""
    related: dict[str, tuple[tuple[str, ...], str]] = {}
    for name, task in contract.tasks.items():
        if task.table is None:
            continue
        time = task.time or contract.columns.time
        assert time is not None, "the contract refuses labels from tables without a time column"
        join_on, known = related.get(task.table, ((), time))
        if known != time:
            raise ContractError(
                [f"tasks.{name}.time: {task.table!r} has two time columns, {known!r} and {time!r}"]
            )
        related[task.table] = (tuple(dict.fromkeys((*join_on, *task.join_on))), time)
    return related


def _missing_columns(raw: Mapping[str, DataFrame], contract: Contract) -> Iterator[str]:
    main, columns = contract.source.main_table, contract.columns
    wanted = [(main, where, name) for where, name in _impression_columns(contract)]
    for table, (_, time) in _related_columns(contract).items():
        for task_name, task in contract.tasks.items():
            if task.table == table:
                wanted += [(table, f"tasks.{task_name}.join_on", name) for name in task.join_on]
                wanted += [(main, f"tasks.{task_name}.join_on", name) for name in task.join_on]
                wanted.append((table, f"tasks.{task_name}.time", time))
    for table in dict.fromkeys(table for table, _, _ in wanted):
        if table not in raw:
            yield f"source: no table is called {table!r}; expected one of {', '.join(raw)}"
    for table, where, name in dict.fromkeys(wanted):
        if table in raw and name not in raw[table].columns:
            fault = f"{where}: the table {table!r} has no column {name!r}"
            if where == "columns.time":
                needed = ", ".join(contract.time_reasons)
                fault += (
                    f"; needed by {needed}" if needed else "; leave columns.time out for data without times"
                )
            yield fault + suggestion(name, [other for other in raw[table].columns if other != columns.time])


def _impression_columns(contract: Contract) -> Iterator[tuple[str, str]]:
    columns = contract.columns
    for name in columns.key:
        yield "columns.key", name
    for role in ("user", "item", "time", "position"):
        if getattr(columns, role) is not None:
            yield f"columns.{role}", getattr(columns, role)
    yield "scenario.column", contract.scenario.column
    for task_name, task in contract.tasks.items():
        if task.column is not None:
            yield f"tasks.{task_name}.column", task.column
    for name, feature in contract.features.items():
        raw_column = getattr(feature, "column", None)
        if raw_column is not None:
            yield f"features.{name}.column", raw_column
