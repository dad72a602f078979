"""One process at a time holds a folder's turn, and a process that dies holds nothing."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from foundation.turns import TurnError, one_at_a_time


def test_the_second_is_refused_while_the_first_is_at_it(tmp_path: Path) -> None:
    with one_at_a_time(tmp_path / "shop", "a build"):
        with (
            pytest.raises(TurnError, match=r"shop: a build is under way \(process \d+\); wait for its end$"),
            one_at_a_time(tmp_path / "shop", "a build"),
        ):
            pass
        with one_at_a_time(tmp_path / "other", "a build"):
            pass
    with one_at_a_time(tmp_path / "shop", "a build"):
        pass


def test_a_process_that_is_killed_leaves_the_turn_to_others(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom foundation.turns import one_at_a_time\n"
        f"with one_at_a_time({str(tmp_path)!r}, 'a build'):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TurnError, match=f"process {holder.pid}"), one_at_a_time(tmp_path, "a build"):
            pass
        holder.kill()
    with one_at_a_time(tmp_path, "a build"):
        pass


def test_where_there_are_no_locks_nobody_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(file: object, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with one_at_a_time(tmp_path, "a build"), one_at_a_time(tmp_path, "a build"):
        pass
    (tmp_path / "file").touch()
    with one_at_a_time(tmp_path / "file", "a build"):
        pass
    with one_at_a_time("s3://bucket/shop", "a build"), one_at_a_time("s3://bucket/shop", "a build"):
        pass
