"""What is known: all until the second that ``--as-of`` names, and nothing after it."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from feature_eng import delta
from feature_eng.contract import Contract, ContractError
from feature_eng.events import Events, column
from feature_eng.snapshot import AS_OF, END
from foundation import stores


def known(
    examples: DataFrame, events: Events, contract: Contract, as_of: int | None
) -> tuple[DataFrame, Events]:
    """Examples, and rows of all tables of events, until a second; all where none is named."""
    if as_of is None:
        return examples, events
    assert contract.columns.time is not None, "checked where the second was read"

    def until(rows: DataFrame, time: str) -> DataFrame:
        return rows.where(column(time) <= F.lit(as_of))

    return until(examples, contract.columns.time), Events(
        impressions=until(events.impressions, contract.columns.time),
        related={
            table: until(events.related[table], time.column) for table, time in contract.related_times.items()
        },
        rejects=events.rejects,
    )


def check_before(training: stores.Place, contract: Contract, as_of: int | None) -> None:
    """Stop where a build of some days is told what is known, and the build that it goes on from was not.

    That one took every row for known, and every label that stands in its row. Days that are not made anew would keep
    what a build that is told so leaves out. Where all labels are known after a length of time, or come from other
    tables, a row is known for certain before the second with which its data ended, so nothing differs.

    Args:
        training: Place of the training table.
        contract: What is built.
        as_of: The last second that counts as known, where one is named.

    Raises:
        ContractError: Says what to build first.
    """
    if as_of is None or not delta.exists(training):
        return
    record = delta.properties(training)
    if AS_OF in record or (END in record and not contract.duration_columns):
        return
    raise ContractError(
        [
            "--as-of: the build before was told none, and took all its rows and their labels for known; build all days "
            "by it once: --dates :"
        ]
    )
