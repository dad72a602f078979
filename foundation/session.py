"""The Spark session: Delta on board, small for local tables, and the user's settings first.

Settings in code would beat ``--conf`` and ``--properties-file``. So only what is missing
is set here, and the master never is: without one Spark itself takes ``local[*]``.
PySpark is imported when a session is asked for, and not before.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shlex
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foundation import access
from foundation.cores import available_cores
from foundation.given_conf import given_conf, is_running
from foundation.java_log import LOG_FOLDER, end_of_java_is_quiet, java_writes_to
from foundation.memory import available_memory
from foundation.places import Place, for_spark, scheme_of
from foundation.s3_packages import S3_EXCLUDES, S3_PACKAGES
from foundation.settings import UserError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DELTA_PACKAGE = "io.delta:delta-spark_2.13:4.0.1"
_DELTA_EXTENSION = "io.delta.sql.DeltaSparkSessionExtension"
_DATABRICKS = "DATABRICKS_RUNTIME_VERSION"
"""Set in every process of a Databricks cluster."""

_PACKAGES, _EXCLUDES = "spark.jars.packages", "spark.jars.excludes"

_ALWAYS = {
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.session.timeZone": "UTC",
    # Columns whose names differ by case are two columns, in Parquet as in Python.
    "spark.sql.caseSensitive": "true",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    # Java compiles no longer method, and interprets it at a tenth of the speed; Spark then makes several of it.
    "spark.sql.codegen.hugeMethodLimit": "8000",
    # To look for encodings of what is cached costs more than they save, of rows that are read a few times.
    "spark.sql.inMemoryColumnarStorage.compressed": "false",
    # Else Python tells Java the line of each expression, in six calls apiece.
    "spark.python.sql.dataFrameDebugging.enabled": "false",
}
CLASS_ARCHIVE = Path(sys.prefix) / "spark-classes.jsa"
"""Java classes of Spark and Delta, archived by the set-up (``build_tools/class_archive.py``)."""

# Local jobs are short: the optimising compiler and a collector that runs beside them would cost more than they
# save. Room for the classes from the start spares full collections on the way to it, and room for compiled code,
# of which that compiler alone would have 48 MB, spares throwing it out and compiling it anew.
_FIRST_TIER = "-XX:TieredStopAtLevel=1"
_JAVA_OPTIONS = f"{_FIRST_TIER} -XX:+UseParallelGC -XX:MetaspaceSize=256m -XX:ReservedCodeCacheSize=240m"

# Delta's and Spark's defaults start 50 to 200 tasks for each look at a small table.
_LOCAL = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.memory": "2g",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.sql.shuffle.partitions": "4",
}
_LARGE = 32 * 2**20
"""Bytes of compressed columns from which a local session is one for large data."""


def conf_for(data_bytes: int) -> dict[str, str]:
    """What a local session for so much data has otherwise: the machine's memory, more partitions, both compilers.

    A third of the memory is the heap's: as much again goes to Python workers, and to what files are cached in.

    Args:
        data_bytes: Of the files that are read.
    """
    if data_bytes < _LARGE:
        return {}
    heap = min(30, max(2, available_memory() // 3 // 2**30))  # beyond, pointers take twice the room
    partitions = max(4, 2 * available_cores(), data_bytes // _LARGE)
    return {"spark.driver.memory": f"{heap}g", "spark.sql.shuffle.partitions": str(min(partitions, 1000))}


def build_session(
    app_name: str,
    extra_conf: Mapping[str, str] | None = None,
    places: Sequence[Place] = (),
    data_bytes: Callable[[], int] | None = None,
) -> SparkSession:
    """Start Spark with Delta, or return the session that runs already.

    Args:
        app_name: Name of the application, where none is given from outside.
        extra_conf: Settings of the caller. They give way to ``--conf``, ``--packages``, a
            properties file and ``spark-defaults.conf``.
        places: Where the tables lie that the session will read and write. A local session fetches what Spark
            lacks for S3; on a cluster that is part of its set-up.
        data_bytes: Counts those of the files that will be read: asked for a local session, which is made for as much.

    What Java and Ivy write while they start, and Spark's own log, goes to a file of `LOG_FOLDER`; a Spark that
    spark-submit has started goes on writing where it was told to.

    Raises:
        UserError: If Spark cannot start, or if the running Spark lacks Delta, or a store's client, and it is
            too late to add it.
    """
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    given = given_conf()
    wanted = wanted_conf(given, {"spark.app.name": app_name, **(extra_conf or {})}, places, data_bytes)
    if _is_local(given, extra_conf or {}):
        # Local Python workers must be of the driver's environment, not of the first python3 on PATH.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder
    for key, value in wanted.items():
        builder = builder.config(key, value)
    log = _log_of(app_name)
    try:
        with java_writes_to(log) as log:
            spark = builder.getOrCreate()
    except PySparkRuntimeError as error:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-10:]) if log.exists() else ""
        raise UserError(f"Spark did not start ({error}); the end of its log, {log}:\n{tail}") from None
    if _DATABRICKS not in os.environ:  # whose runtime has a Delta of its own, by other names
        _check_delta(spark)
    end_of_java_is_quiet(spark.sparkContext)
    access.adopt(dict(spark.sparkContext.getConf().getAll()))
    for place in places:
        _check_store(spark, place)
    return spark


@contextlib.contextmanager
def job_session(
    app_name: str,
    extra_conf: Mapping[str, str] | None = None,
    places: Sequence[Place] = (),
    data_bytes: Callable[[], int] | None = None,
) -> Iterator[SparkSession]:
    """The session of a job, from `build_session`; it ends with the job.

    Unless it ran before: then it is somebody else's, as that of a notebook or of a cluster that tasks share is, and
    is left running.

    Raises:
        UserError: As `build_session`, or if Spark's JVM was gone before the job was done.
    """
    from py4j.protocol import Py4JError

    ran_before = is_running()
    interrupted = signal.getsignal(signal.SIGINT)
    spark = build_session(app_name, extra_conf, places, data_bytes)
    try:
        yield spark
    except (Py4JError, OSError, EOFError) as error:
        if is_alive(spark):
            raise
        log = _log_of(app_name)
        where = f"; its log: {log}" if log.exists() else ""
        raise UserError(f"Spark is gone: killed, or out of memory{where}") from error
    finally:
        if not ran_before:
            end_session(spark)
            with contextlib.suppress(ValueError):  # in another thread; Spark's own needs a session
                signal.signal(signal.SIGINT, interrupted)


def _log_of(app_name: str) -> Path:
    return LOG_FOLDER / f"spark-{re.sub(r'[^A-Za-z0-9_-]', '_', app_name)}.log"


def end_session(spark: SparkSession) -> None:
    """Stop Spark; a JVM that is gone already needs none: a signal to all processes of a job has ended it too."""
    from py4j.protocol import Py4JError

    with contextlib.suppress(Py4JError, OSError), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unable to cleanly shutdown Spark JVM", RuntimeWarning)
        spark.stop()


def is_alive(spark: SparkSession) -> bool:
    """Whether the session can run anything: its JVM may have been killed, or its cluster have given it up."""
    from py4j.protocol import Py4JError

    try:
        return not spark.sparkContext._jsc.sc().isStopped()
    except (Py4JError, OSError, AttributeError):
        return False


def _check_delta(spark: SparkSession) -> None:
    """Refuse a Spark without Delta."""
    java = spark._jvm.java.lang
    try:
        java.Class.forName(_DELTA_EXTENSION, True, java.Thread.currentThread().getContextClassLoader())
    except Exception as error:
        raise UserError(
            f"Spark runs without Delta ({type(error).__name__}); start the job with "
            f"--packages {DELTA_PACKAGE}, or with --properties-file conf/spark/local.conf"
        ) from None


def _check_store(spark: SparkSession, place: Place) -> None:
    """Refuse a place whose store Spark has no client for."""
    scheme, colon, _ = for_spark(place).partition("://")
    if not colon:
        return
    try:
        spark._jvm.org.apache.hadoop.fs.FileSystem.getFileSystemClass(
            scheme, spark._jsparkSession.sessionState().newHadoopConf()
        )
    except Exception:
        how = "add its connector to spark.jars.packages"
        if scheme == "s3a":
            how = (
                f"start the job with --packages {','.join((DELTA_PACKAGE, *S3_PACKAGES))} "
                f"--conf '{_EXCLUDES}={','.join(S3_EXCLUDES)}'"
            )
        raise UserError(f"{place}: Spark has no client for {scheme}: stores; {how}") from None


def wanted_conf(
    given: Mapping[str, str],
    extra_conf: Mapping[str, str],
    places: Sequence[Place] = (),
    data_bytes: Callable[[], int] | None = None,
) -> dict[str, str]:
    """What is to be set: what is missing from ``given``, and Delta, and S3 where needed, added to its lists.

    Args:
        given: Settings from outside.
        extra_conf: Settings of the caller.
        places, data_bytes: As in `build_session`.
    """
    local = {}
    if _is_local(given, extra_conf):
        size = data_bytes() if data_bytes is not None else 0
        local = {**_LOCAL, **_local_places(), "spark.driver.extraJavaOptions": local_java_options(size)}
        local |= conf_for(size)
    wanted = {**_ALWAYS, **access.spark_conf(places), **local, **extra_conf}
    missing = {key: value for key, value in wanted.items() if key not in given}
    own_entries = [(_PACKAGES, DELTA_PACKAGE), ("spark.sql.extensions", _DELTA_EXTENSION)]
    if local and any(scheme_of(place) == "s3" for place in places):
        own_entries += [(_PACKAGES, package) for package in S3_PACKAGES]
        own_entries += [(_EXCLUDES, name) for name in S3_EXCLUDES]
    for key, own in own_entries:
        named = [name for name in missing.get(key, given.get(key, "")).split(",") if name]
        is_named = _artifact(own) in map(_artifact, named)
        missing[key] = ",".join(named if is_named else [*named, own])
    return missing


def _artifact(name: str) -> str:
    """``group:artifact`` of ``group:artifact:version``; names of classes as they are."""
    return name.rpartition(":")[0] or name


def local_java_options(data_bytes: int = 0) -> str:
    """Java's options for a local session: with the archive of classes where the set-up has made one."""
    options = _JAVA_OPTIONS if data_bytes < _LARGE else _JAVA_OPTIONS.replace(_FIRST_TIER, "").strip()
    if not CLASS_ARCHIVE.is_file():
        return options
    # An archive that no longer fits is passed over; Java would warn on stdout.
    return f"{options} -XX:SharedArchiveFile={shlex.quote(str(CLASS_ARCHIVE))} -Xlog:disable"


def _is_local(given: Mapping[str, str], extra_conf: Mapping[str, str]) -> bool:
    master = given.get("spark.master", extra_conf.get("spark.master", "local[*]"))
    return master.startswith("local")


def _local_places() -> dict[str, str]:
    # Tables are addressed by path. Without this, Spark leaves an empty folder in the current directory.
    place = Path(tempfile.gettempdir()) / f"spark-warehouse-{getpass.getuser()}"
    return {"spark.sql.warehouse.dir": str(place)}
