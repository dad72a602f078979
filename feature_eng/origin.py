"""What a training table was made of, as its properties have it: the examples, and the events behind them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from feature_eng.snapshot import EXAMPLES_PATH, EXAMPLES_VERSION, TABLES, SnapshotError
from foundation import stores


@dataclass(frozen=True)
class Origin:
    """The tables that a version of a training table was made of.

    Attributes:
        examples: Place of the examples.
        version: Their version.
        tables: Table of events, and ``rejects`` -> its version.
    """

    examples: str
    version: int
    tables: Mapping[str, int]

    @property
    def root(self) -> str:
        """Folder of all of them."""
        return stores.parent(self.examples)


def origin_of(table: stores.Place, properties: Mapping[str, str]) -> Origin:
    """The origin of a training table.

    Args:
        table: Its place, for the refusal.
        properties: Of the version in question, as `feature_eng.delta.properties` gives them.

    Raises:
        SnapshotError: They do not say it.
    """
    missing = [name for name in (EXAMPLES_PATH, EXAMPLES_VERSION, TABLES) if name not in properties]
    if missing:
        raise SnapshotError(
            f"{stores.normalised(table)}: does not say what it was made of (no {', '.join(missing)}); "
            "expected a training table of jobs/build_features.py: build the features again"
        )
    return Origin(
        properties[EXAMPLES_PATH], int(properties[EXAMPLES_VERSION]), json.loads(properties[TABLES])
    )
