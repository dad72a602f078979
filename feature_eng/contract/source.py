"""The section ``source`` of a contract: which tables, how they are written, and what joins what."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from feature_eng.contract.columns import Time
from feature_eng.contract.section import Names, Section
from feature_eng.contract.six_scenarios import TABLES as MADE_TABLES
from feature_eng.contract.six_scenarios import SixScenarios
from foundation.redaction import redact

ColumnType = Literal["integer", "number", "string"]


class Csv(Section):
    """How a CSV file is written.

    Args:
        delimiter: Between values; ``"\\t"`` for tab-separated files.
        quote: Around values that hold the delimiter.
        escape: Before a quote inside a quoted value; a doubled quote needs ``escape: '"'``.
        encoding: Of the text.
        header: Whether the first line of each file names the columns.
        columns: Names of the columns, in order, instead of the header's.
    """

    delimiter: Annotated[str, Field(min_length=1)] = ","
    quote: Annotated[str, Field(min_length=1, max_length=1)] = '"'
    escape: Annotated[str, Field(min_length=1, max_length=1)] = "\\"
    encoding: str = "UTF-8"
    header: bool = True
    columns: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _columns_have_names(self) -> Csv:
        if not self.header and not self.columns:
            raise ValueError("without a header line, 'columns' must name the columns in order")
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise ValueError(f"'columns' names {', '.join(twice)} twice")
        return self


class FileColumn(Section):
    """A column made of each file's name.

    Args:
        name: Of the column.
        pattern: Regular expression with one group, found in the file's name (without its folder); the
            group is the column's value. Left out: the name up to its first dot.
    """

    name: str
    pattern: str = r"^([^.]+)"

    @model_validator(mode="after")
    def _one_group(self) -> FileColumn:
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from None
        if groups != 1:
            raise ValueError(
                f"pattern {self.pattern!r} has {groups} groups; expected one, the column's value"
            )
        return self


class Table(Section):
    """One raw table.

    Applied in this order: ``rename``, ``file_column``, ``where``, ``select``, ``types``.

    Args:
        path: File, folder, glob or URI, or a list of them whose rows are put together; relative to the
            source folder or the current directory. Folders ``name=value`` make a column of text.
        format: How it is written.
        table: A table of the catalog instead of a path: ``name``, ``schema.name`` or ``catalog.schema.name``.
        version: Version of a Delta table; the newest when left out.
        timestamp: The version of a Delta table that was the newest at this time.
        csv: How a CSV file is written.
        multi_line: Whether a record of CSV or JSON may go over several lines; such files are not read in parts.
        file_column: A column made of each file's name.
        types: Types of columns that the format does not carry (CSV columns are strings otherwise).
        rename: Raw name -> name used in the contract.
        where: SQL condition; other rows are not read.
        select: Name -> SQL expression over the table's columns: further columns, or others in place of them.
    """

    later: ClassVar[frozenset[str]] = frozenset(
        {"table", "version", "timestamp", "csv", "multi_line", "file_column", "where", "select"}
    )

    path: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    format: Literal["csv", "json", "parquet", "delta", "orc"] | None = None
    table: str | None = None
    version: Annotated[int, Field(ge=0)] | None = None
    timestamp: str | None = None
    csv: Csv | None = None
    multi_line: bool | None = None
    file_column: FileColumn | None = None
    types: dict[str, ColumnType] = Field(default_factory=dict)
    rename: dict[str, str] = Field(default_factory=dict)
    where: str | None = None
    select: dict[str, str] | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths, one or several."""
        if self.path is None:
            return ()
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def addresses(self) -> tuple[str, ...]:
        """What is read: the table of the catalog, or each path."""
        return (self.table,) if self.table is not None else self.paths

    @property
    def address(self) -> str:
        """Where the table is, for messages."""
        return ", ".join(self.addresses)

    @model_validator(mode="after")
    def _options_fit(self) -> Table:
        if any(redact(address) != address for address in self.addresses):
            raise ValueError(
                "the address holds a credential, which would travel with every model; expected one without, "
                "and the credential in the environment or in Spark's settings"
            )
        if (self.path is None) == (self.table is None):
            raise ValueError("expected exactly one of 'path' and 'table'")
        if self.path is not None and self.format is None:
            raise ValueError("a path needs 'format'; expected csv, json, parquet, delta or orc")
        if self.table is not None and self.format is not None:
            raise ValueError("a table of the catalog knows its own format; expected no 'format'")
        if self.version is not None and self.timestamp is not None:
            raise ValueError("expected one of 'version' and 'timestamp'")
        if (self.version is not None or self.timestamp) and self.format not in (None, "delta"):
            raise ValueError(f"'version' and 'timestamp' go with delta, not with {self.format}")
        if self.csv is not None and self.format != "csv":
            raise ValueError(
                f"'csv' goes with format csv, not with {self.format or 'a table of the catalog'}"
            )
        if self.multi_line is not None and self.format not in ("csv", "json"):
            raise ValueError("'multi_line' goes with csv and json")
        if self.file_column is not None and self.format in (None, "delta"):
            raise ValueError("'file_column' goes with files; a table's files have no meaning of their own")
        return self


class Join(Section):
    """A side table whose columns the impressions get, by equal values of ``on``; never more rows than before.

    Args:
        table: One of ``source.tables``.
        on: Column or columns that both tables have.
        as_of: The side table's column that says from when on a row holds. An impression gets the row that held
            at its time; left out, the side table has one row for each key.
        newest: The side table's column by which the newest row of each key is taken, whenever that was.
    """

    table: str
    on: Names
    as_of: str | Time | None = None
    newest: str | None = None

    @model_validator(mode="after")
    def _one_choice(self) -> Join:
        if self.as_of is not None and self.newest is not None:
            raise ValueError("expected one of 'as_of' and 'newest'")
        return self

    @property
    def as_of_time(self) -> Time | None:
        """How to read the column ``as_of``."""
        return Time(column=self.as_of) if isinstance(self.as_of, str) else self.as_of


class Source(Section):
    """Which reader gives the raw tables, and which of them holds the impressions.

    Args:
        reader: ``movielens`` knows its files; ``tables`` reads what ``tables`` lists; ``six_scenarios`` makes a log.
        tables: Name -> table, for the reader ``tables``.
        six_scenarios: What the reader ``six_scenarios`` makes; all defaults when left out.
        main: Name of the impression table; the first listed when left out.
        join: Side tables whose columns the impressions get.
    """

    later: ClassVar[frozenset[str]] = frozenset({"join", "six_scenarios"})

    reader: Literal["movielens", "tables", "six_scenarios"] = "tables"
    tables: dict[str, Table] = Field(default_factory=dict)
    six_scenarios: SixScenarios | None = None
    main: str | None = None
    join: tuple[Join, ...] = ()

    @property
    def main_table(self) -> str:
        """Name of the table whose rows are the impressions."""
        return self.main or next(iter(self.tables), "impressions")

    @property
    def table_names(self) -> tuple[str, ...]:
        """Tables from which labels can come, as far as the contract alone tells."""
        return MADE_TABLES if self.reader == "six_scenarios" else tuple(self.tables)
