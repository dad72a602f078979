"""The tables of events and rejects: every raw row into one of them, and the account of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng import by_date, delta
from feature_eng.contract import Contract, ContractError
from feature_eng.dates import ON_DATE, Dates
from feature_eng.events.advice import RowCount, check_rejects
from feature_eng.events.dates_alone import check_side_times
from feature_eng.events.joining import check_matches, match_counts
from feature_eng.events.keys import Keys, read_keys, that_meet
from feature_eng.events.parting import Events, raw_of, to_events
from feature_eng.events.schemas import check_schemas
from feature_eng.sources.faults import as_user_errors
from feature_eng.sources.lineage import described
from feature_eng.sources.raw import read_raw
from feature_eng.sources.tables import pinned
from foundation import stores
from foundation.job import say, say_table


def write_events(
    spark: SparkSession, contract: Contract, source: str | None, root: str, dates: Dates | None = None
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int], Dates | None]:
    """Raw rows to the tables of events and rejects, every row into one of them.

    Args:
        spark: The session.
        contract: What the rows mean.
        source: Folder of the raw files, where it is given.
        root: Folder of the tables.
        dates: Days to read, into tables by date; the others' rows stay as they are. ``None`` for tables of all rows
            (by date where they have been).

    Returns:
        Which versions of the raw tables were read; which version of each table was written; and the days that were
        replaced in them, ``None`` where all rows were.
    """
    main_table = contract.source.main_table
    with as_user_errors("the raw tables cannot be read"):
        pins = pinned(spark, contract.source, source)
        raw = read_raw(spark, contract, source, pins)
        some = None if dates is None or dates.is_all else dates
        check_schemas(raw, contract, by_date=dates is not None)
        read = raw if some is None else raw_of(raw, contract, some)
        names = {table: contract.events_of(table) for table in (main_table, *contract.related_times)}
        goes_on = some is not None and by_date.goes_on(root, [*names.values(), "rejects"], contract)
        replaced = some if goes_on else None
        rows_in = {table: read[table].count() for table in names if table != main_table}
        keys = read_keys(read[main_table], contract, times=dates is not None)
        rows_in[main_table] = keys.rows
        if dates is not None and not keys.with_time:
            raise ContractError([f"--dates: {main_table!r} holds no rows of {dates}"])
        events = _typed(read, contract, root, replaced, keys, keeps_dates=dates is not None)
        tables = _Tables(spark, contract, root, replaced)
        frames = {main_table: events.impressions, **events.related}
        rows_out = {table: tables.write(names[table], frames[table]) for table in names}
        # Where every row has become an event none is looked for among the rejects.
        short = [table for table in names if rows_out[table] != rows_in[table]]
        if short or tables.may_have_rows("rejects"):
            tables.write("rejects", events.rejects.where(F.col("table").isin(short)))
        else:
            tables.keep("rejects")
    rejects = tables.written("rejects")
    rejected = rejects.groupBy("table", "reason").agg(F.count("*").alias("rows"))
    reasons = rejected.orderBy("table", "reason").collect() if short else []
    counts = {}
    for table in names:
        rows_rejected = sum(row["rows"] for row in reasons if row["table"] == table)
        count = RowCount(rows_in[table], rows_out[table], rows_rejected)
        if count.rows_in != count.rows_out + count.rejected:
            if read[table].count() != count.rows_in:
                raise ContractError(
                    [
                        f"source: rows of {table!r} came or went while they were read; build again when it is whole"
                    ]
                )
            raise RuntimeError(
                f"{table}: {count.rows_in} rows in, {count.rows_out} out and {count.rejected} rejected"
            )
        counts[table] = count
    say("raw rows" if dates is None else f"raw rows of {dates}")
    say_table(
        ["table", "in", "out", "rejected"],
        [(name, count.rows_in, count.rows_out, count.rejected) for name, count in counts.items()],
    )
    if reasons:
        say_table(["table", "rejected because", "rows"], [tuple(row) for row in reasons])
    check_rejects(counts, reasons, rejects, contract)
    matched = match_counts(tables.written(names[main_table]))
    if matched:
        say_table(
            ["side table", "rows that found theirs", "unmatched"],
            [(name, found, rows - found) for name, (found, rows) in matched.items()],
        )
        check_matches(matched, raw, contract)
        check_side_times(raw, tables.written(names[main_table]), contract)
    return described(raw, contract.source, pins), tables.versions, replaced


def _typed(
    raw: Mapping[str, DataFrame],
    contract: Contract,
    root: str,
    replaced: Dates | None,
    keys: Keys,
    *,
    keeps_dates: bool,
) -> Events:
    """Typed rows: of the days that are replaced, whose keys other days may have taken, or of all tables anew."""
    place, has_repeats = stores.join(root, "events"), keys.has_repeats
    if not keeps_dates:
        stays = by_date.is_by_date(place) and contract.columns.time is not None
        return to_events(raw, contract, by_date=stays, has_repeats=has_repeats)
    if replaced is None or not contract.columns.key:
        return to_events(raw, contract, by_date=True, has_repeats=has_repeats)
    met = that_meet(raw[contract.source.main_table], place, replaced, keys, contract)
    if met is None:
        return to_events(raw, contract, by_date=True, has_repeats=has_repeats)
    others, first, last = met
    day, before = F.col(ON_DATE), None
    if replaced.first and first < replaced.first:
        before = others.where(day < F.lit(replaced.first))
    events = to_events(raw, contract, before, by_date=True, has_repeats=has_repeats)
    if replaced.last and last > replaced.last:
        by_date.refuse_taken(events.impressions, others.where(day > F.lit(replaced.last)), replaced, contract)
    return events


class _Tables:
    """The tables as this build writes them.

    Args:
        spark: The session.
        contract: What is built.
        root: Folder of the tables.
        dates: Days that are replaced; ``None`` for tables that are made anew.
    """

    def __init__(self, spark: SparkSession, contract: Contract, root: str, dates: Dates | None) -> None:
        self.spark, self.contract, self.root, self.dates = spark, contract, root, dates
        self.versions: dict[str, int] = {}

    def write(self, name: str, rows: DataFrame) -> int:
        """Write a table; how many rows it has now, of the days that are replaced."""
        place = stores.join(self.root, name)
        if ON_DATE in rows.columns:
            self.versions[name] = by_date.write(rows, place, self.contract, self._condition(name))
        else:
            self.versions[name] = delta.write(rows, place, properties=delta.kept_for())
        return self._rows(name, self.versions[name])

    def keep(self, name: str) -> None:
        """Leave a table as it is."""
        self.versions[name] = delta.newest_version(stores.join(self.root, name))

    def may_have_rows(self, name: str) -> bool:
        """Whether a table, as it was, may have rows to be replaced; one that is made anew is written anyway."""
        place = stores.join(self.root, name)
        return self.dates is None or self._rows(name, delta.newest_version(place)) > 0

    def _rows(self, name: str, version: int) -> int:
        place, dates = stores.join(self.root, name), self.dates
        if dates is None:
            return delta.num_rows(self.spark, place, version)
        days = {
            day
            for day in delta.partitions(place, version, ON_DATE)
            if (name == "rejects" if day is None else dates.has(day))
        }
        return delta.num_rows(self.spark, place, version, {ON_DATE: days})

    def written(self, name: str) -> DataFrame:
        """What was written, of the days that are replaced."""
        rows = delta.read(self.spark, stores.join(self.root, name), self.versions[name])
        condition = self._condition(name)
        return rows if condition is None else rows.where(condition)

    def _condition(self, name: str) -> str | None:
        """The partitions that are replaced; of rejects those without a time too."""
        if self.dates is None:
            return None
        days = self.dates.condition()
        return f"({days}) OR {ON_DATE} IS NULL" if name == "rejects" else days
