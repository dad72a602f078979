"""Side tables joined to the impressions: users, items and whatever else a row is looked up in.

An impression finds one row at most: a side table has one row for each key, or one that held at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from feature_eng.contract import Contract, ContractError, Join
from feature_eng.events.side_columns import SideColumn, side_columns, typed_key, unreadable
from feature_eng.events.times import to_seconds
from feature_eng.events.values import column, comparable, raw_column
from feature_eng.events.wanted import carried_columns

FLAG = "joined__"
# Columns of a side table on its way to the impressions, whose own names may be any.
KEY, VALUE, FROM, UNTIL, FOUND, NEWEST = (
    "side__key_", "side__value_", "side__from", "side__until", "side__found", "side__newest"
)  # fmt: skip
_EXAMPLES = 3


@dataclass(frozen=True)
class SideRows:
    """Impressions with the columns of their side tables.

    Args:
        rows: The impression table's rows and columns, the side tables' columns, and the flags.
        table_of: Column -> the side table that it comes from.
        flags: For each side table the name of a column that says whether a row found its row there.
    """

    rows: DataFrame
    table_of: Mapping[str, str]
    flags: tuple[str, ...]


def with_side_tables(raw: Mapping[str, DataFrame], contract: Contract) -> SideRows:
    """Join the side tables that the contract wants columns of.

    Raises:
        ContractError: Side tables have several rows for one key, or keys, times or orders that cannot be read; all
            such tables.
    """
    main = contract.source.main_table
    rows = raw[main]
    table_of: dict[str, str] = {}
    flags: list[str] = []
    faults: list[str] = []
    for place, join in enumerate(contract.source.join):
        carried = carried_columns(join, raw, contract)
        if not carried:
            continue
        where, by = f"source.join.{place}", tuple(side_columns(join, raw[join.table], contract))
        side = _side(join, raw, by, carried, contract)
        faults += unreadable(where, join, raw[join.table], by) or _several(where, join, side)
        rows = _joined(rows, side, join, carried, contract)
        table_of.update(dict.fromkeys(carried, join.table))
        flags.append(f"{FLAG}{join.table}")
    if faults:
        raise ContractError(faults)
    return SideRows(rows, table_of, tuple(flags))


def match_counts(impressions: DataFrame) -> dict[str, tuple[int, int]]:
    """Side table -> how many impressions found their row in it, and of how many; by the flags in events."""
    flags = [name for name in impressions.columns if name.startswith(FLAG)]
    if not flags:
        return {}
    counts = impressions.agg(
        F.count(F.lit(1)).alias("rows"), *(F.count_if(column(flag)).alias(flag) for flag in flags)
    ).collect()[0]
    return {flag.removeprefix(FLAG): (counts[flag], counts["rows"]) for flag in flags}


def check_matches(
    counts: Mapping[str, tuple[int, int]], raw: Mapping[str, DataFrame], contract: Contract
) -> None:
    """Stop where no impression at all found its row in a side table.

    Raises:
        ContractError: Names the table, the types of the keys on both sides and a few of their values.
    """
    faults = []
    for place, join in enumerate(contract.source.join):
        matched, rows = counts.get(join.table, (1, 1))
        if matched == 0 and rows:
            seen = " and ".join(
                seen_keys(table, raw[table].select(*(raw_column(name) for name in join.on)))
                for table in (contract.source.main_table, join.table)
            )
            faults.append(
                f"source.join.{place}: none of {rows:,} rows found a row of {join.table!r} by {', '.join(join.on)}; "
                f"there are {seen}"
            )
    if faults:
        raise ContractError(faults)


def seen_keys(table: str, keys: DataFrame) -> str:
    """Types and a few values of the columns by which a table is joined, for messages."""
    types = ", ".join(field.dataType.simpleString() for field in keys.schema.fields)
    values = "; ".join(", ".join(map(repr, row)) for row in keys.limit(_EXAMPLES).collect())
    return f"{types} {values} in {table!r}"


def _side(
    join: Join,
    raw: Mapping[str, DataFrame],
    by: Sequence[SideColumn],
    carried: tuple[str, ...],
    contract: Contract,
) -> DataFrame:
    """The side table as its keys and values by number and, where it has times, from when until when each row held.

    Keys are as they are compared: "5" and "05" are one where the impressions have numbers.
    """
    frame, main = raw[join.table], contract.source.main_table
    keys = {}
    for place, name in enumerate(join.on):
        mine, other = (typed_key(name, table, raw[table], contract) for table in (main, join.table))
        keys[f"{KEY}{place}"] = comparable(*mine, *other)[1]
    parts = {**keys, **{f"{VALUE}{place}": raw_column(name) for place, name in enumerate(carried)}}
    parts |= {{"as_of": FROM, "newest": NEWEST}[one.role]: one.value for one in by if one.role != "on"}
    rows = frame.select(*(value.alias(name) for name, value in parts.items()))
    known = [name for name in rows.columns if name.startswith(KEY) or name == FROM]
    rows = rows.dropna(subset=known)
    values = [name for name in rows.columns if name.startswith(VALUE)]
    if join.newest is not None:
        order = F.struct(F.col(NEWEST), F.to_json(F.struct(*values)))
        newest = rows.groupBy(*keys).agg(F.max_by(F.struct(*values), order).alias("values"))
        return newest.select(*keys, "values.*")
    # The same row written twice is one row.
    content = F.to_json(F.struct(*values))
    rows = rows.withColumn("content", content).dropDuplicates([*known, "content"]).drop("content")
    if join.as_of_time is None:
        return rows
    following = F.lead(FROM).over(Window.partitionBy(*keys).orderBy(FROM))
    return rows.withColumn(UNTIL, following)


def _several(where: str, join: Join, side: DataFrame) -> list[str]:
    if join.newest is not None:
        return []
    keys = [name for name in side.columns if name.startswith(KEY) or name == FROM]
    several = side.groupBy(*keys).count().where("count > 1").limit(1).collect()
    if not several:
        return []
    *key, count = several[0]
    what = ", ".join(f"{name} = {value!r}" for name, value in zip(join.on, key, strict=False))
    at = " at one time" if join.as_of is not None else ""
    choice = "" if join.as_of else "as_of: COLUMN (as it was at each row's time), newest: COLUMN, or "
    return [
        f"{where}: {join.table!r} has {count:,} different rows for {what}{at}; expected one: add "
        f"{choice}a 'where' that leaves one"
    ]


def _joined(
    rows: DataFrame, side: DataFrame, join: Join, carried: tuple[str, ...], contract: Contract
) -> DataFrame:
    main = contract.source.main_table
    conditions: list[Column] = []
    for place, name in enumerate(join.on):
        mine = typed_key(name, main, rows, contract)
        pair = comparable(*mine, F.col(f"{KEY}{place}"), side.schema[f"{KEY}{place}"].dataType)
        conditions.append(pair[0] == pair[1])
    if join.as_of_time is not None:
        time = contract.columns.time_reading
        assert time is not None, "checked by the contract"
        shown_at = to_seconds(raw_column(time.column), rows.schema[time.column].dataType, time)
        conditions.append(shown_at >= F.col(FROM))
        conditions.append(F.col(UNTIL).isNull() | (shown_at < F.col(UNTIL)))
    found = side.withColumn(FOUND, F.lit(True))
    return rows.join(found, on=conditions, how="left").select(
        *(raw_column(name) for name in rows.columns),
        *(F.col(f"{VALUE}{place}").alias(name) for place, name in enumerate(carried)),
        F.coalesce(F.col(FOUND), F.lit(False)).alias(f"{FLAG}{join.table}"),
    )
