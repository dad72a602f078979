"""What a contract wants of the raw tables, held against their schemas before a row is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pyspark.sql import DataFrame

from feature_eng.contract import Contract, ContractError
from foundation.settings import suggestion


def missing_columns(raw: Mapping[str, DataFrame], contract: Contract) -> Iterator[str]:
    """Tables and columns that the contract names and the data lack, a fault each."""
    main, columns = contract.source.main_table, contract.columns
    wanted = [(main, where, name) for where, name in _impression_columns(contract)]
    for table, (_, time) in related_columns(contract).items():
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


def related_columns(contract: Contract) -> dict[str, tuple[tuple[str, ...], str]]:
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
