"""Calls to a receiver that is down wait on disk, in order, and arrive later."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hinet_model.tracking.backlog import Backlog, RefusedError, claim

SERVER = "https://mlflow.example"


def entries(path: Path) -> list[Any]:
    """What waits in a file, below its first line."""
    first, *lines = (json.loads(line) for line in path.read_text().splitlines())
    assert first == {"receiver": SERVER}
    return lines


class Receiver:
    """Takes calls while it is up."""

    def __init__(self) -> None:
        self.up = True
        self.got: list[int] = []
        self.attempts = 0

    def __call__(self, name: str, arguments: dict[str, Any]) -> None:
        self.attempts += 1
        if not self.up:
            raise ConnectionError("down")
        if name == "bad":
            raise RefusedError("never")
        self.got.append(arguments["n"])


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


def test_calls_arrive_at_once_and_leave_no_file(tmp_path: Path, receiver: Receiver) -> None:
    backlog = Backlog(tmp_path / "b.jsonl", SERVER, receiver)
    assert backlog.call("good", n=1)
    assert receiver.got == [1]
    assert not (tmp_path / "b.jsonl").exists()


def test_calls_wait_on_disk_and_arrive_in_order(tmp_path: Path, receiver: Receiver) -> None:
    backlog = Backlog(tmp_path / "b.jsonl", SERVER, receiver, pause_seconds=0.0)
    receiver.up = False
    for n in range(3):
        assert not backlog.call("good", n=n)
    assert [entry["arguments"]["n"] for entry in entries(tmp_path / "b.jsonl")] == [0, 1, 2]
    receiver.up = True
    assert backlog.call("good", n=3)
    assert receiver.got == [0, 1, 2, 3]
    assert not (tmp_path / "b.jsonl").exists()


def test_a_receiver_that_is_down_is_not_asked_at_every_call(tmp_path: Path, receiver: Receiver) -> None:
    backlog = Backlog(tmp_path / "b.jsonl", SERVER, receiver, pause_seconds=3600.0)
    receiver.up = False
    for n in range(5):
        backlog.call("good", n=n)
    assert receiver.attempts == 1
    receiver.up = True
    assert backlog.flush()
    assert receiver.got == [0, 1, 2, 3, 4]


def test_what_is_delivered_before_a_second_failure_is_not_delivered_again(
    tmp_path: Path, receiver: Receiver
) -> None:
    backlog = Backlog(tmp_path / "b.jsonl", SERVER, receiver, pause_seconds=0.0)
    receiver.up = False
    for n in range(3):
        backlog.call("good", n=n)

    def deliver_two(name: str, arguments: dict[str, Any]) -> None:
        if len(receiver.got) >= 2:
            raise ConnectionError("down again")
        receiver.got.append(arguments["n"])

    backlog._deliver = deliver_two
    assert not backlog.call("good", n=3)
    assert receiver.got == [0, 1]
    assert [entry["arguments"]["n"] for entry in entries(tmp_path / "b.jsonl")] == [2, 3]


def test_a_later_process_delivers_what_was_left(tmp_path: Path, receiver: Receiver) -> None:
    receiver.up = False
    Backlog(tmp_path / "b.jsonl", SERVER, receiver).call("good", n=1)
    with (tmp_path / "b.jsonl").open("a") as file:
        file.write('{"call": "good", "argum')
    receiver.up = True
    assert Backlog(tmp_path / "b.jsonl", SERVER, receiver).flush()
    assert receiver.got == [1]


def test_a_call_that_is_refused_does_not_block_the_others(tmp_path: Path, receiver: Receiver) -> None:
    backlog = Backlog(tmp_path / "b.jsonl", SERVER, receiver)
    assert backlog.call("bad", n=0)
    assert backlog.call("good", n=1)
    assert receiver.got == [1]


def test_the_outage_is_reported_once(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    backlog = Backlog(tmp_path / "b.jsonl", SERVER, receiver, pause_seconds=0.0)
    receiver.up = False
    for n in range(3):
        backlog.call("good", n=n)
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


def test_an_unwritable_disk_does_not_end_the_run(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "file").write_text("")
    backlog = Backlog(tmp_path / "file" / "b.jsonl", SERVER, receiver)
    receiver.up = False
    assert not backlog.call("good", n=1)
    assert len(backlog) == 1


def test_a_backlog_for_one_server_is_not_delivered_to_another(tmp_path: Path, receiver: Receiver) -> None:
    receiver.up = False
    Backlog(tmp_path / "b.jsonl", SERVER, receiver).call("good", n=1)
    other = Receiver()
    backlog = Backlog(tmp_path / "b.jsonl", "https://other.example", other)
    assert backlog.flush()
    assert other.got == []
    other.up = False
    assert not backlog.call("good", n=2)
    assert [entry["arguments"]["n"] for entry in entries(tmp_path / "b.jsonl")] == [1], "it still waits"
    receiver.up = True
    assert Backlog(tmp_path / "b.jsonl", SERVER, receiver).flush()
    assert receiver.got == [1]


def test_what_a_live_run_has_is_claimed(tmp_path: Path) -> None:
    held = claim(tmp_path)
    assert held is not None
    assert claim(tmp_path) is None
    os.close(held)
    again = claim(tmp_path)
    assert again is not None
    os.close(again)
