"""Where the output of a Spark that a job starts goes: into a file, and not onto the terminal."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark import SparkContext

LOG_FOLDER = Path("local/logs")
"""Below the current directory."""
_LARGEST_LOG = 8 * 2**20


@contextmanager
def java_writes_to(log: Path) -> Iterator[Path]:
    """Let a Java process that is started meanwhile inherit ``log`` as its stderr; none is if Spark runs already.

    Where that takes nothing, another file of its name does: a job may be started in a folder that is read-only.
    """
    from pyspark import SparkContext

    if SparkContext._gateway is not None or "PYSPARK_GATEWAY_PORT" in os.environ:
        yield log
        return
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("wb" if log.exists() and log.stat().st_size > _LARGEST_LOG else "ab")
    except OSError:
        log = Path(tempfile.mkdtemp(prefix="hinet-logs-")) / log.name
        file = log.open("wb")
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with file:
            os.dup2(file.fileno(), 2)
        yield log
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def end_of_java_is_quiet(context: SparkContext) -> None:
    """Print no traceback of the connection that a JVM that is killed leaves: who waits for an answer says so.

    PySpark's server for accumulators reads from it in a thread of its own, once a task in Python has ended.
    """
    server: Any = getattr(context, "_accumulatorServer", None)  # a private name: without it all is told
    if server is None:
        return

    def handle_error(request: Any, address: Any) -> None:
        if not isinstance(sys.exc_info()[1], EOFError | ConnectionError):
            type(server).handle_error(server, request, address)

    server.handle_error = handle_error
