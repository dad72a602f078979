"""Generic tables of CSV, JSON or Parquet files, read as the contract lists them."""

from __future__ import annotations

from pathlib import PurePath

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from feature_eng.contract import ContractError, Source, Table

CORRUPT_COLUMN = "_corrupt_record"


def read_tables(spark: SparkSession, source: Source, folder: str | None = None) -> dict[str, DataFrame]:
    """Read the listed tables; a record that cannot be read is kept in ``_corrupt_record``.

    CSV columns are read as text: a guessed type would turn the zip code ``01234`` into 1234.

    Args:
        spark: Session to read with.
        source: Tables to read.
        folder: What relative paths are relative to; the current directory when ``None``.

    Raises:
        ContractError: Tables that cannot be read, all of them.
    """
    tables: dict[str, DataFrame] = {}
    faults: list[str] = []
    for name, table in source.tables.items():
        try:
            tables[name] = _read_table(spark, table, _placed(table.path, folder))
        except AnalysisException as error:
            first_line = str(error).splitlines()[0]
            faults.append(f"source.tables.{name}.path: {table.path} cannot be read ({first_line})")
    if faults:
        raise ContractError(faults)
    return tables


def _placed(path: str, folder: str | None) -> str:
    if folder is None or "://" in path or PurePath(path).is_absolute():
        return path
    return f"{folder.rstrip('/')}/{path}"


def _read_table(spark: SparkSession, table: Table, path: str) -> DataFrame:
    if table.format == "parquet":
        frame = spark.read.parquet(path)
    elif table.format == "json":
        frame = spark.read.option("columnNameOfCorruptRecord", CORRUPT_COLUMN).json(path)
    else:
        header = spark.read.option("header", True).csv(path).columns
        schema = StructType([StructField(name, StringType()) for name in (*header, CORRUPT_COLUMN)])
        options = {"header": "true", "columnNameOfCorruptRecord": CORRUPT_COLUMN, "enforceSchema": "false"}
        frame = spark.read.options(**options).schema(schema).csv(path)
    missing = [name for name in table.rename if name not in frame.columns]
    if missing:
        raise ContractError(
            [f"source.tables: {table.path} has no column '{name}' to rename" for name in missing]
        )
    return frame.select(*(F.col(f"`{name}`").alias(table.rename.get(name, name)) for name in frame.columns))
