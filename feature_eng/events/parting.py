"""Raw tables parted into events and rejects, every row into one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from feature_eng.contract import Contract, Time, quoted, stored_name
from feature_eng.dates import ON_DATE, Dates, date_of
from feature_eng.events.checking import checked_impressions, checked_related
from feature_eng.events.joining import with_side_tables
from feature_eng.events.pruning import may_be_within
from feature_eng.events.schemas import check_schemas
from feature_eng.events.times import to_seconds
from feature_eng.events.values import raw_column


@dataclass(frozen=True)
class Events:
    """Typed rows of all tables, and the rows that could not become one.

    Attributes:
        impressions: The contract's raw columns and those the labels need; unique by key.
            Whole numbers are bigint, other numbers double, time is seconds since the epoch.
        related: Other events by table name (orders, carts, ...): the columns that labels and behaviour features
            read, and the time.
        rejects: ``table``, ``reason`` and ``row``, the raw row as JSON.
    """

    impressions: DataFrame
    related: Mapping[str, DataFrame]
    rejects: DataFrame


def to_events(
    raw: Mapping[str, DataFrame],
    contract: Contract,
    before: DataFrame | None = None,
    *,
    by_date: bool = False,
    has_repeats: bool = True,
) -> Events:
    """Type and check the raw tables.

    Of several rows with the same key the first in time stays (then the first by position).

    Args:
        raw: Table name -> raw rows, as :func:`feature_eng.sources.raw.read_raw` gives them.
        contract: What the columns mean.
        before: Impressions of earlier days, whose keys are taken.
        by_date: Add ``on_date``, the day of each row's time; a reject without one has none.
        has_repeats: Whether impressions may have equal keys.

    Raises:
        ContractError: Tables or columns that the contract names and the data lack, all of them; columns of
            a type that cannot be read as what the contract makes of them; a side table with several rows for
            one key, or with keys or times that cannot be read.
    """
    check_schemas(raw, contract)
    main = contract.source.main_table
    sides = with_side_tables(raw, contract)
    checked = {main: checked_impressions(raw[main], sides, contract, before, has_repeats=has_repeats)}
    for table in contract.related_times:
        checked[table] = checked_related(raw[table], contract, table)
    days = {table: [_day(table, contract)] if by_date else [] for table in checked}
    accepted = {
        table: frame.where(F.col("reason").isNull()).select("typed.*", *days[table])
        for table, frame in checked.items()
    }
    rejects = [
        frame.where(F.col("reason").isNotNull()).select(
            F.lit(table).alias("table"),
            F.col("reason"),
            F.to_json("raw", {"ignoreNullFields": "false"}).alias("row"),
            *days[table],
        )
        for table, frame in checked.items()
    ]
    return Events(
        impressions=accepted.pop(main),
        related=accepted,
        rejects=reduce(DataFrame.unionByName, rejects),
    )


def raw_of(raw: Mapping[str, DataFrame], contract: Contract, dates: Dates) -> dict[str, DataFrame]:
    """Of the tables of events the raw rows of some days, and those without a time; side tables as they are."""
    found = dict(raw)
    for table, reading in _times(contract).items():
        value, dtype = raw_column(reading.column), raw[table].schema[reading.column].dataType
        # First what files are left out by, and what most rows are left out by at once.
        may_be = may_be_within(value, dtype, reading, *dates.seconds)
        is_kept = ~dates.lack(to_seconds(value, dtype, reading))
        found[table] = raw[table].where(is_kept if may_be is None else may_be & is_kept)
    return found


def _times(contract: Contract) -> dict[str, Time]:
    """How the times of each table of events are read."""
    assert contract.columns.time_reading is not None, "checked for builds by date"
    return {contract.source.main_table: contract.columns.time_reading, **contract.related_times}


def _day(table: str, contract: Contract) -> Column:
    time = F.col(f"typed.{quoted(stored_name(_times(contract)[table].column))}")
    return date_of(time, contract.split.zone).alias(ON_DATE)
