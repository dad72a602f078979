"""Tables of any format, read as the contract lists them: files, Delta tables, tables of the catalog."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import PurePath

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import NumericType

from feature_eng import delta
from feature_eng.contract import ContractError, Source, Table, quoted
from feature_eng.snapshot import SnapshotError
from feature_eng.sources import files
from feature_eng.sources.expressions import filtered, selected
from feature_eng.sources.faults import reason_of
from feature_eng.sources.lineage import Pins
from foundation import places, stores
from foundation.settings import suggestion

CORRUPT_COLUMN = files.CORRUPT_COLUMN


def pinned(spark: SparkSession, source: Source, folder: str | None = None) -> Pins:
    """The versions to read: those that the contract names, else the newest there are now.

    A build reads its tables more than once; what it reads must not change in between.

    Raises:
        ContractError: Tables that are not there, all of them.
    """
    pins: dict[str, tuple[int | None, ...]] = {}
    faults: list[str] = []
    for name, table in source.tables.items():
        try:
            pins[name] = tuple(_pinned(spark, table, address, folder) for address in table.addresses)
        except (PySparkException, SnapshotError) as error:
            faults.append(f"{_where(name, table)}: {table.address} cannot be read ({reason_of(error)})")
    if faults:
        raise ContractError(faults)
    return pins


def read_tables(
    spark: SparkSession, source: Source, folder: str | None = None, pins: Pins | None = None
) -> dict[str, DataFrame]:
    """Read the listed tables; a record that cannot be read is kept in ``_corrupt_record``.

    CSV columns are read as text: a guessed type would turn the zip code ``01234`` into 1234.

    Args:
        spark: Session to read with.
        source: Tables to read.
        folder: What relative paths are relative to; the current directory when ``None``.
        pins: Versions to read, as :func:`pinned` gives them; found when left out.

    Raises:
        ContractError: Tables that cannot be read, and expressions that do not fit them, all of them.
    """
    pins = pinned(spark, source, folder) if pins is None else pins
    tables: dict[str, DataFrame] = {}
    faults: list[str] = []
    for name, table in source.tables.items():
        try:
            frame = _read(spark, name, table, folder, pins[name])
            tables[name] = _shaped(f"source.tables.{name}", table, frame)
        except ContractError as error:
            faults += error.faults
    if faults:
        raise ContractError(faults)
    return tables


def _where(name: str, table: Table) -> str:
    return f"source.tables.{name}.{'path' if table.table is None else 'table'}"


def _pinned(spark: SparkSession, table: Table, address: str, folder: str | None) -> int | None:
    if table.table is None and table.format != "delta":
        return None
    if table.version is not None:
        return table.version
    named = _catalog_name(address) if table.table else f"delta.{quoted(_placed(address, folder))}"
    return delta.source_version(spark, named, table.timestamp)


def _read(
    spark: SparkSession, name: str, table: Table, folder: str | None, versions: tuple[int | None, ...]
) -> DataFrame:
    where, parts = f"source.tables.{name}", []
    for address, version in zip(table.addresses, versions, strict=True):
        try:
            parts.append(_from(spark, where, table, address, folder, version))
        except PySparkException as error:
            fault = f"{_where(name, table)}: {address} cannot be read ({reason_of(error)})"
            raise ContractError([fault]) from None
    if len(parts) > 1:
        _refuse_other_types(where, table, parts)
    return reduce(lambda one, other: one.unionByName(other, allowMissingColumns=True), parts)


def _from(
    spark: SparkSession, where: str, table: Table, address: str, folder: str | None, version: int | None
) -> DataFrame:
    if table.table is not None:
        name = _catalog_name(address)
        if version is None:
            return spark.read.table(name)
        return spark.sql(f"SELECT * FROM {name} VERSION AS OF {version}")
    path = _placed(address, folder)
    if table.format == "delta":
        return spark.read.format("delta").option("versionAsOf", str(version)).load(path)
    with _partition_values_as_text(spark):
        return files.read(spark, where, table, path)


def _catalog_name(table: str) -> str:
    return ".".join(quoted(part.strip("`")) for part in table.split("."))


def _shaped(where: str, table: Table, frame: DataFrame) -> DataFrame:
    """The table under the contract's names, its rows chosen and its columns made."""
    missing = [name for name in table.rename if name not in frame.columns]
    if missing:
        raise ContractError(
            [
                f"{where}.rename: {table.address} has no column {name!r} to rename"
                + suggestion(name, frame.columns)
                for name in missing
            ]
        )
    new_names = [table.rename.get(name, name) for name in frame.columns]
    twice = sorted({name for name in new_names if new_names.count(name) > 1})
    if twice:
        raise ContractError(
            [f"{where}.rename: {table.address} would have two columns {name!r}" for name in twice]
        )
    if table.rename:
        pairs = zip(frame.columns, new_names, strict=True)
        frame = frame.select(*(F.col(quoted(name)).alias(new) for name, new in pairs))
    if table.where is not None:
        frame = filtered(frame, table.where, f"{where}.where")
    return selected(frame, table.select, f"{where}.select") if table.select else frame


def _refuse_other_types(where: str, table: Table, parts: list[DataFrame]) -> None:
    """A union would cast silently, or fail row by row."""
    first = {field.name: field.dataType for field in parts[0].schema}
    faults = []
    for path, part in zip(table.paths[1:], parts[1:], strict=True):
        for field in part.schema:
            known = first.setdefault(field.name, field.dataType)
            both_numbers = isinstance(known, NumericType) and isinstance(field.dataType, NumericType)
            if known != field.dataType and not both_numbers:
                types = f"{known.simpleString()} before and {field.dataType.simpleString()} in {path}"
                faults.append(f"{where}.path: column {field.name!r} is {types}; expected one type")
    if faults:
        raise ContractError(faults)


def places_of(source: Source, folder: str | None) -> list[str]:
    """Where the files of a source lie on stores that `foundation.session` must see to, as Spark spells them."""
    found = [_placed(path, folder) for table in source.tables.values() for path in table.paths]
    return [path for path in found if _is_known(path)]


def bytes_of(source: Source, folder: str | None) -> int:
    """Bytes of a source's files, as far as they lie where this process can look: what a session is made for."""
    paths = (_placed(path, folder) for table in source.tables.values() for path in table.paths)
    return sum(stores.bytes_below(path) for path in paths if _is_known(path) or not places.has_scheme(path))


def _placed(path: str, folder: str | None) -> str:
    if folder is not None and not places.has_scheme(path) and not PurePath(path).is_absolute():
        path = f"{folder.rstrip('/')}/{path}"
    return places.for_spark(path) if _is_known(path) else path


def _is_known(path: str) -> bool:
    """Whether it is on a store that we know; of others Spark itself may."""
    return places.has_scheme(path) and path.partition(":")[0].lower() in places.SCHEMES


@contextmanager
def _partition_values_as_text(spark: SparkSession) -> Iterator[None]:
    # A guessed type would turn the folder market=007 into 7.
    name = "spark.sql.sources.partitionColumnTypeInference.enabled"
    before = str(spark.conf.get(name))
    spark.conf.set(name, "false")
    try:
        yield
    finally:
        spark.conf.set(name, before)
