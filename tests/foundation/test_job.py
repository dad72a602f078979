"""How a job's failure ends its process."""

from __future__ import annotations

import errno
import logging
import os

import pytest

from foundation.job import _is_told_once, run_job


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (errno.ENOSPC, 2, "error: [Errno 28] No space left on device: '/data/model'\n"),
        (errno.EROFS, 2, "error: [Errno 30] Read-only file system: '/data/model'\n"),
        (errno.ENOTDIR, 1, "Traceback"),
    ],
)
def test_a_disk_that_refuses_is_one_line_and_a_fault_of_the_code_a_traceback(
    capsys: pytest.CaptureFixture[str], raised: int, code: int, said: str
) -> None:
    def main() -> None:
        raise OSError(raised, os.strerror(raised), "/data/model")

    with pytest.raises(SystemExit) as ended:
        run_job(main)
    assert ended.value.code == code
    assert capsys.readouterr().err.startswith(said)


def test_a_jvm_that_is_gone_is_not_logged_beside_the_error_that_says_so() -> None:
    def record(text: str) -> logging.LogRecord:
        return logging.LogRecord("root", logging.ERROR, "", 0, text, (), None)

    assert not _is_told_once(record("Exception while sending command."))
    assert _is_told_once(record("something else"))
