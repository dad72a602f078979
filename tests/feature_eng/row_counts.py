"""What became of each raw table's rows."""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import DataFrame

from feature_eng.contract import Contract
from feature_eng.events import Events


def row_counts(
    raw: Mapping[str, DataFrame], events: Events, contract: Contract
) -> dict[str, tuple[int, int, int]]:
    """Each table's rows in, rows out and rejected rows."""
    rejected = {row["table"]: row["count"] for row in events.rejects.groupBy("table").count().collect()}
    accepted = {contract.source.main_table: events.impressions, **events.related}
    return {
        table: (raw[table].count(), frame.count(), rejected.get(table, 0))
        for table, frame in accepted.items()
    }
