"""Delta tables: the only place that reads or writes them.

Rows are read and written by Spark, through its public API. What a version is made of, its files, schema,
properties and protocol, is read from the table's log by ``deltalake`` (delta-rs), which needs neither the JVM nor
a cluster (docs/adr/0012).

Training reads the Parquet files of a table version directly, without Delta. So :func:`snapshot` lists them from
the version's log, and refuses, by name, every table feature that plain Parquet files would not show.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import itemgetter
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructField, StructType

from feature_eng.contract import quoted
from feature_eng.dates import ON_DATE
from feature_eng.snapshot import (
    CELLS,
    CONTRACT_FINGERPRINT,
    CONTRACT_NAME,
    ENCODER_DIGEST,
    ENCODER_PATH,
    FIRST_MEANING,
    MEANING_OF_ROWS,
    SCENARIO_NAMES,
    SOURCES,
    DataFile,
    SnapshotError,
    SnapshotRef,
    cells_from,
    schema_hash,
)
from foundation import access, places, stores
from foundation.session import build_session as build_session

# Type in the log -> Arrow dtype. Anything else in a training table is refused: the loader
# reads strings, lists and decimals row by row or not at all.
_TRAINING_DTYPES = {"long": "int64", "integer": "int32", "float": "float32"}

# Reader features that leave the rows in the files as they are.
_HARMLESS_READER_FEATURES = {"v2Checkpoint", "vacuumProtocolCheck", "timestampNtz"}

_FOOTERS_AT_ONCE = 16
_COMMIT = re.compile(r"\d{20}\.json")
_CHECKPOINT = re.compile(r"\d{20}\.checkpoint\.")
RETENTION = "interval 30 days"
"""For how long a version stays readable after a newer one replaced it, where nothing else is asked for."""
_LAST_COMMIT = "spark.databricks.delta.lastCommitVersionInSession"


class _Listed(NamedTuple):
    """A file as the log lists it.

    Args:
        uri: Percent-encoded, relative to the table or absolute.
        size: Bytes.
        partition: Value of each partition column.
    """

    uri: str
    size: int
    partition: Mapping[str, str | None]


class _Log(NamedTuple):
    """What the log says about one version."""

    table: str
    version: int
    table_id: str
    properties: Mapping[str, str]
    fields: Sequence[Mapping[str, Any]]
    partition_columns: Sequence[str]
    reader_features: frozenset[str]
    files: Sequence[_Listed]
    has_deletion_vectors: bool


def read(spark: SparkSession, path: stores.Place, version: int | None = None) -> DataFrame:
    """Rows of one version of a table.

    Args:
        spark: Session made by :func:`foundation.session.build_session`.
        path: Place of the table.
        version: Version to read; ``None`` for the newest.

    Raises:
        SnapshotError: If there is no such table or no such version.
    """
    found = _open(path, version).version()
    return spark.read.format("delta").option("versionAsOf", found).load(places.for_spark(path))


def read_earlier(spark: SparkSession, path: stores.Place, version: int) -> DataFrame:
    """Rows of a version that newer ones may have replaced long ago.

    Raises:
        SnapshotError: If there is no such table or version, or files of it are gone.
    """
    uris = pa.table(_open(path, version).get_add_actions()).column("path").to_pylist()
    files = [_place_of(stores.normalised(path), uri) for uri in uris]
    for file, size in zip(files, stores.sizes(files), strict=True):
        if size is None:
            raise SnapshotError(
                f"{file}: the file is gone, so version {version} of {stores.normalised(path)} can no longer be read; "
                "was the table vacuumed? Build the features again, and train on that build"
            )
    return read(spark, path, version)


def source_version(spark: SparkSession, table: str, timestamp: str | None = None) -> int | None:
    """The version of a table of the user's, with whatever features Spark reads; None if it is no Delta table.

    Args:
        spark: The session.
        table: As SQL has it: a quoted name, or ``delta.`<place>```.
        timestamp: The version that was the newest at this time; the newest of all when left out.

    Raises:
        SnapshotError: There was no version yet at that time.
    """
    try:
        history = spark.sql(f"DESCRIBE HISTORY {table}")
    except AnalysisException as error:
        # Of a table that is not there Spark says so, when it is read.
        if (error.getCondition() or "").startswith("DELTA_"):
            return None
        raise
    if timestamp is not None:
        history = history.where(F.col("timestamp") <= F.lit(timestamp).cast("timestamp"))
    newest = history.agg(F.max("version").alias("version")).first()
    if newest is None or newest["version"] is None:
        raise SnapshotError(f"{table}: had no version yet at {timestamp}")
    return int(newest["version"])


def write(
    rows: DataFrame,
    path: stores.Place,
    *,
    partition_by: Sequence[str] = (),
    properties: Mapping[str, str] | None = None,
    schema: StructType | None = None,
    options: Mapping[str, str] | None = None,
    where: str | None = None,
) -> int:
    """Replace a table's rows, or those of some partitions, in one commit; older versions stay readable.

    Running it again with the same rows gives the same table as a new version. Rows, schema and properties
    are of one commit: a reader of the newest version, by path too, meets the old table or the new one.

    Args:
        rows: What the table shall hold.
        path: Place of the table.
        partition_by: Partition columns.
        properties: All properties of the table; ``None`` keeps those that it has.
        schema: The table's columns and their types. A null in one that is not nullable fails the write; that
            is checked row by row as they are written, since Delta makes every column of a table that is
            replaced together with its rows nullable.
        options: Options of the writer, such as ``maxRecordsPerFile``.
        where: The partitions to replace, in SQL; all other files stay as they are. A row outside of them fails the
            write, no rows empty them. ``None`` replaces the whole table.

    Returns:
        The version that this commit made; the newest there is, where nothing was and nothing is to be.
    """
    spark = rows.sparkSession
    place = places.for_spark(path)
    _forget_commits(spark)
    if schema is not None:
        rows = rows.select(*(_checked(field) for field in schema))
    options = {**(options or {}), **({} if where is None else {"replaceWhere": where})}
    if properties is None:
        writer = rows.write.format("delta").mode("overwrite").options(**options)
        if where is None:
            writer = writer.option("overwriteSchema", "true").partitionBy(*partition_by)
        writer.save(place)
    else:
        table = rows.writeTo(f"delta.`{place.replace('`', '``')}`").using("delta")
        for key, value in properties.items():
            table = table.tableProperty(key, value)
        if partition_by:
            table = table.partitionedBy(*map(F.col, partition_by))
        table.options(**options).createOrReplace()
    return _committed(spark, path)


def _committed(spark: SparkSession, path: stores.Place) -> int:
    """The version that the session has committed since its last commit was forgotten; the newest if none was due."""
    found = spark.conf.get(_LAST_COMMIT, None)
    return newest_version(path) if found is None else int(found)


def _forget_commits(spark: SparkSession) -> None:
    # Of a write that changes nothing Delta makes no commit, and the last one is then another table's.
    spark.conf.unset(_LAST_COMMIT)


def append(rows: DataFrame, path: stores.Place) -> int:
    """Add rows to a table, which is made where there is none; the version that this commit made."""
    spark = rows.sparkSession
    _forget_commits(spark)
    rows.write.format("delta").mode("append").save(places.for_spark(path))
    return _committed(spark, path)


def exists(path: stores.Place) -> bool:
    """Whether there is a table at a place."""
    return stores.exists(stores.join(path, "_delta_log"))


def kept_for(retention: str = RETENTION) -> dict[str, str]:
    """Properties by which VACUUM and the clean-up of logs leave replaced versions readable for so long.

    All tables of a build are kept equally long: a model that was trained on one of them is judged by the others.

    Args:
        retention: An interval, such as ``interval 30 days``.
    """
    return {"delta.deletedFileRetentionDuration": retention, "delta.logRetentionDuration": retention}


def snapshot(spark: SparkSession, path: stores.Place, version: int | None = None) -> SnapshotRef:
    """Pin one version of a training table.

    Args:
        spark: Session made by :func:`foundation.session.build_session`.
        path: Place of the table.
        version: Version to pin; ``None`` for the newest.

    Raises:
        SnapshotError: If the version does not exist, holds no rows, is not a training table, or
            uses something that its plain Parquet files do not show: deletion vectors,
            column mapping, type widening, unknown reader features, nulls.
    """
    log = _read_log(path, version)
    where = f"{log.table} (version {log.version})"
    _refuse_unreadable(where, log)
    columns = _training_columns(where, log)
    wanted = (CONTRACT_NAME, CONTRACT_FINGERPRINT, ENCODER_DIGEST, ENCODER_PATH, SCENARIO_NAMES)
    missing = [name for name in wanted if name not in log.properties]
    if missing:
        raise SnapshotError(
            f"{where}: not a training table, it lacks the properties {', '.join(missing)}; "
            "pin the table that jobs/build_features.py names 'training'"
        )
    if not log.files:
        raise SnapshotError(f"{where}: holds no rows")
    # What is declared NOT NULL has none; of the other columns each file's footer must say so.
    nullable = frozenset(field["name"] for field in log.fields if field["nullable"])
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        ordered = sorted(
            pool.map(lambda listed: _data_file(log.table, listed, nullable), log.files), key=itemgetter(0)
        )
    return SnapshotRef(
        table=log.table,
        version=log.version,
        table_id=log.table_id,
        files=tuple(file for _, file in ordered),
        columns=columns,
        schema_hash=schema_hash(columns),
        contract_name=log.properties[CONTRACT_NAME],
        contract_fingerprint=log.properties[CONTRACT_FINGERPRINT],
        encoder_path=log.properties[ENCODER_PATH],
        encoder_digest=log.properties[ENCODER_DIGEST],
        scenario_rows=_scenario_rows(
            read(spark, path, log.version), len(json.loads(log.properties[SCENARIO_NAMES]))
        ),
        sources=log.properties.get(SOURCES, ""),
        cells=cells_from(json.loads(log.properties.get(CELLS, "[]"))),
        meaning=log.properties.get(MEANING_OF_ROWS, FIRST_MEANING),
    )


def properties(path: stores.Place, version: int | None = None) -> dict[str, str]:
    """Properties of one version of a table, and its id in the log as ``id``.

    Raises:
        SnapshotError: If there is no such table or no such version.
    """
    metadata = _open(path, version).metadata()
    return {**metadata.configuration, "id": str(metadata.id)}


def column_names(path: stores.Place, version: int | None = None) -> list[str]:
    """Columns of one version of a table.

    Raises:
        SnapshotError: If there is no such table or no such version.
    """
    return [field.name for field in _open(path, version).schema().fields]


def partition_columns(path: stores.Place) -> list[str]:
    """Columns by which the newest version of a table is partitioned.

    Raises:
        SnapshotError: If there is no such table.
    """
    return list(_open(path, None).metadata().partition_columns)


def partitions(path: stores.Place, version: int, column: str) -> dict[Any, frozenset[str]]:
    """Files of one version of a table by their value of a partition column.

    Raises:
        SnapshotError: If there is no such table or version, or it is not partitioned by this column alone.
    """
    table = _open(path, version)
    if list(table.metadata().partition_columns) != [column]:
        raise SnapshotError(f"{path}: version {version} is not partitioned by {column!r} alone")
    actions = pa.table(table.get_add_actions())
    found: dict[Any, set[str]] = {}
    values = actions.column("partition").to_pylist()
    for place, of in zip(actions.column("path").to_pylist(), values, strict=True):
        found.setdefault(of[column], set()).add(place)
    return {value: frozenset(files) for value, files in found.items()}


def partitions_within(
    path: stores.Place, version: int, column: str, bounds: Mapping[str, tuple[Any, Any]]
) -> set[Any]:
    """Values of a partition column whose files may hold a row with other columns' values between bounds.

    Args:
        path: Place of the table.
        version: Version to look at; of its log alone.
        column: The partition column.
        bounds: Column -> the least and the greatest value, whole numbers or text: what else is compared by nothing.

    Raises:
        SnapshotError: If there is no such table or no such version.
    """
    actions = pa.table(_open(path, version).get_add_actions())
    known = actions.select([name for name in ("partition", "min", "max") if name in actions.column_names])
    return {
        file["partition"][column]
        for file in known.to_pylist()
        if all(
            _may_lie(least, greatest, (file.get("min") or {}).get(name), (file.get("max") or {}).get(name))
            for name, (least, greatest) in bounds.items()
        )
    }


def _may_lie(least: Any, greatest: Any, lowest: Any, highest: Any) -> bool:
    """Whether a value from least to greatest may be one from lowest to highest: true where these are not known.

    Of long text the log has the beginning, which is less, and one that is greater than all texts that begin so.
    """
    ends = (least, greatest, lowest, highest)
    if not any(all(type(end) is kind for end in ends) for kind in (int, str)):
        return True
    return bool(lowest <= greatest and least <= highest)


def num_rows(
    spark: SparkSession, path: stores.Place, version: int, of: Mapping[str, Collection[Any]] | None = None
) -> int:
    """Rows of one version of a table: as its log has counted them, or counted where it has not.

    Args:
        spark: The session.
        path: Place of the table.
        version: Version to count.
        of: Values of partition columns, ``None`` among them, to count the rows of these partitions alone.

    Raises:
        SnapshotError: If there is no such table or no such version.
    """
    wanted = of or {}
    actions = pa.table(_open(path, version).get_add_actions())
    known = actions.select([name for name in ("partition", "num_records") if name in actions.column_names])
    files = [
        file
        for file in known.to_pylist()
        if all(file["partition"][name] in values for name, values in wanted.items())
    ]
    counts = [file.get("num_records") for file in files]
    if None not in counts:
        total: int = sum(counts)
    else:
        rows = read(spark, path, version)
        for name, values in wanted.items():
            is_one = (F.col(quoted(name)).eqNullSafe(F.lit(value)) for value in values)
            rows = rows.where(reduce(Column.__or__, is_one))
        total = rows.count()
    return total


def data_bytes(path: stores.Place, version: int | None = None) -> int:
    """Bytes of the files of one version of a table.

    Raises:
        SnapshotError: If there is no such table or no such version.
    """
    return sum(pa.table(_open(path, version).get_add_actions()).column("size_bytes").to_pylist())


def newest_version(path: stores.Place) -> int:
    """Newest version of a table.

    Raises:
        SnapshotError: If there is no such table.
    """
    return int(_open(path, None).version())


def _checked(field: StructField) -> Column:
    """A column as the schema declares it; a null in one that may hold none fails the write."""
    column = F.col(f"`{field.name}`").cast(field.dataType)
    if not field.nullable:
        fault = F.raise_error(F.lit(f"NOT NULL constraint violated for column: {field.name}"))
        column = F.coalesce(column, fault.cast(field.dataType))
    return column.alias(field.name)


def _open(path: stores.Place, version: int | None) -> DeltaTable:
    """A version of a table as its log has it."""
    place = stores.normalised(path)
    address, options = access.for_delta_rs(place)
    if version is not None and version >= 0:
        try:
            found = DeltaTable(address, version=version, storage_options=options)
        except DeltaError:
            pass  # said below, with the newest version there is
        else:
            _refuse_gaps(place, version)
            return found
    try:
        newest = DeltaTable(address, storage_options=options)
        _refuse_gaps(place, newest.version())
    except TableNotFoundError:
        raise SnapshotError(f"{place}: there is no Delta table") from None
    except (DeltaError, OSError) as error:
        raise SnapshotError(f"{place}: its log cannot be read: {_first_line(error)}") from error
    if version is None or version == newest.version():
        return newest
    if not 0 <= version < newest.version():
        raise SnapshotError(f"{place}: there is no version {version}; the newest is {newest.version()}")
    raise SnapshotError(
        f"{place}: version {version} can no longer be read, its log was cleaned up; "
        f"the newest is {newest.version()}"
    )


def _refuse_gaps(place: str, version: int) -> None:
    """Refuse a log that lacks a commit: delta-rs goes on with what is left, and lists too few files."""
    names = stores.names(stores.join(place, "_delta_log"))
    commits = {int(name[:20]) for name in names if _COMMIT.fullmatch(name)}
    checkpoints = {int(name[:20]) for name in names if _CHECKPOINT.match(name)}
    start = max((found for found in checkpoints if found <= version), default=-1)
    missing = next((wanted for wanted in range(start + 1, version + 1) if wanted not in commits), None)
    if missing is not None:
        raise SnapshotError(
            f"{place}: version {version} can no longer be read, its log was cleaned up and lacks commit {missing}; "
            f"the newest is {max(commits, default=version)}"
        )


def _read_log(path: stores.Place, version: int | None) -> _Log:
    table = _open(path, version)
    metadata, protocol = table.metadata(), table.protocol()
    features = frozenset(protocol.reader_features or ())
    # delta-rs speaks Arrow's C interface, which pyarrow 14 reads.
    actions = pa.table(table.get_add_actions())
    partitions = (
        actions.column("partition").to_pylist() if metadata.partition_columns else [{}] * actions.num_rows
    )
    return _Log(
        table=stores.normalised(path),
        version=int(table.version()),
        table_id=str(metadata.id),
        properties=dict(metadata.configuration),
        fields=json.loads(table.schema().to_json())["fields"],
        partition_columns=list(metadata.partition_columns),
        reader_features=features,
        files=[
            _Listed(uri, size, partition)
            for uri, size, partition in zip(
                actions.column("path").to_pylist(),
                actions.column("size_bytes").to_pylist(),
                partitions,
                strict=True,
            )
        ],
        has_deletion_vectors="deletionVectors" in features
        and any(batch.num_rows for batch in table.deletion_vectors()),
    )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _refuse_unreadable(where: str, log: _Log) -> None:
    if log.has_deletion_vectors:
        raise SnapshotError(
            f"{where}: has deletion vectors, so its files hold deleted rows; "
            "run REORG TABLE ... APPLY (PURGE) and pin the version that it makes"
        )
    if log.properties.get("delta.columnMapping.mode", "none") != "none":
        raise SnapshotError(
            f"{where}: has column mapping, so its files carry other column names; build the table anew"
        )
    if log.reader_features & {"typeWidening", "typeWidening-preview"}:
        raise SnapshotError(
            f"{where}: has type widening, so its files may hold narrower types; drop the table feature"
        )
    unknown = sorted(log.reader_features - _HARMLESS_READER_FEATURES - {"deletionVectors", "columnMapping"})
    if unknown:
        raise SnapshotError(f"{where}: has reader features that are not known here: {', '.join(unknown)}")


def _training_columns(where: str, log: _Log) -> tuple[tuple[str, str], ...]:
    if list(log.partition_columns) not in (["split"], ["split", ON_DATE]):
        raise SnapshotError(
            f"{where}: not a training table, it is not partitioned by 'split', with '{ON_DATE}' or not"
        )
    fields = [field for field in log.fields if field["name"] not in log.partition_columns]
    faults = [
        f"column {field['name']!r} is of type {field['type']}; expected one of {', '.join(_TRAINING_DTYPES)}"
        for field in fields
        if not isinstance(field["type"], str) or field["type"] not in _TRAINING_DTYPES
    ]
    if faults:
        raise SnapshotError("\n".join(f"{where}: {fault}" for fault in faults))
    return tuple((field["name"], _TRAINING_DTYPES[field["type"]]) for field in fields)


def _data_file(
    table: str, listed: _Listed, nullable: frozenset[str]
) -> tuple[tuple[str, int, str], DataFile]:
    """A file, and what to order it by: names are drawn anew at every write, the rows are not."""
    path = _place_of(table, listed.uri)
    split = listed.partition["split"]
    if split is None:
        raise SnapshotError(f"{path}: its rows are of no split; column 'split' holds nulls")
    try:
        with stores.open_input(path) as stream:
            footer = pq.ParquetFile(stream).metadata
    except (OSError, ValueError) as error:
        raise SnapshotError(
            f"{path}: the table's log lists this file, but it cannot be read: {error}"
        ) from None
    groups = tuple(footer.row_group(place).num_rows for place in range(footer.num_row_groups))
    _refuse_nulls(path, footer, nullable)
    return (split, _least_row_id(footer), path), DataFile(path, listed.size, split, groups)


def _place_of(table: str, uri: str) -> str:
    """Where a file that the log lists lies: the log holds URIs, decoded here once and never twice."""
    if stores.has_scheme(uri):  # of another table, in a shallow clone
        return stores.normalised(uri if uri.startswith("file:") else unquote(uri))
    decoded = unquote(uri)
    return decoded if uri.startswith("/") else f"{table}/{decoded}"


def _refuse_nulls(path: str, footer: pq.FileMetaData, nullable: frozenset[str]) -> None:
    """One null turns int64 ids into floats in the reader, so there must be none, and proof of it."""
    names = [footer.schema.column(place).path for place in range(footer.num_columns)]
    for place, name in enumerate(names):
        if name not in nullable:
            continue
        for group in range(footer.num_row_groups):
            statistics = footer.row_group(group).column(place).statistics
            if statistics is None or not statistics.has_null_count:
                raise SnapshotError(f"{path}: column {name!r} may hold nulls, the file does not count them")
            if statistics.null_count:
                raise SnapshotError(
                    f"{path}: column {name!r} holds {statistics.null_count} nulls; expected none, "
                    "build the features again"
                )


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
