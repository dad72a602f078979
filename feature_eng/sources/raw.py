"""Raw tables of a contract's source, whichever reader it names."""

from __future__ import annotations

from pyspark.sql import DataFrame, SparkSession

from feature_eng.contract import Contract, ContractError, SixScenarios
from feature_eng.sources import movielens, tables
from feature_eng.sources.lineage import Pins
from feature_eng.sources.six_scenarios import tables as made


def read_raw(
    spark: SparkSession, contract: Contract, source: str | None = None, pins: Pins | None = None
) -> dict[str, DataFrame]:
    """Read every raw table that the contract needs.

    Args:
        spark: Session to read with.
        contract: Names the reader and, for ``tables``, the files.
        source: Folder of the raw files. ``None``: the installed MovieLens-100K for the reader
            ``movielens``; the contract's paths as they are for ``tables``. ``six_scenarios`` reads nothing.
        pins: Versions of the tables to read, as :func:`feature_eng.sources.tables.pinned` gives them.

    Returns:
        Table name -> rows as read; the impressions under ``contract.source.main_table``.

    Raises:
        ContractError: Files are missing or not what the reader expects.
    """
    if contract.source.reader == "movielens":
        return {contract.source.main_table: movielens.read_ratings(spark, source)}
    if contract.source.reader == "six_scenarios":
        if source is not None:
            raise ContractError(
                [f"source: the reader 'six_scenarios' makes its rows; expected no --source {source}"]
            )
        return made.raw_tables(spark, contract.source.six_scenarios or SixScenarios())
    return tables.read_tables(spark, contract.source, source, pins)
