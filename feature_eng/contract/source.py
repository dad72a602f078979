"""The section ``source`` of a contract: which tables, and how they are written."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from foundation.settings import Settings


class Table(Settings):
    """One raw table of a generic log.

    Args:
        path: File or folder, relative to the source folder or the current directory.
        format: How it is written; CSV files have a header line.
        types: Types of columns that the format does not carry (CSV columns are strings otherwise).
        rename: Raw name -> name used in the contract.
    """

    path: str
    format: Literal["csv", "json", "parquet"]
    types: dict[str, Literal["integer", "number", "string"]] = Field(default_factory=dict)
    rename: dict[str, str] = Field(default_factory=dict)


class Source(Settings):
    """Which reader gives the raw tables, and which of them holds the impressions.

    Args:
        reader: ``movielens`` knows its files; ``tables`` reads what ``tables`` lists.
        tables: Name -> table, for the reader ``tables``.
        main: Name of the impression table; the first listed when left out.
    """

    reader: Literal["movielens", "tables"]
    tables: dict[str, Table] = Field(default_factory=dict)
    main: str | None = None

    @property
    def main_table(self) -> str:
        """Name of the table whose rows are the impressions."""
        return self.main or next(iter(self.tables), "impressions")
