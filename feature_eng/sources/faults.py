"""What Spark says of a user's data and expressions, as one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException

from feature_eng.contract import ContractError
from foundation.settings import UserError, closest

_TAIL = re.compile(r"\s*(SQLSTATE: \w+;?|JVM stacktrace:.*|== SQL.*|line \d+ pos \d+;?.*)", re.DOTALL)
_CLASS = re.compile(r"^(\[[A-Z0-9_.]+\]\s*)+|^([\w.$]+(Exception|Error):\s*)+")
_CAUSE = re.compile(r"^\s*Caused by: (.*)$", re.MULTILINE)
_FILE = re.compile(r"(?:file|path|File)\s*:?\s*'?((?:[a-z][a-z0-9+.-]*:)?/[^\s'\"]+)")
_WRAPPER = re.compile(
    r"Job aborted|Task failed|Exception thrown in awaitResult|TASK_WRITE_FAILED|WRITING"
    r"|FAILED_READ_FILE|Encountered error"
)


def reason_of(error: BaseException, columns: Sequence[str] = ()) -> str:
    """One line: what was wrong, and a column that was perhaps meant."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, PySparkException):
        condition = error.getCondition() or ""
        named = error.getMessageParameters() or {}
        if condition.startswith("UNRESOLVED_COLUMN") and "objectName" in named:
            name = named["objectName"].replace("`", "")
            close = closest(name, columns)
            hint = f"; did you mean '{close}'?" if close else ""
            return f"write `{name}`, in backticks" if name in columns else f"no column {name!r}{hint}"
        if condition == "PATH_NOT_FOUND":
            return f"there is nothing at {named.get('path', 'that path')}"
    return _plain(str(error))


@contextmanager
def as_user_errors(doing: str) -> Iterator[None]:
    """What Spark finds wrong with rows while it reads them, as one line that names the file where Spark does.

    Args:
        doing: What was being done, for the message.

    Raises:
        ContractError: Spark could not do it with these data.
    """
    try:
        yield
    except (PySparkException, Py4JJavaError) as error:
        text = str(error)
        causes = [_plain(cause) for cause in _CAUSE.findall(text)]
        told = [line for line in [_plain(text), *causes] if line and not _WRAPPER.search(line)]
        # The innermost cause says what was wrong with the data.
        why = told[-1] if told else _plain(text)
        file = next((found for found in _FILE.findall(text) if found not in why), None)
        raise ContractError([f"{doing}: {f'{file}: ' if file else ''}{why}"]) from error


def _plain(text: str) -> str:
    line = _TAIL.sub("", text.strip()).strip().splitlines()
    return _CLASS.sub("", line[0]).strip() if line else ""
