"""Raw tables parted into events and rejects, every row into one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from feature_eng.contract import Contract
from feature_eng.events.checking import checked_impressions, checked_related
from feature_eng.events.joining import with_side_tables
from feature_eng.events.wanted import check_schemas, related_columns


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


def to_events(raw: Mapping[str, DataFrame], contract: Contract) -> Events:
    """Type and check the raw tables.

    Of several rows with the same key the first in time stays (then the first by position).

    Args:
        raw: Table name -> raw rows, as :func:`feature_eng.sources.raw.read_raw` gives them.
        contract: What the columns mean.

    Raises:
        ContractError: Tables or columns that the contract names and the data lack, all of them; columns of
            a type that cannot be read as what the contract makes of them; a side table with several rows for
            one key.
    """
    check_schemas(raw, contract)
    main = contract.source.main_table
    checked = {main: checked_impressions(raw[main], with_side_tables(raw, contract), contract)}
    for table, (join_on, time) in related_columns(contract).items():
        checked[table] = checked_related(raw[table], contract, table, join_on, time)
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
