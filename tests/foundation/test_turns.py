"""One process at a time holds a folder's turn, and a process that dies holds nothing."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from foundation import claims
from foundation.places import StoreError
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


def test_on_an_object_store_the_second_is_refused_as_long_as_the_first_gives_signs_of_life(
    object_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "RENEWED_SECONDS", 0.1)
    monkeypatch.setattr(claims, "FORGOTTEN_SECONDS", 5)
    folder = f"{object_store}/renewed"
    with one_at_a_time(folder, "a build"):
        begun = time.monotonic()
        with one_at_a_time(f"{object_store}/other", "a build"):
            pass
        while time.monotonic() < begun + 6:
            with (
                pytest.raises(
                    TurnError, match=r"renewed: a build is under way \(process \d+ on .*, heard of \d+ s"
                ),
                one_at_a_time(folder, "a build"),
            ):
                pass
    with one_at_a_time(folder, "a build"):
        pass


def test_on_an_object_store_of_several_at_one_moment_one_is_at_it(object_store: str) -> None:
    ready, tried = threading.Barrier(4), threading.Barrier(4)

    def try_it(_: int) -> str:
        ready.wait()
        try:
            with one_at_a_time(f"{object_store}/moment", "a build"):
                tried.wait()
                return "held"
        except TurnError as error:
            tried.wait()
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(try_it, range(4)))
    assert found.count("held") == 1
    assert sum("is under way" in one or "at this very moment" in one for one in found) == 3


def test_on_an_object_store_a_turn_whose_holder_is_silent_is_taken_over_and_the_holder_is_told(
    object_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hold() -> None:
        with one_at_a_time(f"{object_store}/silent", "a build"):
            monkeypatch.setattr(claims, "FORGOTTEN_SECONDS", 0)
            with one_at_a_time(f"{object_store}/silent", "a build"):
                pass

    with pytest.raises(TurnError, match=r"silent: a build took over, .* run it again$"):
        hold()


def test_an_object_store_that_refuses_is_named(object_store: str) -> None:
    place = "s3://no-such-bucket/shop"
    with pytest.raises(StoreError, match=f"{place}: the store"), one_at_a_time(place, "a build"):
        pass
