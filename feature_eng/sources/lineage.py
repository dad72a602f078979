"""Which version of every source table was read, as plain data that goes with the tables made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pyspark.sql import DataFrame

from feature_eng import delta


def versions_of(raw: Mapping[str, DataFrame]) -> dict[str, list[dict[str, Any]]]:
    """Table name -> what its rows are read from: a Delta table's place and version, or a set of files.

    Files have no version; their number, their size and a digest of their names stand for it.
    """
    return {name: [_described(place) for place in delta.file_locations(frame)] for name, frame in raw.items()}


def _described(location: Any) -> dict[str, Any]:
    if delta.is_delta(location):
        return {"table": location.path().toString(), "version": int(location.getSnapshot().version())}
    files = sorted(location.inputFiles())
    return {
        "paths": [root.toString() for root in _listed(location.rootPaths())],
        "files": len(files),
        "bytes": int(location.sizeInBytes()),
        "names": hashlib.sha256("\n".join(files).encode()).hexdigest()[:16],
    }


def _listed(sequence: Any) -> list[Any]:
    return [sequence.apply(place) for place in range(sequence.size())]
