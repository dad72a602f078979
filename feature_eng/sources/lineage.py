"""Which version of every source table is read, as plain data that goes with the tables made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pyspark.sql import DataFrame

from feature_eng.contract import Source, Table

# Table -> the version of each of its addresses that is a Delta table, None for others.
Pins = Mapping[str, tuple[int | None, ...]]


def described(raw: Mapping[str, DataFrame], source: Source, pins: Pins) -> dict[str, list[dict[str, Any]]]:
    """Table name -> what its rows are read from: tables and their versions, or sets of files.

    Files have no version; how many they are and a digest of their names stand for it.

    Args:
        raw: The tables as read.
        source: The contract's section.
        pins: The versions that were read, as :func:`feature_eng.sources.tables.pinned` gives them.
    """
    return {name: _described(table, raw[name], pins[name]) for name, table in source.tables.items()}


def _described(table: Table, frame: DataFrame, versions: tuple[int | None, ...]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for address, version in zip(table.addresses, versions, strict=True):
        found.append({"from": address} | ({"version": version} if version is not None else {}))
    if None in versions and table.table is None:
        files = sorted(frame.inputFiles())
        digest = hashlib.sha256("\n".join(files).encode()).hexdigest()[:16]
        found.append({"files": len(files), "names": digest})
    return found
