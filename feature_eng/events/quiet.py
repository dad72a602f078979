"""Tables of events that hold no row as yet, as in the first of days that are built one by one."""

from __future__ import annotations

from pyspark.sql import functions as F

from feature_eng.contract import Contract
from feature_eng.events.parting import Events
from foundation.job import say


def quiet_tables(events: Events, contract: Contract) -> set[str]:
    """Tables beside the impressions without a row, be it a reject; said in one line each.

    Args:
        events: Of all days that have been built.
        contract: What they were built by.
    """
    found = {
        table
        for table in contract.related_times
        if events.related[table].isEmpty() and events.rejects.where(F.col("table") == table).isEmpty()
    }
    for table in sorted(found):
        tasks = [f"tasks.{name}" for name, task in contract.tasks.items() if task.table == table]
        readers = [*tasks, *(f"features.{name}" for name in contract.readers_of(table))]
        say(f"events    {table!r} has no rows yet, which tell {', '.join(readers)}")
    return found
