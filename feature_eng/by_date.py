"""Builds by date: which days' rows are read anew, and which days' examples they concern.

Tables by date are replaced day by day. What a build has to write follows from what is there: the training table
says, by its properties, of which versions of the others it was made; whatever differs from those, by this build or by
one that did not come to its end, is made anew. So a build that is run again after a crash goes on, and one that is run
twice changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from datetime import date

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng import delta
from feature_eng.contract import Contract, ContractError, Split, quoted, to_instant
from feature_eng.dates import ON_DATE, Dates, around
from feature_eng.differences import changed, differing
from feature_eng.meaning import MEANING
from feature_eng.snapshot import BUILT_BY, END, EXAMPLES_VERSION, SPANS, TABLES, SnapshotError
from feature_eng.split import IMMATURE
from feature_eng.tallies import by_day
from foundation import stores

_ALL = "build all days by it once: --dates :"


def dates_of(text: str, contract: Contract) -> Dates:
    """The days that ``--dates`` names.

    Raises:
        ContractError: It is no span of days, or the contract cannot be built day by day.
    """
    if contract.columns.time is None:
        raise ContractError(["--dates: the contract names no columns.time"])
    if contract.split.method in ("time", "user_disjoint"):
        raise ContractError(
            [
                f"--dates: split.method '{contract.split.method}' parts all rows anew with each day; "
                "expected method dates, random or column"
            ]
        )
    try:
        return Dates.of(text, contract.split.zone)
    except ValueError as error:
        raise ContractError([f"--dates: {error}"]) from None


def built_by(contract: Contract) -> str:
    """What rows of all days must have in common: the number of their meaning, and the contract and its seeds."""
    seeds = (contract.split.seed, contract.sampling.seed if contract.sampling else None)
    return f"{MEANING}:{hashlib.sha256(json.dumps([contract.fingerprint, *seeds]).encode()).hexdigest()}"


def properties_of(contract: Contract) -> dict[str, str]:
    """Properties of a table by date."""
    return {**delta.kept_for(), BUILT_BY: built_by(contract)}


def spans_of(contract: Contract) -> dict[str, str]:
    """The property by which a later build sees that dates have moved to another split."""
    return {SPANS: json.dumps(contract.split.spans)} if contract.split.method == "dates" else {}


def goes_on(root: str, names: Collection[str], contract: Contract) -> bool:
    """Whether tables by date are there to be gone on with; otherwise all are made anew.

    Args:
        root: Folder of the tables.
        names: The tables of events, and the rejects.
        contract: What is built.

    Raises:
        ContractError: The tables that are there are not by date, or their rows mean something else.
    """
    there = [name for name in sorted(names) if delta.exists(stores.join(root, name))]
    is_built = delta.exists(stores.join(root, "training"))
    if not is_built and len(there) < len(names):
        return False  # a first build that did not come to its end
    for name in sorted(names):
        place = stores.join(root, name)
        if name not in there:
            raise ContractError([f"--dates: {place} is missing; {_ALL}"])
        if delta.partition_columns(place) != [ON_DATE]:
            raise ContractError([f"--dates: {place} is not kept by date; {_ALL}"])
        by = delta.properties(place).get(BUILT_BY, "")
        if by.rpartition(":")[0] != str(MEANING):
            raise ContractError(
                [f"--dates: {place} was built by another release, in which rows meant something else; {_ALL}"]
            )
        if by != built_by(contract):
            raise ContractError([f"--dates: {place} was built by another contract or other seeds; {_ALL}"])
    return True


def is_by_date(place: stores.Place) -> bool:
    """Whether a table is there and kept by date."""
    return delta.exists(place) and delta.partition_columns(place) == [ON_DATE]


def refuse_taken(impressions: DataFrame, later: DataFrame, dates: Dates, contract: Contract) -> None:
    """Stop where rows have keys of rows of later days: of equal keys the first in time stays.

    Args:
        impressions: Typed rows of the days that are built.
        later: Stored impressions of the days after them.
        dates: The days that are built.
        contract: Names the key.

    Raises:
        ContractError: Names the days that have to be built with them.
    """
    keys = list(contract.stored_key)
    taken = later.join(impressions.select(*map(quoted, keys)), on=keys, how="left_semi")
    found = taken.agg(F.count(F.lit(1)).alias("rows"), F.max(ON_DATE).alias("last")).collect()[0]
    if found["rows"]:
        raise ContractError(
            [
                f"--dates: {found['rows']:,} rows of later days have keys of these days' rows, and the first in time "
                f"stays; expected --dates {dates.first or ''}:{found['last']}"
            ]
        )


def write(rows: DataFrame, place: stores.Place, contract: Contract, condition: str | None) -> int:
    """Write days of a table, one commit; the version that it made.

    Args:
        rows: Of these days, with ``on_date``.
        place: Place of the table.
        contract: What they are made by.
        condition: The partitions to replace, in SQL; ``None`` makes the whole table anew.
    """
    # Few files a day, and none by a task that a large day keeps busy.
    rows = rows.hint("rebalance", ON_DATE)
    if condition is None:
        return delta.write(rows, place, partition_by=[ON_DATE], properties=properties_of(contract))
    return delta.write(rows, place, where=condition)


def concerned(
    spark: SparkSession, contract: Contract, root: str, versions: Mapping[str, int], end: int | None
) -> set[date] | None:
    """Days whose examples have to be made anew; ``None`` for all, in a table that is made anew.

    These are days with

    - impressions, or later rows of their windows, that are not those of the last build that came to its end;
    - labels that had not been known to it;
    - another split, where the contract's dates have moved on;
    - rows that may have seen such rows before them, or rows of another table that have changed, by behaviour features;
    - examples of a build that did not come to its end.

    Args:
        spark: The session.
        contract: What is built.
        root: Folder of the tables.
        versions: Versions of the tables of events, as this build made them.
        end: The last second that is known.

    Raises:
        ContractError: The build before knew more.
    """
    examples = stores.join(root, "examples")
    if not is_by_date(examples) or delta.properties(examples).get(BUILT_BY) != built_by(contract):
        return None
    newest = delta.newest_version(examples)
    there = set(delta.partitions(examples, newest, ON_DATE))
    events = set(delta.partitions(stores.join(root, "events"), versions["events"], ON_DATE))
    every = there | events
    training = stores.join(root, "training")
    record = delta.properties(training) if delta.exists(training) else {}
    needed = {TABLES, EXAMPLES_VERSION, *spans_of(contract)}
    if needed - record.keys():
        return every
    if END in record and end is not None and int(record[END]) > end:
        raise ContractError(
            [f"--as-of: the build before knew all until second {record[END]}, this one until {end}; {_ALL}"]
        )
    before: dict[str, int] = json.loads(record[TABLES])
    try:
        found = differing(examples, int(record[EXAMPLES_VERSION]), newest)
        changed_in = {
            name: changed(spark, stores.join(root, name), before[name], version)
            for name, version in versions.items()
            if name != "rejects"
        }
    except (SnapshotError, KeyError):
        return every  # what it was made of can no longer be read
    told = _labels_of(changed_in, contract)
    counted = by_day(delta.read(spark, examples, newest), contract, root, newest)
    immature = {day for day, cells in counted.items() if any(cell["split"] == IMMATURE for cell in cells)}
    found |= told | immature | (events - there)
    found |= moved(every, contract, record)
    told_by = {contract.source.main_table: told}
    told_by |= {table: changed_in[contract.events_of(table)] for table in contract.related_times}
    for table, days in told_by.items():
        if days and contract.readers_of(table):
            found |= {day for day in every if _may_see(day, days, contract, table)}
    return found & every


def _labels_of(changed_in: Mapping[str, set[date]], contract: Contract) -> set[date]:
    """Days of the impressions whose labels or rows have changed."""
    found = set(changed_in["events"])
    for task in contract.tasks.values():
        if task.table is None:
            continue
        assert task.within is not None, "checked by the contract"
        changed = changed_in[contract.events_of(task.table)]
        found |= around(changed, task.within, 0, contract.split.zone)
        if task.attribution != "every":
            # A later row may have gone over to another impression, or to none.
            found |= around(changed_in["events"] | changed, task.within, task.within, contract.split.zone)
    return found


def read_for(days: Collection[date], contract: Contract) -> set[date]:
    """Days of the events that labels of some days are made of."""
    found = set(days)
    for task in contract.tasks.values():
        if task.within is not None:
            before = 0 if task.attribution == "every" else task.within
            found |= around(days, before, task.within, contract.split.zone)
    return found


def told_from(day: date, contract: Contract, table: str | None = None) -> date | None:
    """The first day of rows of a table that a day's behaviour features may know of; ``None`` for all before it.

    Args:
        day: Of rows that ask.
        contract: What is built.
        table: Where these rows are; the impressions when left out.
    """
    reach = _reach(contract, table or contract.source.main_table)
    return None if reach is None else min(around([day], reach, 0, contract.split.zone))


def moved(days: Collection[date], contract: Contract, record: Mapping[str, str]) -> set[date]:
    """Days that are not in the splits that they were in, or have another gap.

    Args:
        days: Of these.
        contract: What is built.
        record: Properties of the training table before.
    """
    if SPANS not in record:
        return set()
    now, before = (
        contract.split.spans,
        {name: tuple(span) for name, span in json.loads(record[SPANS]).items()},
    )
    return {day for day in days if _pieces(day, contract.split, now) != _pieces(day, contract.split, before)}


def _may_see(day: date, told: Collection[date], contract: Contract, table: str) -> bool:
    first = told_from(day, contract, table)
    return any((first is None or first <= one) and one <= day for one in told)


def _reach(contract: Contract, table: str) -> int | None:
    """For how many seconds after its own time a row of a table may be seen by others; ``None`` without end."""
    windows = [feature.within for feature in contract.readers_of(table).values()]
    delays: list[int | None] = [0]
    # What impressions tell may be known later than they are; a row of another table is known from its time on.
    for task in contract.tasks.values() if table == contract.source.main_table else ():
        if task.within is not None:
            delays.append(task.within)
        elif task.known_after is not None:
            delays.append(task.known_after if isinstance(task.known_after, int) else None)
    known = [one for one in windows + delays if one is not None]
    if len(known) < len(windows) + len(delays):
        return None
    return max(delay for delay in delays if delay is not None) + max(
        (window for window in windows if window is not None), default=0
    )


def _pieces(
    day: date, split: Split, spans: Mapping[str, tuple[int | None, int | None]]
) -> list[tuple[str, int, int]]:
    """Which seconds of a day are in which split, and which in a gap before one."""
    first = to_instant(day.isoformat(), split.zone)
    last = to_instant(day.isoformat(), split.zone, is_end=True)
    found = [
        (name, first if start is None else start, last if stop is None else stop)
        for name, (start, stop) in spans.items()
    ]
    if split.gap is not None:
        starts = [start for start, _ in list(spans.values())[1:] if start is not None]
        found += [("gap", start - split.gap, start - 1) for start in starts]
    clipped = [(name, max(first, start), min(last, stop)) for name, start, stop in found]
    return [piece for piece in clipped if piece[1] <= piece[2]]
