"""Columns that a contract wants of the raw tables, and as what each of them is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pyspark.sql import DataFrame
from pyspark.sql.types import ArrayType, DataType

from feature_eng.contract import Behaviour, Bucketed, Categorical, Contract, Join, MultiValued, Numeric, Task
from feature_eng.events.related import joined_columns
from feature_eng.events.values import Wanted


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


def declared_type(name: str, table: str, contract: Contract) -> Wanted | None:
    """The type that the contract's source says a column has."""
    listed = contract.source.tables.get(table)
    return listed.types.get(name) if listed else None


def told_type(name: str, dtype: DataType, table: str, contract: Contract) -> Wanted:
    """As what a column of another table is read that tells of the past: as the impressions' column of that name."""
    declared = declared_type(name, table, contract)
    if name in joined_columns(contract, table):
        return declared or "id"
    return wanted_type(name, dtype, declared, contract)


def wanted_type(name: str, dtype: DataType, declared: Wanted | None, contract: Contract) -> Wanted:
    """As what a column of the impressions is read, by who reads it."""
    if name == contract.columns.position:
        return "integer"
    if (name == contract.weight or name in contract.duration_columns) and declared != "integer":
        return "number"
    if declared is not None:
        return declared
    labels = [task for task in contract.tasks.values() if task.column == name]
    if isinstance(dtype, ArrayType) and readers(name, contract, MultiValued):
        return "values"
    if readers(name, contract, Numeric | Bucketed) or any(_compares_numbers(task) for task in labels):
        return "number"
    if any(isinstance(task.equals, bool) for task in labels):
        return "boolean"
    return "id" if is_id(name, contract) else "as it is"


def is_id(name: str, contract: Contract) -> bool:
    """Whether a column of the impressions tells things apart, so that its values must be exact."""
    columns = contract.columns
    joined = {on for task in contract.tasks.values() for on in task.join_on}
    roles = {*columns.key, columns.user, columns.item, columns.list, *contract.entity_columns, *joined}
    return name in roles or bool(readers(name, contract, Categorical))


def readers(name: str, contract: Contract, kinds: object) -> list[str]:
    """Features of these kinds that read a column of the impressions."""
    return [
        f"features.{feature_name}"
        for feature_name, feature in contract.features.items()
        if isinstance(feature, kinds) and feature.column == name  # type: ignore[arg-type, union-attr]
    ]


def _compares_numbers(task: Task) -> bool:
    return not isinstance(task.equals, bool | str)
