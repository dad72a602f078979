"""Tables of events beside the impressions: which columns labels and behaviour features read of each."""

from __future__ import annotations

from collections.abc import Iterator

from feature_eng.contract import Contract, History


def joined_columns(contract: Contract, table: str) -> tuple[str, ...]:
    """Columns by which tasks join a table, each once."""
    columns = (name for task in contract.tasks.values() if task.table == table for name in task.join_on)
    return tuple(dict.fromkeys(columns))


def summed_columns(contract: Contract, table: str) -> tuple[str, ...]:
    """Number columns of a table that tasks add up, each once."""
    columns = (task.sum for task in contract.tasks.values() if task.table == table)
    return tuple(dict.fromkeys(name for name in columns if name is not None))


def told_columns(contract: Contract, table: str) -> Iterator[tuple[str, str]]:
    """Where a behaviour feature names a column that it reads of a table, and the column, as the impressions call it."""
    for name, feature in contract.readers_of(table).items():
        yield f"features.{name}.by", contract.entity_column(feature)
        if feature.per_scenario:
            yield f"features.{name}.per_scenario", contract.scenario.column
        if isinstance(feature, History):
            yield f"features.{name}.of", contract.history_column(feature)


def related_columns(contract: Contract) -> Iterator[tuple[str, str, str]]:
    """Table, where the contract names a column of it, and the column."""
    for table, time in contract.related_times.items():
        tasks = {name: task for name, task in contract.tasks.items() if task.table == table}
        for name, task in tasks.items():
            yield from ((table, f"tasks.{name}.join_on", column) for column in task.join_on)
            yield table, f"tasks.{name}.time", time.column
            if task.sum is not None:
                yield table, f"tasks.{name}.sum", task.sum
        for where, column in told_columns(contract, table):
            yield table, where, column
        if not tasks:
            reader = next(iter(contract.readers_of(table)))
            yield table, f"features.{reader}.time", time.column
