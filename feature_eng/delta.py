"""Delta tables: the only place that reads or writes them.

Training reads the Parquet files of a table version directly, without Delta. So
:func:`snapshot` lists them from the version's log, and refuses, by name, every table
feature that plain Parquet files would not show.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq
from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from feature_eng.snapshot import (
    CONTRACT_FINGERPRINT,
    CONTRACT_NAME,
    ENCODER_DIGEST,
    ENCODER_PATH,
    SCENARIO_NAMES,
    DataFile,
    SnapshotError,
    SnapshotRef,
    schema_hash,
)
from foundation.session import build_session as build_session

# Type in the log -> Arrow dtype. Anything else in a training table is refused: the loader
# reads strings, lists and decimals row by row or not at all.
_TRAINING_DTYPES = {"long": "int64", "integer": "int32", "float": "float32"}

# Reader features that leave the rows in the files as they are.
_HARMLESS_READER_FEATURES = {"v2Checkpoint", "vacuumProtocolCheck", "timestampNtz"}


class _Log(NamedTuple):
    """What the log says about one version."""

    version: int
    metadata: dict[str, Any]
    protocol: dict[str, Any]
    snapshot: Any  # the JVM's Snapshot


def read(spark: SparkSession, path: str | Path, version: int | None = None) -> DataFrame:
    """Rows of one version of a table.

    Args:
        spark: Session made by :func:`foundation.session.build_session`.
        path: Folder of the table.
        version: Version to read; ``None`` for the newest.

    Raises:
        SnapshotError: If there is no such table or no such version.
    """
    log = _log_of(spark, path, version)
    return spark.read.format("delta").option("versionAsOf", log.version).load(table_path(path))


def write(
    rows: DataFrame,
    path: str | Path,
    *,
    partition_by: Sequence[str] = (),
    properties: Mapping[str, str] | None = None,
    schema: StructType | None = None,
    options: Mapping[str, str] | None = None,
) -> int:
    """Replace a table's rows in one commit; older versions stay readable.

    Running it again with the same rows gives the same table as a new version. Without
    ``schema`` the table takes the rows' own, with every column nullable, which is how
    Delta derives one. With ``schema``, NOT NULL columns are enforced; the commit of the
    rows is preceded by one that declares the table whenever its schema or its properties
    are new. That version is empty, never old rows under new properties.

    Args:
        rows: What the table shall hold.
        path: Folder of the table.
        partition_by: Partition columns.
        properties: Table properties (with ``schema`` only; otherwise used at creation).
        schema: Declared schema, with its nullability.
        options: Options of the writer, such as ``maxRecordsPerFile``.

    Returns:
        The new version.
    """
    spark = rows.sparkSession
    place = table_path(path)
    writer = rows.write.format("delta").mode("overwrite").options(**(options or {}))
    if partition_by:
        writer = writer.partitionBy(*partition_by)
    if schema is None:
        writer = writer.option("overwriteSchema", "true").options(**(properties or {}))
    else:
        _declare(spark, place, schema, partition_by, properties or {})
    writer.save(place)
    return _log_of(spark, place, None).version


def snapshot(spark: SparkSession, path: str | Path, version: int | None = None) -> SnapshotRef:
    """Pin one version of a training table.

    Args:
        spark: Session made by :func:`foundation.session.build_session`.
        path: Folder of the table.
        version: Version to pin; ``None`` for the newest one that holds rows.

    Raises:
        SnapshotError: If the version does not exist, holds no rows, is not a training table, or
            uses something that its plain Parquet files do not show: deletion vectors,
            column mapping, type widening, unknown reader features, nullable columns.
    """
    log = _log_of(spark, path, version)
    listed = _listed(spark, log)
    # A rebuild with a new schema declares the table first; readers never see that step.
    while version is None and not listed and log.version > 0:
        log = _log_of(spark, path, log.version - 1)
        listed = _listed(spark, log)
    where = f"{table_path(path)} (version {log.version})"
    _refuse_unreadable(where, log, listed)
    columns = _training_columns(where, log.metadata)
    configuration: dict[str, str] = log.metadata.get("configuration") or {}
    wanted = (CONTRACT_NAME, CONTRACT_FINGERPRINT, ENCODER_DIGEST, ENCODER_PATH, SCENARIO_NAMES)
    missing = [name for name in wanted if name not in configuration]
    if missing:
        raise SnapshotError(
            f"{where}: not a training table, it lacks the properties {', '.join(missing)}; "
            "pin the table that jobs/build_features.py names 'training'"
        )
    if not listed:
        raise SnapshotError(f"{where}: holds no rows")
    with ThreadPoolExecutor(8) as pool:
        ordered = sorted(pool.map(lambda row: _data_file(table_path(path), row), listed), key=itemgetter(0))
    return SnapshotRef(
        table=table_path(path),
        version=log.version,
        table_id=log.metadata["id"],
        files=tuple(file for _, file in ordered),
        columns=columns,
        schema_hash=schema_hash(columns),
        contract_name=configuration[CONTRACT_NAME],
        contract_fingerprint=configuration[CONTRACT_FINGERPRINT],
        encoder_path=configuration[ENCODER_PATH],
        encoder_digest=configuration[ENCODER_DIGEST],
        scenario_rows=_scenario_rows(
            read(spark, path, log.version), len(json.loads(configuration[SCENARIO_NAMES]))
        ),
    )


def properties(spark: SparkSession, path: str | Path, version: int | None = None) -> dict[str, str]:
    """Properties of one version of a table, and its id in the log as ``id``.

    Raises:
        SnapshotError: If there is no such table or no such version.
    """
    metadata = _log_of(spark, path, version).metadata
    return {**(metadata.get("configuration") or {}), "id": metadata["id"]}


def newest_version(spark: SparkSession, path: str | Path) -> int:
    """Newest version of a table.

    Raises:
        SnapshotError: If there is no such table.
    """
    return _log_of(spark, path, None).version


def table_path(path: str | Path) -> str:
    """A table's absolute path; paths with a scheme are taken as they are."""
    text = str(path)
    return text if urlsplit(text).scheme and "://" in text else str(Path(text).absolute())


def _declare(
    spark: SparkSession,
    place: str,
    schema: StructType,
    partition_by: Sequence[str],
    properties: Mapping[str, str],
) -> None:
    exists = spark._jvm.org.apache.spark.sql.delta.DeltaLog.forTable(
        spark._jsparkSession, place
    ).tableExists()
    if exists:
        metadata = _log_of(spark, place, None).metadata
        unchanged = (
            StructType.fromJson(json.loads(metadata["schemaString"])) == schema
            and metadata["partitionColumns"] == list(partition_by)
            and (metadata.get("configuration") or {}) == dict(properties)
        )
        if unchanged:
            return
    columns = ", ".join(
        f"`{field.name}` {field.dataType.simpleString()}{'' if field.nullable else ' NOT NULL'}"
        for field in schema
    )
    partitions = f"PARTITIONED BY ({', '.join(f'`{name}`' for name in partition_by)})" if partition_by else ""
    listed = ", ".join(f"{_quoted(key)} = {_quoted(value)}" for key, value in properties.items())
    spark.sql(
        f"{'REPLACE' if exists else 'CREATE'} TABLE delta.`{place.replace('`', '``')}` ({columns}) "
        f"USING delta {partitions} {f'TBLPROPERTIES ({listed})' if listed else ''}"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _log_of(spark: SparkSession, path: str | Path, version: int | None) -> _Log:
    place = table_path(path)
    log = spark._jvm.org.apache.spark.sql.delta.DeltaLog.forTable(spark._jsparkSession, place)

    def default(method: str, position: int) -> Any:  # Scala's default arguments, as Java sees them
        return getattr(log, f"{method}$default${position}")()

    newest = log.update(*(default("update", position) for position in (1, 2, 3)))
    if newest.version() < 0:
        raise SnapshotError(f"{place}: there is no Delta table")
    found = newest
    if version is not None and version != newest.version():
        if not 0 <= version < newest.version():
            raise SnapshotError(f"{place}: there is no version {version}; the newest is {newest.version()}")
        try:
            found = log.getSnapshotAt(version, *(default("getSnapshotAt", position) for position in (2, 3)))
        except Py4JJavaError as error:
            raise SnapshotError(
                f"{place}: version {version} can no longer be read, its log was cleaned up; "
                f"the newest is {newest.version()} ({str(error.java_exception).splitlines()[0]})"
            ) from None
    return _Log(
        version=found.version(),
        metadata=json.loads(found.metadata().json())["metaData"],
        protocol=json.loads(found.protocol().json())["protocol"],
        snapshot=found,
    )


def _listed(spark: SparkSession, log: _Log) -> list[Any]:
    files = DataFrame(log.snapshot.allFiles().toDF(), spark)
    rows: list[Any] = files.select("path", "partitionValues", "size", "deletionVector").collect()
    return rows


def _refuse_unreadable(where: str, log: _Log, listed: Sequence[Any]) -> None:
    configuration: dict[str, str] = log.metadata.get("configuration") or {}
    if any(row["deletionVector"] is not None for row in listed):
        raise SnapshotError(
            f"{where}: has deletion vectors, so its files hold deleted rows; "
            "run REORG TABLE ... APPLY (PURGE) and pin the version that it makes"
        )
    if configuration.get("delta.columnMapping.mode", "none") != "none":
        raise SnapshotError(
            f"{where}: has column mapping, so its files carry other column names; build the table anew"
        )
    features = set(log.protocol.get("readerFeatures") or ())
    if features & {"typeWidening", "typeWidening-preview"}:
        raise SnapshotError(
            f"{where}: has type widening, so its files may hold narrower types; drop the table feature"
        )
    unknown = sorted(features - _HARMLESS_READER_FEATURES - {"deletionVectors", "columnMapping"})
    if unknown:
        raise SnapshotError(f"{where}: has reader features that are not known here: {', '.join(unknown)}")


def _training_columns(where: str, metadata: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    partitions = metadata["partitionColumns"]
    if partitions != ["split"]:
        raise SnapshotError(f"{where}: not a training table, it is not partitioned by 'split' alone")
    fields = [
        field for field in json.loads(metadata["schemaString"])["fields"] if field["name"] not in partitions
    ]
    faults = [
        f"column {field['name']!r} is of type {field['type']}; expected one of {', '.join(_TRAINING_DTYPES)}"
        for field in fields
        if not isinstance(field["type"], str) or field["type"] not in _TRAINING_DTYPES
    ]
    # One null turns int64 ids into floats in the reader, so a null must be impossible.
    faults += [f"column {field['name']!r} may hold nulls" for field in fields if field["nullable"]]
    if faults:
        raise SnapshotError("\n".join(f"{where}: {fault}" for fault in faults))
    return tuple((field["name"], _TRAINING_DTYPES[field["type"]]) for field in fields)


def _data_file(table: str, row: Any) -> tuple[tuple[str, int, str], DataFile]:
    """A file, and what to order it by: names are drawn anew at every write, the rows are not."""
    # The log holds URIs, relative to the table or absolute. They are decoded once, never twice.
    uri: str = row["path"]
    decoded = unquote(uri.removeprefix("file://").removeprefix("file:"))
    path = decoded if uri.startswith("/") or urlsplit(uri).scheme else f"{table}/{decoded}"
    try:
        with pq.ParquetFile(path) as file:
            footer = file.metadata
    except (OSError, ValueError) as error:
        raise SnapshotError(
            f"{path}: the table's log lists this file, but it cannot be read: {error}"
        ) from None
    groups = tuple(footer.row_group(place).num_rows for place in range(footer.num_row_groups))
    split: str = row["partitionValues"]["split"]
    file_of_snapshot = DataFile(path=path, size=row["size"], split=split, row_groups=groups)
    return (split, _least_row_id(footer), path), file_of_snapshot


def _least_row_id(footer: pq.FileMetaData) -> int:
    """The least key in a file by its statistics; 0 where it has none."""
    if footer.num_row_groups == 0:
        return 0
    chunks = (footer.row_group(0).column(place) for place in range(footer.num_columns))
    found = [chunk.statistics for chunk in chunks if chunk.path_in_schema == "row_id"]
    return int(found[0].min) if found and found[0] is not None and found[0].has_min_max else 0


def _scenario_rows(training: DataFrame, num_scenarios: int) -> dict[str, tuple[int, ...]]:
    counts = training.groupBy("split", "scenario_index").agg(F.count("*").alias("rows")).collect()
    rows = {row["split"]: [0] * num_scenarios for row in counts}
    for row in counts:
        rows[row["split"]][row["scenario_index"]] = row["rows"]
    return {split: tuple(rows[split]) for split in sorted(rows)}
