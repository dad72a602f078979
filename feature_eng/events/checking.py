"""Each raw row typed, or with the reason why it is a reject."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StringType, StructType

from feature_eng.contract import Contract, Task, Time, quoted, stored_name
from feature_eng.contract.faults import ROW_KEY
from feature_eng.digests import hashable
from feature_eng.events.joining import SideRows
from feature_eng.events.related import joined_columns, summed_columns, told_columns
from feature_eng.events.times import LATEST_SECOND, time_hint, to_seconds
from feature_eng.events.values import Wanted, is_blank, raw_column, scenario_index_column, to_typed
from feature_eng.events.wanted import declared_type, told_type, wanted_type
from feature_eng.sources.tables import CORRUPT_COLUMN

# Far from the largest float of 32 bits, also when a kept negative weighs many times as much.
LARGEST_WEIGHT = 1e30


def checked_impressions(
    frame: DataFrame,
    sides: SideRows,
    contract: Contract,
    before: DataFrame | None = None,
    *,
    has_repeats: bool = True,
) -> DataFrame:
    """``raw`` and ``typed`` as structs, and the ``reason`` of a reject.

    Args:
        frame: The impression table's rows.
        sides: The same rows with the columns of side tables.
        contract: What the columns mean.
        before: Events of earlier days, whose keys are taken.
        has_repeats: Whether rows may have equal keys; if not, nothing is shuffled to find them.
    """
    columns = contract.columns
    schema = sides.rows.schema
    labels, durations = contract.label_columns, contract.duration_columns
    joined_on = [name for task in contract.tasks.values() for name in task.join_on]
    scenario = contract.scenario.column
    raw_scenario = _typed(
        scenario,
        schema[scenario].dataType,
        sides.table_of.get(scenario, contract.source.main_table),
        contract,
    )
    scenario_type = sides.rows.select(raw_scenario.alias("scenario")).schema["scenario"].dataType
    index = scenario_index_column(contract, scenario_type, raw_scenario)
    typed: dict[str, Column] = {}
    reasons: list[Column] = []
    for name in dict.fromkeys((*columns.key, columns.user, columns.item, columns.list)):
        if name is not None:
            reasons.append(F.when(is_blank(name, schema[name].dataType), f"null {name}"))
    for name in dict.fromkeys((*contract.raw_columns, *labels, *durations, *joined_on)):
        if name == ROW_KEY:
            continue
        dtype = schema[name].dataType
        table = sides.table_of.get(name, contract.source.main_table)
        typed[name] = _typed(name, dtype, table, contract)
        if columns.time_reading is not None and name == columns.time:
            reasons += _time_reasons(name, dtype, columns.time_reading)
            continue
        wanted = wanted_type(name, dtype, declared_type(name, table, contract), contract)
        if _may_fail(dtype, wanted):
            reasons.append(F.when(_is_unreadable(name, dtype, wanted, typed[name]), f"unparsable {name}"))
        if name in (columns.position, contract.weight):
            reasons.append(F.when(typed[name].isNull(), f"null {name}"))
        elif (has_label := _must_have_label(labels.get(name, ()), index, contract)) is not None:
            reasons.append(F.when(typed[name].isNull() & has_label, f"null {name}"))
        if name in durations:
            reasons.append(F.when(~typed[name].between(0, LATEST_SECOND), f"bad duration in {name}"))
        if name == contract.weight:
            reasons.append(F.when(~typed[name].between(0, LARGEST_WEIGHT), f"bad weight in {name}"))
    reasons.append(F.when(is_blank(scenario, schema[scenario].dataType), f"null {scenario}"))
    reasons.append(F.when(index.isNull(), f"unknown scenario in {scenario}"))
    typed |= {flag: raw_column(flag) for flag in sides.flags}
    kept = [name for name in sides.rows.columns if name not in sides.flags]
    checked = _as_structs(sides.rows, kept, typed, reasons)
    if columns.key:
        return _with_duplicates_rejected(checked, contract, before, has_repeats=has_repeats)
    return _with_row_key(checked, frame.columns)


def checked_related(frame: DataFrame, contract: Contract, table: str) -> DataFrame:
    """The same of another table of events."""
    time = contract.related_times[table]
    typed: dict[str, Column] = {}
    reasons: list[Column] = []
    told = {name: where for where, name in told_columns(contract, table)}
    for name in told:
        dtype = frame.schema[name].dataType
        wanted = told_type(name, dtype, table, contract)
        typed[name] = to_typed(raw_column(name), dtype, wanted)
        if name in (contract.columns.user, contract.columns.item):
            reasons.append(F.when(is_blank(name, dtype), f"null {name}"))
        if _may_fail(dtype, wanted):
            reasons.append(F.when(_is_unreadable(name, dtype, wanted, typed[name]), f"unparsable {name}"))
    if any(feature.per_scenario for feature in contract.readers_of(table).values()):
        scenario = contract.scenario.column
        typed_as = frame.select(typed[scenario].alias("scenario")).schema["scenario"].dataType
        index = scenario_index_column(contract, typed_as, typed[scenario])
        reasons.append(F.when(index.isNull(), f"unknown scenario in {scenario}"))
    for name in summed_columns(contract, table):
        dtype = frame.schema[name].dataType
        typed[name] = to_typed(raw_column(name), dtype, "number")
        reasons.append(F.when(is_blank(name, dtype), f"null {name}"))
        reasons.append(F.when(typed[name].isNull(), f"unparsable {name}"))
    for name in joined_columns(contract, table):
        dtype = frame.schema[name].dataType
        typed[name] = to_typed(raw_column(name), dtype, declared_type(name, table, contract) or "id")
        reasons.append(F.when(is_blank(name, dtype), f"null {name}"))
        reasons.append(F.when(typed[name].isNull(), f"unparsable {name}"))
    dtype = frame.schema[time.column].dataType
    typed[time.column] = to_seconds(raw_column(time.column), dtype, time)
    reasons += _time_reasons(time.column, dtype, time)
    return _as_structs(frame, frame.columns, typed, reasons)


def typed_column(name: str, frame: DataFrame, contract: Contract) -> Column:
    """A raw column of the impression table as what the contract makes of it."""
    return _typed(name, frame.schema[name].dataType, contract.source.main_table, contract)


def _typed(name: str, dtype: DataType, table: str, contract: Contract) -> Column:
    """A column of the impressions as what the contract makes of it."""
    reading = contract.columns.time_reading
    if reading is not None and name == contract.columns.time:
        return to_seconds(raw_column(name), dtype, reading)
    wanted = wanted_type(name, dtype, declared_type(name, table, contract), contract)
    return to_typed(raw_column(name), dtype, wanted)


def _time_reasons(name: str, dtype: DataType, reading: Time) -> list[Column]:
    value = raw_column(name)
    hint = F.concat(F.lit(f"bad time in {name}: "), time_hint(value, dtype, reading))
    bad = F.coalesce(hint, F.lit(f"bad time in {name}"))
    return [
        F.when(is_blank(name, dtype), f"null {name}"),
        F.when(to_seconds(value, dtype, reading).isNull(), bad),
    ]


def _must_have_label(tasks: Iterable[Task], index: Column, contract: Contract) -> Column | None:
    """Whether a row needs a value in the column of these tasks' labels; ``None`` where none does."""
    strict = [task for task in tasks if task.null_is == "reject"]
    if not strict:
        return None
    if any(task.scenarios is None for task in strict):
        return F.lit(True)
    theirs = {contract.scenario_names.index(name) for task in strict for name in task.scenarios or ()}
    # Of an unknown scenario it is not said which tasks it has.
    return F.coalesce(index.isin(sorted(theirs)), F.lit(True))


def _may_fail(dtype: DataType, wanted: Wanted) -> bool:
    """Whether a value that is there may yet be none of what is wanted."""
    return wanted != "string" and not (isinstance(dtype, StringType) and wanted in ("id", "as it is"))


def _is_unreadable(name: str, dtype: DataType, wanted: Wanted, typed: Column) -> Column:
    if isinstance(dtype, ArrayType):
        element = dtype.elementType
        return F.exists(
            raw_column(name),
            lambda each: each.isNotNull() & to_typed(each, element, "id").isNull(),
        )
    return typed.isNull() & ~is_blank(name, dtype)


def _as_structs(
    frame: DataFrame, kept: Sequence[str], typed: Mapping[str, Column], reasons: list[Column]
) -> DataFrame:
    if CORRUPT_COLUMN in kept:
        reasons = [F.when(raw_column(CORRUPT_COLUMN).isNotNull(), "unreadable record"), *reasons]
    return frame.select(
        F.struct(*(raw_column(name) for name in kept)).alias("raw"),
        F.struct(*(value.alias(stored_name(name)) for name, value in typed.items())).alias("typed"),
        F.coalesce(*reasons).alias("reason"),
    )


def _with_duplicates_rejected(
    checked: DataFrame, contract: Contract, before: DataFrame | None, *, has_repeats: bool
) -> DataFrame:
    columns = contract.columns
    typed = {name: F.col(f"typed.{quoted(stored_name(name))}") for name in contract.raw_columns}
    numbered, is_repeated = checked, F.lit(False)
    if has_repeats:
        order = [typed[name].asc() for name in (columns.time, columns.position) if name is not None]
        # Rows that tie in all of this are equal, so which of them stays makes no difference.
        raw = checked.schema["raw"].dataType
        assert isinstance(raw, StructType), "made so"
        hashed = F.xxhash64("raw") if not _holds_map(raw) else content_hash(raw, raw.names)
        order += [hashed.asc(), _strict_hash(raw, raw.names).asc()]
        same_key = Window.partitionBy(F.col("reason").isNull(), *(typed[name] for name in columns.key))
        numbered = checked.withColumn("place", F.row_number().over(same_key.orderBy(*order)))
        is_repeated = F.col("place") > 1
    if before is not None:
        taken = before.select(
            *(F.col(quoted(stored_name(name))).alias(f"taken__{name}") for name in columns.key)
        )
        same = [typed[name] == F.col(quoted(f"taken__{name}")) for name in columns.key]
        numbered = numbered.join(taken, on=same, how="left")
        is_repeated |= F.col(quoted(f"taken__{columns.key[0]}")).isNotNull()
    is_repeated &= F.col("reason").isNull()
    return numbered.select(
        F.col("raw"),
        F.col("typed"),
        F.when(is_repeated, "duplicate key").otherwise(F.col("reason")).alias("reason"),
    )


def _with_row_key(checked: DataFrame, content: Sequence[str]) -> DataFrame:
    """An id for each row: of its content, and of its number among rows of equal content.

    Rows of equal content are alike in all else too, so it makes no difference which gets which number, and
    the ids do not depend on the order of rows or files.
    """
    raw = checked.schema["raw"].dataType
    assert isinstance(raw, StructType), "made so"
    hashed = checked.withColumn("content", content_hash(raw, content))
    number = F.row_number().over(Window.partitionBy("content").orderBy(_strict_hash(raw, content)))
    return hashed.withColumn("number", number).select(
        F.col("raw"),
        F.struct("typed.*", F.xxhash64("content", "number").alias(ROW_KEY)).alias("typed"),
        F.col("reason"),
    )


def content_hash(raw: StructType, names: Sequence[str]) -> Column:
    """A hash of some of the columns of ``raw``; maps, which Spark does not hash, by their JSON."""
    fields = ((name, F.col(f"raw.{quoted(name)}")) for name in names)
    return F.xxhash64(
        *(F.to_json(F.struct(value)) if _holds_map(raw[name].dataType) else value for name, value in fields)
    )


def _strict_hash(raw: StructType, names: Sequence[str]) -> Column:
    """Another hash of the same, which tells rows apart whose values moved beside a null: `content_hash` does not."""
    fields = ((F.col(f"raw.{quoted(name)}"), raw[name].dataType) for name in names)
    return F.xxhash64(*(part for value, dtype in fields for part in hashable(value, dtype)))


def _holds_map(dtype: DataType) -> bool:
    if isinstance(dtype, StructType):
        return any(_holds_map(field.dataType) for field in dtype.fields)
    if isinstance(dtype, ArrayType):
        return _holds_map(dtype.elementType)
    return isinstance(dtype, MapType)
