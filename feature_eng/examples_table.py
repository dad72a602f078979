"""The table of examples: every impression, or those of some days, with labels, split, weight and behaviour."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng import by_date, delta
from feature_eng.behaviour import with_behaviour
from feature_eng.contract import Contract
from feature_eng.data_end import data_end, extents, remarks
from feature_eng.dates import ON_DATE, Dates, condition_of, date_of, is_one_of, listed
from feature_eng.encoder import spark as encoder
from feature_eng.events import Events, column
from feature_eng.events.stored import stored_events
from feature_eng.examples import times_of, to_examples
from feature_eng.sampling import with_sampling
from feature_eng.split import with_split
from foundation import stores
from foundation.job import say


def write_examples(
    spark: SparkSession,
    contract: Contract,
    root: str,
    versions: Mapping[str, int],
    as_of: int | None,
    replaced: Dates | None = None,
) -> tuple[DataFrame, int, int | None]:
    """Events to the table of examples: labels, split, behaviour up to each row's time.

    Args:
        spark: The session.
        contract: What the rows mean.
        root: Folder of the tables.
        versions: Versions of the tables of events, as the build made them.
        as_of: The last second that counts as known.
        replaced: The days that the build replaced in those tables: then days that they concern are written.

    Returns:
        All examples, the version that holds them, and the last second that is known.
    """
    table = stores.join(root, "examples")
    events = stored_events(spark, contract, root, versions)
    end = as_of
    if end is None:
        found = extents(events, contract)
        end = data_end(found)
        for remark in remarks(found, contract):
            say(remark)
    keeps_dates = ON_DATE in events.impressions.columns
    days = None
    if replaced is not None:
        days = by_date.concerned(spark, contract, root, versions, end)
    if days is None:
        times = (
            times_of(events.impressions, contract, as_of, end) if contract.split.method == "time" else None
        )
        made = _made(to_examples(events, contract, as_of, end), contract, None, events.related, times)
        rows = encoder.with_row_id(made, contract)
        if keeps_dates:
            version = by_date.write(_dated(rows, contract), table, contract, None)
        else:
            version = delta.write(rows, table, properties=delta.kept_for())
    else:
        say(f"examples  of {len(days):,} days are made anew{listed(days)}")
        version = delta.newest_version(table)
        if days:
            stored = delta.read(spark, table, version)
            rows = encoder.with_row_id(_of(days, events, stored, contract, as_of, end), contract)
            version = by_date.write(_dated(rows, contract), table, contract, condition_of(days))
    return delta.read(spark, table, version), version, end


def _of(
    days: Collection[date],
    events: Events,
    stored: DataFrame,
    contract: Contract,
    as_of: int | None,
    end: int | None,
) -> DataFrame:
    """Examples of some days; what came before them is told by events and by the examples of other days."""
    read = is_one_of(by_date.read_for(days, contract))
    some = Events(
        impressions=events.impressions.where(read),
        related={name: rows.where(read) for name, rows in events.related.items()},
        rejects=events.rejects,
    )
    asked = _dated(to_examples(some, contract, as_of, end), contract).where(is_one_of(days)).drop(ON_DATE)
    related = {table: rows.where(_may_tell(days, contract, table)) for table, rows in events.related.items()}
    return _made(asked, contract, stored.where(~is_one_of(days) & _may_tell(days, contract)), related)


def _may_tell(days: Collection[date], contract: Contract, table: str | None = None) -> Column:
    """Whether the day of a row of a table is one that behaviour features of some days may know of."""
    found = F.col(ON_DATE) <= F.lit(max(days))
    first = by_date.told_from(min(days), contract, table)
    return found if first is None else found & (F.col(ON_DATE) >= F.lit(first))


def _made(
    examples: DataFrame,
    contract: Contract,
    others: DataFrame | None,
    related: Mapping[str, DataFrame],
    times: DataFrame | None = None,
) -> DataFrame:
    """Examples with split, weight and behaviour, of which ``others`` and ``related`` tell beside themselves."""
    parted = with_sampling(with_split(examples, contract, times), contract)
    return with_behaviour(parted, contract, others, related)


def _dated(rows: DataFrame, contract: Contract) -> DataFrame:
    assert contract.columns.time is not None, "checked for builds by date"
    return rows.withColumn(ON_DATE, date_of(column(contract.columns.time), contract.split.zone))
