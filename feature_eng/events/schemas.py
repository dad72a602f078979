"""What a contract wants of the raw tables, held against their schemas before a row is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, DecimalType, FractionalType, IntegralType, StringType

from feature_eng.contract import (
    Categorical,
    Contract,
    ContractError,
    Join,
    MultiValued,
    Task,
    Time,
    as_key,
    to_boolean,
    to_number,
)
from feature_eng.events.related import related_columns, told_columns
from feature_eng.events.times import as_written, is_naive, time_refusal
from feature_eng.events.values import Wanted, refusal, to_typed
from feature_eng.events.wanted import (
    declared_type,
    impression_columns,
    is_id,
    owners,
    readers,
    told_type,
    wanted_type,
)
from foundation.settings import suggestion


def check_schemas(raw: Mapping[str, DataFrame], contract: Contract, *, by_date: bool = False) -> None:
    """Hold the contract against the tables' schemas, without reading a row.

    Args:
        raw: Table name -> raw rows.
        contract: What the columns mean.
        by_date: Whether raw rows of some days alone may be asked for.

    Raises:
        ContractError: Tables and columns that the contract names and the data lack, all of them; or else
            columns of a type that cannot be read as what the contract makes of them, and times that are not known
            where rows are chosen by them, all of them.
    """
    faults = list(_missing(raw, contract)) or [
        *_unreadable(raw, contract),
        *_time_elsewhere(raw, contract, by_date=by_date),
    ]
    if faults:
        raise ContractError(list(dict.fromkeys(faults)))


def _missing(raw: Mapping[str, DataFrame], contract: Contract) -> Iterator[str]:
    main, columns = contract.source.main_table, contract.columns
    sides = {join.table: join for join in contract.source.join}
    wanted = [(main, where, name) for where, name in impression_columns(contract)]
    wanted += related_columns(contract)
    for place, join in enumerate(contract.source.join):
        where = f"source.join.{place}"
        wanted += [(table, f"{where}.on", name) for table in (main, join.table) for name in join.on]
        if join.as_of_time is not None:
            wanted.append((join.table, f"{where}.as_of", join.as_of_time.column))
        if join.newest is not None:
            wanted.append((join.table, f"{where}.newest", join.newest))
    for table in dict.fromkeys(table for table, _, _ in wanted):
        if table not in raw:
            yield f"source: no table is called {table!r}; expected one of {', '.join(raw)}"
    for table, where, name in dict.fromkeys(wanted):
        if table not in raw or name in raw[table].columns:
            continue
        others = [other for other in raw[table].columns if other != columns.time]
        if table == main and not where.startswith("source.join"):
            in_sides = [side for side in sides if side in raw and name in raw[side].columns]
            if len(in_sides) == 1:
                continue
            if in_sides:
                yield f"{where}: {name!r} is a column of {' and '.join(in_sides)}; rename all but one"
                continue
            others += [other for side in sides if side in raw for other in raw[side].columns]
        fault = f"{where}: the table {table!r} has no column {name!r}"
        if where == "columns.time":
            needed = ", ".join(contract.time_reasons)
            fault += f"; needed by {needed}" if needed else "; leave columns.time out for data without times"
        fault += suggestion(name, others)
        if table in contract.related_times and where.startswith("features."):
            fault += f"; a column of it that means the same takes the name by source.tables.{table}.rename"
        yield fault
    for place, join in enumerate(contract.source.join):
        if main in raw and join.table in raw:
            yield from _doubled(place, join, raw, contract)


def _doubled(place: int, join: Join, raw: Mapping[str, DataFrame], contract: Contract) -> Iterator[str]:
    """A side table's columns that the impressions have too: which one is meant?"""
    main = contract.source.main_table
    as_of = join.as_of_time.column if join.as_of_time else None
    not_carried = {*join.on, as_of, join.newest}
    for name in dict.fromkeys(name for _, name in impression_columns(contract)):
        if name in raw[main].columns and name in raw[join.table].columns and name not in not_carried:
            yield (
                f"source.join.{place}: {name!r} is a column of {main!r} and of {join.table!r}; "
                f"rename one: source.tables.{join.table}.rename: {{{name}: NAME}}"
            )


def _unreadable(raw: Mapping[str, DataFrame], contract: Contract) -> Iterator[str]:
    """Columns of a type that is not what the contract wants."""
    table_of = owners(raw, contract)
    spark = raw[contract.source.main_table].sparkSession
    times: list[tuple[str, str, Time]] = []
    reading = contract.columns.time_reading
    for where, name in impression_columns(contract):
        table = table_of[name]
        dtype = raw[table].schema[name].dataType
        if reading is not None and name == reading.column:
            times.append((where, table, reading))
            continue
        wanted = wanted_type(name, dtype, declared_type(name, table, contract), contract)
        why = refusal(name, dtype, wanted) or _clash(name, dtype, wanted, contract)
        if why:
            yield f"{where}: column {name!r} of {table!r} {why.replace('NAME', as_key(name))}"
    for name, task in contract.tasks.items():
        if task.column is not None:
            yield from _label_fault(name, task, raw[table_of[task.column]].schema[task.column].dataType)
    for name, task in contract.tasks.items():
        if task.table is not None:
            yield from _key_faults(f"tasks.{name}.join_on", task.join_on, task.table, raw, contract)
        if task.table is not None and task.sum is not None:
            why = refusal(task.sum, raw[task.table].schema[task.sum].dataType, "number")
            if why:
                yield f"tasks.{name}.sum: column {task.sum!r} of {task.table!r} {why.replace('NAME', as_key(task.sum))}"
    yield from _told_faults(raw, contract)
    for table, where, _ in related_columns(contract):
        if where.endswith(".time"):
            times.append((where, table, contract.related_times[table]))
    for place, join in enumerate(contract.source.join):
        where = f"source.join.{place}"
        for table in (contract.source.main_table, join.table):
            yield from _key_faults(f"{where}.on", join.on, table, raw, contract)
        if join.as_of_time is not None:
            times.append((f"{where}.as_of", join.table, join.as_of_time))
        if join.newest is not None and declared_type(join.newest, join.table, contract) is not None:
            yield from _key_faults(f"{where}.newest", (join.newest,), join.table, raw, contract)
    for where, table, time in times:
        why = time_refusal(spark, time, raw[table].schema[time.column].dataType)
        if why:
            yield f"{where}: column {time.column!r} of {table!r} {why}"
    yield from _zone_faults(times, raw)


def _zone_faults(times: Sequence[tuple[str, str, Time]], raw: Mapping[str, DataFrame]) -> Iterator[str]:
    """Times that would be read as of UTC beside others that are of a zone: hours too early or too late."""
    # Other places name such a column, and not how it is read.
    readings = [each for each in times if each[0].endswith((".time", ".as_of"))]
    named = next(((where, time.zone) for where, _, time in readings if time.zone not in (None, "UTC")), None)
    if named is None:
        return
    said, zone = named
    for where, table, time in readings:
        if time.zone is None and is_naive(time, raw[table].schema[time.column].dataType):
            written = as_written(where.rpartition(".")[2], time, zone=zone)
            yield (
                f"{where}: column {time.column!r} of {table!r} names no time zone while {said} says {zone!r}; write "
                f"{written}, or zone: UTC"
            )


def _time_elsewhere(raw: Mapping[str, DataFrame], contract: Contract, *, by_date: bool) -> Iterator[str]:
    """What looks rows up by the impressions' time, which is itself looked up in a side table."""
    main, time = contract.source.main_table, contract.columns.time
    if time is None or time in raw[main].columns:
        return
    side = owners(raw, contract)[time]
    if by_date:
        yield (
            f"--dates: columns.time {time!r} is a column of {side!r}; expected one of {main!r}, whose rows are read "
            "by their days"
        )
    for place, join in enumerate(contract.source.join):
        if join.as_of_time is not None:
            yield (
                f"source.join.{place}.as_of: columns.time {time!r} is a column of {side!r} and not known yet; expected "
                f"one of {main!r}, or {side!r} joined before {join.table!r}"
            )
        if join.table == side:
            return


def _key_faults(
    where: str, names: tuple[str, ...], table: str, raw: Mapping[str, DataFrame], contract: Contract
) -> Iterator[str]:
    for name in names:
        dtype = raw[table].schema[name].dataType
        why = refusal(name, dtype, declared_type(name, table, contract) or "id")
        if why:
            yield f"{where}: column {name!r} of {table!r} {why.replace('NAME', as_key(name))}"


def _told_faults(raw: Mapping[str, DataFrame], contract: Contract) -> Iterator[str]:
    """Columns that tell of the past, and are no values of the impressions' column of that name."""
    main, table_of = contract.source.main_table, owners(raw, contract)
    for table in contract.related_times:
        for where, name in told_columns(contract, table):
            dtype = raw[table].schema[name].dataType
            why = refusal(name, dtype, told_type(name, dtype, table, contract))
            if why:
                yield f"{where}: column {name!r} of {table!r} {why.replace('NAME', as_key(name))}"
                continue
            own = raw[table_of[name]].schema[name].dataType
            wanted = wanted_type(name, own, declared_type(name, table_of[name], contract), contract)
            if refusal(name, own, wanted):
                continue  # told of the impressions
            here, there = (
                frame.select(to_typed(F.lit(None).cast(kind), kind, read).alias("value"))
                .schema["value"]
                .dataType
                for frame, kind, read in (
                    (raw[table], dtype, told_type(name, dtype, table, contract)),
                    (raw[main], own, wanted),
                )
            )
            if isinstance(here, StringType) != isinstance(there, StringType):
                text, other = (
                    (table, table_of[name]) if isinstance(here, StringType) else (table_of[name], table)
                )
                yield (
                    f"{where}: column {name!r} is {here.simpleString()} in {table!r} and {there.simpleString()} in "
                    f"{table_of[name]!r}; say source.tables.{text}.types: {{{as_key(name)}: integer}}, or string of "
                    f"{other}"
                )


def _clash(name: str, dtype: DataType, wanted: Wanted, contract: Contract) -> str | None:
    """An id that is read as a number loses what a double cannot hold."""
    categorical = readers(name, contract, Categorical)
    listed = readers(name, contract, MultiValued)
    if listed and not isinstance(dtype, StringType | ArrayType):
        return f"is of type {dtype.simpleString()}; {listed[0]} needs a list, or a text of several values"
    if wanted == "number" and (categorical or isinstance(dtype, DecimalType)) and is_id(name, contract):
        is_whole = isinstance(dtype, IntegralType) or dtype.typeName() == "boolean"
        if isinstance(dtype, FractionalType | StringType) and not is_whole:
            reader = categorical[0] if categorical else "an id"
            return (
                f"is of type {dtype.simpleString()}, and read as a number and by {reader} as an id; "
                "say types: {NAME: integer}, or select it under a second name"
            )
    return None


def _label_fault(name: str, task: Task, dtype: DataType) -> Iterator[str]:
    """A value that a label's column can never equal."""
    given = task.equals
    if given is None or isinstance(dtype, StringType):
        return
    truth, read = to_boolean(given), to_number(given)
    where, kind = f"tasks.{name}.equals", dtype.simpleString()
    if dtype.typeName() == "boolean" and truth is None and read not in (0, 1):
        yield f"{where}: column {task.column!r} is of type boolean; expected true or false, not {given!r}"
    elif isinstance(dtype, IntegralType | FractionalType) and truth is None and read is None:
        yield f"{where}: column {task.column!r} is of type {kind}; expected a number, not {given!r}"
