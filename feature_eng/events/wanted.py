"""What a contract wants of the raw tables, held against their schemas before a row is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pyspark.sql import DataFrame
from pyspark.sql.types import ArrayType, DataType, DecimalType, FractionalType, IntegralType, StringType

from feature_eng.contract import (
    Behaviour,
    Bucketed,
    Categorical,
    Contract,
    ContractError,
    Join,
    MultiValued,
    Numeric,
    Task,
    Time,
    to_boolean,
    to_number,
)
from feature_eng.events.times import time_refusal
from feature_eng.events.values import Wanted, refusal
from foundation.settings import suggestion


def check_schemas(raw: Mapping[str, DataFrame], contract: Contract) -> None:
    """Hold the contract against the tables' schemas, without reading a row.

    Raises:
        ContractError: Tables and columns that the contract names and the data lack, all of them; or else
            columns of a type that cannot be read as what the contract makes of them, all of them.
    """
    faults = list(_missing(raw, contract)) or list(_unreadable(raw, contract))
    if faults:
        raise ContractError(list(dict.fromkeys(faults)))


def impression_columns(contract: Contract) -> Iterator[tuple[str, str]]:
    """Where the contract names a column of the impressions, and the column."""
    columns = contract.columns
    for name in columns.key:
        yield "columns.key", name
    for role in ("user", "item", "time", "position", "list"):
        if getattr(columns, role) is not None:
            yield f"columns.{role}", getattr(columns, role)
    yield "scenario.column", contract.scenario.column
    for task_name, task in contract.tasks.items():
        if task.column is not None:
            yield f"tasks.{task_name}.column", task.column
        if task.known_after_column is not None:
            yield f"tasks.{task_name}.known_after", task.known_after_column
        for name in task.join_on:
            yield f"tasks.{task_name}.join_on", name
    if contract.weight is not None:
        yield "weight", contract.weight
    if contract.split.column is not None:
        yield "split.column", contract.split.column
    for name, feature in contract.features.items():
        raw_column = getattr(feature, "column", None)
        if raw_column is not None:
            yield f"features.{name}.column", raw_column
        if isinstance(feature, Behaviour) and feature.by not in ("user", "item"):
            yield f"features.{name}.by", feature.by


def carried_columns(join: Join, raw: Mapping[str, DataFrame], contract: Contract) -> tuple[str, ...]:
    """Columns that the contract wants and the impressions get from a side table."""
    own = raw[contract.source.main_table].columns
    wanted = dict.fromkeys(name for _, name in impression_columns(contract))
    return tuple(name for name in wanted if name in raw[join.table].columns and name not in own)


def owners(raw: Mapping[str, DataFrame], contract: Contract) -> dict[str, str]:
    """Column of the impressions -> the table it comes from."""
    main = contract.source.main_table
    found = dict.fromkeys(raw[main].columns, main)
    for join in contract.source.join:
        found.update(dict.fromkeys(carried_columns(join, raw, contract), join.table))
    return found


def summed_columns(contract: Contract, table: str) -> tuple[str, ...]:
    """Number columns of a table that tasks add up, each once."""
    columns = (task.sum for task in contract.tasks.values() if task.table == table)
    return tuple(dict.fromkeys(name for name in columns if name is not None))


def related_columns(contract: Contract) -> dict[str, tuple[tuple[str, ...], Time]]:
    """Table -> the columns that tasks join it on, and how to read its times."""
    related: dict[str, tuple[tuple[str, ...], Time]] = {}
    for name, task in contract.tasks.items():
        if task.table is None:
            continue
        time = task.time_reading or contract.columns.time_reading
        assert time is not None, "the contract refuses labels from tables without a time column"
        join_on, known = related.get(task.table, ((), time))
        if known != time:
            both = f"{known.column!r} and {time.column!r}"
            raise ContractError([f"tasks.{name}.time: {task.table!r} has two time columns, {both}"])
        related[task.table] = (tuple(dict.fromkeys((*join_on, *task.join_on))), time)
    return related


def declared_type(name: str, table: str, contract: Contract) -> Wanted | None:
    """The type that the contract's source says a column has."""
    listed = contract.source.tables.get(table)
    return listed.types.get(name) if listed else None


def wanted_type(name: str, dtype: DataType, declared: Wanted | None, contract: Contract) -> Wanted:
    """As what a column of the impressions is read, by who reads it."""
    if name == contract.columns.position:
        return "integer"
    if (name == contract.weight or name in contract.duration_columns) and declared != "integer":
        return "number"
    if declared is not None:
        return declared
    labels = [task for task in contract.tasks.values() if task.column == name]
    if isinstance(dtype, ArrayType) and _readers(name, contract, MultiValued):
        return "values"
    if _readers(name, contract, Numeric | Bucketed) or any(_compares_numbers(task) for task in labels):
        return "number"
    if any(isinstance(task.equals, bool) for task in labels):
        return "boolean"
    return "id" if _is_id(name, contract) else "as it is"


def _is_id(name: str, contract: Contract) -> bool:
    columns = contract.columns
    joined = {on for task in contract.tasks.values() for on in task.join_on}
    roles = {*columns.key, columns.user, columns.item, columns.list, *contract.entity_columns, *joined}
    return name in roles or bool(_readers(name, contract, Categorical))


def _readers(name: str, contract: Contract, kinds: object) -> list[str]:
    return [
        f"features.{feature_name}"
        for feature_name, feature in contract.features.items()
        if isinstance(feature, kinds) and feature.column == name  # type: ignore[arg-type, union-attr]
    ]


def _compares_numbers(task: Task) -> bool:
    return not isinstance(task.equals, bool | str)


def _missing(raw: Mapping[str, DataFrame], contract: Contract) -> Iterator[str]:
    main, columns = contract.source.main_table, contract.columns
    sides = {join.table: join for join in contract.source.join}
    wanted = [(main, where, name) for where, name in impression_columns(contract)]
    for table, (_, time) in related_columns(contract).items():
        for task_name, task in contract.tasks.items():
            if task.table == table:
                wanted += [(table, f"tasks.{task_name}.join_on", name) for name in task.join_on]
                wanted.append((table, f"tasks.{task_name}.time", time.column))
                if task.sum is not None:
                    wanted.append((table, f"tasks.{task_name}.sum", task.sum))
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
        yield fault + suggestion(name, others)
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
            yield f"{where}: column {name!r} of {table!r} {why.replace('NAME', _plain(name))}"
    for name, task in contract.tasks.items():
        if task.column is not None:
            yield from _label_fault(name, task, raw[table_of[task.column]].schema[task.column].dataType)
    for name, task in contract.tasks.items():
        if task.table is not None:
            yield from _key_faults(f"tasks.{name}.join_on", task.join_on, task.table, raw, contract)
            times.append((f"tasks.{name}.time", task.table, related_columns(contract)[task.table][1]))
        if task.table is not None and task.sum is not None:
            why = refusal(task.sum, raw[task.table].schema[task.sum].dataType, "number")
            if why:
                yield f"tasks.{name}.sum: column {task.sum!r} of {task.table!r} {why.replace('NAME', _plain(task.sum))}"
    for place, join in enumerate(contract.source.join):
        where = f"source.join.{place}"
        for table in (contract.source.main_table, join.table):
            yield from _key_faults(f"{where}.on", join.on, table, raw, contract)
        if join.as_of_time is not None:
            times.append((f"{where}.as_of", join.table, join.as_of_time))
    for where, table, time in times:
        why = time_refusal(spark, time, raw[table].schema[time.column].dataType)
        if why:
            yield f"{where}: column {time.column!r} of {table!r} {why}"


def _key_faults(
    where: str, names: tuple[str, ...], table: str, raw: Mapping[str, DataFrame], contract: Contract
) -> Iterator[str]:
    for name in names:
        dtype = raw[table].schema[name].dataType
        why = refusal(name, dtype, declared_type(name, table, contract) or "id")
        if why:
            yield f"{where}: column {name!r} of {table!r} {why.replace('NAME', _plain(name))}"


def _clash(name: str, dtype: DataType, wanted: Wanted, contract: Contract) -> str | None:
    """An id that is read as a number loses what a double cannot hold."""
    categorical = _readers(name, contract, Categorical)
    listed = _readers(name, contract, MultiValued)
    if listed and not isinstance(dtype, StringType | ArrayType):
        return f"is of type {dtype.simpleString()}; {listed[0]} needs a list, or a text of several values"
    if wanted == "number" and (categorical or isinstance(dtype, DecimalType)) and _is_id(name, contract):
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


def _plain(name: str) -> str:
    return name if name.isidentifier() else f"'{name}'"
