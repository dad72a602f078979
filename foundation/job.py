"""What every job shares: logging, summaries, and how a failure ends the process."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from foundation.redaction import RedactingFormatter, redact
from foundation.settings import UserError

logger = logging.getLogger(__name__)

EXIT_USER_ERROR = 2
_OUTSIDE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
)
"""What the system answers where a disk is full, read-only, forbidden or broken: no fault of the code that asked."""
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def run_job(main: Callable[[], int | None]) -> NoReturn:
    """Run a job and end the process.

    The exit code is what ``main`` returns, 0 for None. A :class:`UserError`, or a disk that refuses, becomes one
    message on stderr and exit code 2; anything else a traceback and exit code 1.
    """
    configure_logging()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = main() or 0
    except UserError as error:
        complain(str(error))
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        code = 130
    except Exception as error:
        if comes_from_outside(error):
            complain(str(error))
            code = EXIT_USER_ERROR
        else:
            sys.stderr.write(redact(traceback.format_exc()))
            code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(code)


def comes_from_outside(error: BaseException) -> bool:
    """Whether a disk, and not the code, is what was wrong."""
    return isinstance(error, OSError) and error.errno in _OUTSIDE


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """End in order, as Ctrl-C does: what was begun is closed."""
    sys.stderr.write("ended by SIGTERM\n")
    raise SystemExit(128 + number)


def configure_logging(level: int = logging.INFO) -> None:
    """Send log lines to stderr, so that stdout holds summaries alone.

    Libraries speak from warnings upwards: py4j, for one, tells of every idle connection that it opens anew.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter(LOG_FORMAT))
    handler.addFilter(_is_told_once)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # MLflow sets its own level when it is imported, which may have been before, and tells of every table that it makes.
    loudness = os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("mlflow").setLevel(loudness)
    # What a server did not answer is told by whoever asked, after the last try.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    # PySpark logs the traceback of every expression that does not fit, handled or not.
    logging.getLogger("SQLQueryContextLogger").setLevel(logging.CRITICAL + 1)
    for name in ("foundation", "feature_eng", "hinet_model", Path(sys.argv[0]).stem):
        logging.getLogger(name).setLevel(level)


def _is_told_once(record: logging.LogRecord) -> bool:
    """Whether a record says what nobody else does: py4j logs a JVM that is gone at length, and raises it too."""
    return record.msg != "Exception while sending command."


def job_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose ``--help`` ends with examples, and with the overrides that all jobs take."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting by its dotted path; may be repeated",
    )
    return parser


@contextmanager
def stage(name: str) -> Iterator[None]:
    """A line on stderr when a stage of a job begins, and one with its seconds when it is done."""
    logger.info("%s ...", name)
    started = time.monotonic()
    yield
    logger.info("%s: %.1f s", name, time.monotonic() - started)


def say(text: str = "") -> None:
    """Write one line of a summary to stdout, without credentials of its URIs."""
    sys.stdout.write(f"{redact(text)}\n")


def complain(text: str) -> None:
    """Write one error to stderr, without credentials of its URIs."""
    sys.stderr.write(f"error: {redact(text)}\n")


def say_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table to stdout: text to the left, numbers to the right."""
    texts = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in [list(header), *texts]) for place in range(len(header))]
    numeric = [
        bool(rows) and all(isinstance(row[place], int | float) for row in rows)
        for place in range(len(header))
    ]
    for row in [list(header), *texts]:
        cells = [
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(row, widths, numeric, strict=True)
        ]
        say("  " + "  ".join(cells).rstrip())
