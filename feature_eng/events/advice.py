"""What the rejects of a build say of its contract: faults that only rows can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from feature_eng.contract import Contract, ContractError
from feature_eng.sources.tables import CORRUPT_COLUMN

UNREADABLE = "unreadable record"


@dataclass(frozen=True)
class RowCount:
    """What became of one raw table's rows; ``rows_in = rows_out + rejected``."""

    rows_in: int
    rows_out: int
    rejected: int


def check_rejects(
    counts: Mapping[str, RowCount], reasons: Sequence[Row], rejects: DataFrame, contract: Contract
) -> None:
    """Stop where rows were misread, or where none is left.

    Args:
        counts: Table -> its rows in, out and rejected.
        reasons: ``table``, ``reason`` and ``rows`` of the rejects.
        rejects: The rejects themselves; read only where a CSV file has unreadable records.
        contract: What was built.

    Raises:
        ContractError: What the rejects show, and what to write instead.
    """
    faults = []
    for name, table in contract.source.tables.items():
        unreadable = any(row["table"] == name and row["reason"] == UNREADABLE for row in reasons)
        if table.format == "csv" and table.multi_line is None and unreadable:
            quote = table.csv.quote if table.csv else '"'
            if _has_half_quotes(rejects.where(F.col("table") == name), quote):
                faults.append(
                    f"source.tables.{name}: a record ends within quotes, as where a value holds a line break; "
                    "write multi_line: true to read such values, or multi_line: false to reject such records"
                )
    main = contract.source.main_table
    if counts[main].rows_in == 0:
        faults.append(f"source: {main!r} holds no rows")
    elif counts[main].rows_out == 0:
        most = sorted(((row["rows"], row["reason"]) for row in reasons if row["table"] == main), reverse=True)
        why = "; ".join(f"{rows:,}: {reason}" for rows, reason in most[:5])
        faults.append(f"source: none of the {counts[main].rows_in:,} rows of {main!r} can be used ({why})")
    if faults:
        raise ContractError(faults)


def _has_half_quotes(rejects: DataFrame, quote: str) -> bool:
    record = F.get_json_object("row", f"$.{CORRUPT_COLUMN}")
    quotes = F.length(record) - F.length(F.replace(record, F.lit(quote), F.lit("")))
    return not rejects.where((F.col("reason") == UNREADABLE) & (quotes % 2 == 1)).isEmpty()
