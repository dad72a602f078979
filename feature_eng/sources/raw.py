"""Raw tables of a contract's source, whichever reader it names."""

from __future__ import annotations

from pyspark.sql import DataFrame, SparkSession

from feature_eng.contract import Contract
from feature_eng.sources import movielens, tables


def read_raw(spark: SparkSession, contract: Contract, source: str | None = None) -> dict[str, DataFrame]:
    """Read every raw table that the contract needs.

    Args:
        spark: Session to read with.
        contract: Names the reader and, for ``tables``, the files.
        source: Folder of the raw files. ``None``: the installed MovieLens-100K for the reader
            ``movielens``; the contract's paths as they are for ``tables``.

    Returns:
        Table name -> rows as read; the impressions under ``contract.source.main_table``.

    Raises:
        ContractError: Files are missing or not what the reader expects.
    """
    if contract.source.reader == "movielens":
        return {contract.source.main_table: movielens.read_ratings(spark, source)}
    return tables.read_tables(spark, contract.source, source)
