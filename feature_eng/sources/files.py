"""Files of one path: CSV, JSON, Parquet and ORC, with what each format leaves open settled by the contract."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote

import pyarrow.parquet as pq
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from feature_eng.contract import ContractError, Csv, FileColumn, Table, quoted
from foundation import stores

CORRUPT_COLUMN = "_corrupt_record"
_PACKED = re.compile(r"\.(zip|7z|rar|tar|tgz|tar\.\w+|xz)$", re.IGNORECASE)
_NANOS_AS_LONG = "spark.sql.legacy.parquet.nanosAsLong"


def read(spark: SparkSession, where: str, table: Table, path: str) -> DataFrame:
    """Rows of the files of one path.

    Raises:
        ContractError: The files are packed in a way that Spark does not read, or are not what the contract says.
        AnalysisException: Spark cannot read them.
    """
    if _PACKED.search(path):
        raise ContractError([f"{where}.path: {path} is packed; unpack it, or pack each file by gzip"])
    if table.format == "parquet":
        frame = _parquet(spark, path)
    elif table.format == "orc":
        frame = spark.read.orc(path)
    elif table.format == "json":
        options = {"columnNameOfCorruptRecord": CORRUPT_COLUMN, "multiLine": bool(table.multi_line)}
        frame = spark.read.options(**options).json(path)
    else:
        frame = _csv(spark, where, table, path)
    packed = [file for file in frame.inputFiles() if _PACKED.search(file)]
    if packed:
        raise ContractError([f"{where}.path: {packed[0]} is packed; unpack it, or pack each file by gzip"])
    return _with_file_column(frame, where, table.file_column) if table.file_column else frame


def _csv(spark: SparkSession, where: str, table: Table, path: str) -> DataFrame:
    csv = table.csv or Csv()
    reader = spark.read.options(
        sep=csv.delimiter,
        quote=csv.quote,
        escape=csv.escape,
        encoding=csv.encoding,
        multiLine=bool(table.multi_line),
        columnNameOfCorruptRecord=CORRUPT_COLUMN,
    )
    names = list(csv.columns)
    if not names:
        names = reader.option("header", True).csv(path).columns
        if not names:
            raise ContractError([f"{where}.path: {path} is empty; expected a header line"])
        # Spark makes up names where the header has none, or has one twice.
        if any(name.endswith(str(place)) for place, name in enumerate(names)):
            _check_header(where, path, reader.option("header", False).csv(path).first() or ())
    schema = StructType([StructField(name, StringType()) for name in (*names, CORRUPT_COLUMN)])
    # By names, columns of files with another order would be found out; given names are the columns' order.
    by_place = "true" if csv.columns else "false"
    return reader.options(header=csv.header, enforceSchema=by_place).schema(schema).csv(path)


def _check_header(where: str, path: str, header: Sequence[str | None]) -> None:
    faults = []
    for place, name in enumerate(header):
        if not name:
            faults.append(f"{where}.path: {path} has no name for column {place + 1} in its header line")
        elif name in header[:place]:
            faults.append(f"{where}.path: {path} has two columns {name!r} in its header line")
    if faults:
        raise ContractError(
            [f"{fault}; name all of them, in order: csv: {{columns: [...]}}" for fault in faults]
        )


def _parquet(spark: SparkSession, path: str) -> DataFrame:
    earlier = spark.conf.get(_NANOS_AS_LONG)
    spark.conf.set(_NANOS_AS_LONG, "false")
    try:
        frame = spark.read.parquet(path)
        spark.conf.set(_NANOS_AS_LONG, str(earlier))
        return frame
    except AnalysisException as error:
        # Some version of Spark's converter may come upon a type that it does not know at all.
        if error.getCondition() != "PARQUET_TYPE_ILLEGAL":
            raise
    # Spark has no nanoseconds, which is how pandas writes times. Read as numbers they are made times again;
    # the setting must hold when the files are read, and so for the rest of the session.
    spark.conf.set(_NANOS_AS_LONG, "true")
    try:
        # Merged, so that times of other files do not pass for nanoseconds too.
        frame = spark.read.option("mergeSchema", True).parquet(path)
    except AnalysisException as error:
        if error.getCondition() != "PARQUET_TYPE_ILLEGAL":
            raise
        illegal = str((error.getMessageParameters() or {}).get("parquetType"))
        raise ContractError([f"{path}: a column is of type {illegal}, which Spark does not read"]) from None
    kinds = _logical_types(frame.inputFiles()[0])
    return frame.select(*(_time_of(name, kinds.get(name, "")) for name in frame.columns))


def _time_of(name: str, kind: str) -> Column:
    if not (kind.startswith("Timestamp(") and "timeUnit=nanoseconds" in kind):
        return F.col(quoted(name))
    micros = f"{quoted(name)} DIV 1000"
    if "isAdjustedToUTC=true" in kind:
        return F.expr(f"timestamp_micros({micros})").alias(name)
    return F.expr(f"timestampadd(MICROSECOND, {micros}, TIMESTAMP_NTZ'1970-01-01 00:00:00')").alias(name)


def _logical_types(file: str) -> dict[str, str]:
    """Column of a Parquet file -> what its values mean, as the file's footer says."""
    with stores.open_input(unquote(file)) as opened:
        schema = pq.ParquetFile(opened).schema
        columns = [schema.column(place) for place in range(len(schema))]
        return {column.path: str(column.logical_type) for column in columns}


def _with_file_column(frame: DataFrame, where: str, made: FileColumn) -> DataFrame:
    """Add the column made of each file's name, which every file must have."""
    if made.name in frame.columns:
        raise ContractError([f"{where}.file_column: the files have a column {made.name!r} of their own"])
    names = sorted({unquote(file.rsplit("/", 1)[-1]) for file in frame.inputFiles()})
    other = [name for name in names if not re.search(made.pattern, name)]
    if other:
        raise ContractError(
            [f"{where}.file_column: pattern {made.pattern!r} is not found in the file name {other[0]!r}"]
        )
    # Spark gives the name as a URI has it, where a plus is no space.
    name = F.url_decode(F.replace(F.col("_metadata.file_name"), F.lit("+"), F.lit("%2B")))
    value = F.regexp_extract(name, made.pattern, 1)
    return frame.select("*", value.alias(made.name))
