"""Events as a build has stored them: its own versions, whatever was written since."""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import DataFrame, SparkSession

from feature_eng import delta
from feature_eng.contract import Contract
from feature_eng.events.parting import Events
from foundation import stores


def stored_events(spark: SparkSession, contract: Contract, root: str, versions: Mapping[str, int]) -> Events:
    """The tables of events and rejects.

    Args:
        spark: The session.
        contract: What they were made by.
        root: Folder of the build's tables.
        versions: Name of each table -> the version that the build made.
    """

    def written(name: str) -> DataFrame:
        return delta.read(spark, stores.join(root, name), versions[name])

    return Events(
        impressions=written("events"),
        related={name: written(contract.events_of(name)) for name in contract.related_times},
        rejects=written("rejects"),
    )
