"""The report channel, the monitor's judgement and the watchdog."""

from __future__ import annotations

import io
import multiprocessing
import time
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import pytest

from hinet_model.training.control.monitor import RunMonitor
from hinet_model.training.control.report_server import ReportServer
from hinet_model.training.control.reports import ABORT_EXIT_CODE, ReportClient, ReportList
from hinet_model.training.control.watchdog import STALL_EXIT_CODE, PhaseLimits, Progress, Watchdog

LIMITS = PhaseLimits(step=0.3, by_phase={"start": 60.0, "checkpoint": 1.5})


def wait_until(condition: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def test_reports_arrive_in_order_and_live() -> None:
    received: list[Any] = []
    server = ReportServer("127.0.0.1", received.append)
    client = ReportClient(server.address, server.key, rank=3, heartbeat_seconds=60, state=dict)
    client.send("progress", step=1)
    wait_until(lambda: received)
    client.send("finished", step=2)
    client.close()
    wait_until(lambda: len(received) == 2)
    time.sleep(0.1)
    assert [(r["kind"], r["rank"], r["step"]) for r in received] == [("progress", 3, 1), ("finished", 3, 2)]
    server.close()


def test_a_worker_that_leaves_without_last_words_is_reported_as_disconnected() -> None:
    received: list[Any] = []
    server = ReportServer("127.0.0.1", received.append)
    client = ReportClient(server.address, server.key, rank=1, heartbeat_seconds=60, state=dict)
    client.send("hello", log="here")
    client.close()
    wait_until(lambda: len(received) == 2)
    assert received[1] == {"kind": "disconnected", "rank": 1}
    server.close()


def test_a_stranger_is_refused_and_the_channel_goes_on() -> None:
    received: list[Any] = []
    server = ReportServer("127.0.0.1", received.append)
    with pytest.raises(multiprocessing.AuthenticationError):
        Client(server.address, authkey=b"guess")
    client = ReportClient(server.address, server.key, rank=0, heartbeat_seconds=60, state=dict)
    client.send("hello", log="here")
    wait_until(lambda: received)
    assert received[0]["kind"] == "hello"
    # A client that is left open ends this process when it finds no driver any more.
    client.close()
    server.close()


def test_heartbeats_say_where_the_worker_is() -> None:
    received: list[Any] = []
    server = ReportServer("127.0.0.1", received.append)
    progress = Progress()
    progress.enter("exchange")
    client = ReportClient(server.address, server.key, 0, 0.05, progress.state)
    wait_until(lambda: len(received) >= 2)
    assert received[0]["kind"] == "heartbeat"
    assert received[0]["phase"] == "exchange"
    client.close()
    server.close()


def _obedient(address: tuple[str, int], key: bytes) -> None:
    client = ReportClient(address, key, 0, 60, dict)
    client.send("hello", log="here")
    time.sleep(60)


def test_abort_ends_a_worker_that_is_blocked() -> None:
    received: list[Any] = []
    server = ReportServer("127.0.0.1", received.append)
    process = multiprocessing.get_context("spawn").Process(
        target=_obedient, args=(server.address, server.key)
    )
    process.start()
    wait_until(lambda: received, 30)
    server.command("abort")
    process.join(10)
    assert process.exitcode == ABORT_EXIT_CODE
    server.close()


def test_stop_is_a_wish_that_the_loop_can_read() -> None:
    received: list[Any] = []
    server = ReportServer("127.0.0.1", received.append)
    client = ReportClient(server.address, server.key, 0, 60, dict)
    client.send("hello", log="here")
    wait_until(lambda: received)
    assert not client.stop_requested
    server.command("stop")
    wait_until(lambda: client.stop_requested)
    client.close()
    server.close()


def failed(rank: int, error: str, message: str = "m") -> dict[str, Any]:
    return {"kind": "failed", "rank": rank, "error": error, "message": message, "traceback": "Traceback ..."}


def stalled(rank: int, phase: str) -> dict[str, Any]:
    state = {"phase": phase, "epoch": 2, "step": 5, "quiet_seconds": 31.0}
    return {"kind": "stalled", "rank": rank, "stack": "File x, line 1", **state}


def judged(*reports: dict[str, Any]) -> str:
    monitor = RunMonitor(4, lambda _: None, LIMITS)
    for report in reports:
        monitor.receive(report)
    return str(monitor.error())


def test_the_worker_that_raised_is_named_before_its_peers_that_lost_it() -> None:
    text = judged(
        {"kind": "hello", "rank": 2, "log": "host:/logs/rank-2.log"},
        failed(0, "HorovodInternalError"),
        failed(2, "ValueError", "broken row"),
    )
    assert text.startswith("rank 2 of 4 raised ValueError: broken row")
    assert "then rank 0 raised HorovodInternalError" in text
    assert text.endswith("log of rank 2: host:/logs/rank-2.log")


def test_the_worker_that_sleeps_is_named_before_those_that_wait_for_it() -> None:
    text = judged(stalled(0, "exchange"), stalled(3, "data"), stalled(1, "exchange"))
    assert text.startswith("rank 3 of 4 made no progress for 31.0 s in phase 'data' (epoch 2, step 5)")


def test_a_killed_worker_is_named_with_the_place_of_its_last_heartbeat() -> None:
    beat = {
        "kind": "heartbeat",
        "rank": 1,
        "phase": "compute",
        "epoch": 0,
        "step": 12,
        "quiet_seconds": 0.1,
    }
    text = judged(beat, {"kind": "disconnected", "rank": 1}, failed(0, "HorovodInternalError"))
    assert text.startswith("rank 1 of 4 ended without a word at epoch 0, step 12")


def test_what_ends_after_the_order_to_end_is_no_failure() -> None:
    monitor = RunMonitor(2, lambda _: None, LIMITS)
    monitor.receive(stalled(0, "data"))
    monitor.close()
    monitor.receive({"kind": "disconnected", "rank": 1})
    assert str(monitor.error()).startswith("rank 0")


def test_the_watchdog_ends_a_silent_worker_and_says_where_it_was(tmp_path: Path) -> None:
    reporter, progress, ends = ReportList(), Progress(), list[int]()
    progress.epoch, progress.step = 1, 4
    progress.enter("data")
    with (tmp_path / "log").open("w") as log:
        watchdog = Watchdog(progress, reporter, LIMITS, log, ends.append)
        wait_until(lambda: ends)
        watchdog.close()
    assert ends == [STALL_EXIT_CODE]
    (report,) = reporter.reports
    assert (report["kind"], report["phase"], report["epoch"], report["step"]) == ("stalled", "data", 1, 4)
    assert "wait_until" in report["stack"]
    assert "test_reports" in (tmp_path / "log").read_text()


def test_the_watchdog_lets_a_worker_live_that_moves() -> None:
    progress, ends = Progress(), list[int]()
    watchdog = Watchdog(progress, ReportList(), LIMITS, io.StringIO(), ends.append)
    for _ in range(8):
        time.sleep(0.1)
        progress.enter("compute")
    watchdog.close()
    assert not ends


def test_signs_of_life_keep_a_worker_alive_in_one_long_phase() -> None:
    progress, ends = Progress(), list[int]()
    progress.enter("validate")
    watchdog = Watchdog(progress, ReportList(), LIMITS, io.StringIO(), ends.append)
    for _ in range(10):
        time.sleep(0.1)
        progress.alive()
    assert not ends
    wait_until(lambda: ends)
    watchdog.close()


def test_each_phase_has_a_limit_of_its_own() -> None:
    progress, ends = Progress(), list[int]()
    progress.enter("checkpoint")
    watchdog = Watchdog(progress, ReportList(), LIMITS, io.StringIO(), ends.append)
    time.sleep(0.9)
    assert not ends, "a checkpoint may be quiet for longer than a step"
    wait_until(lambda: ends)
    watchdog.close()


def test_a_worker_that_waits_for_its_peers_ends_itself_only_when_nobody_works() -> None:
    class Listener(ReportList):
        told = False

        def told_nobody_works(self) -> bool:
            return self.told

    reporter, progress, ends = Listener(), Progress(), list[int]()
    progress.enter("exchange")
    watchdog = Watchdog(progress, reporter, LIMITS, io.StringIO(), ends.append)
    time.sleep(0.9)
    assert not ends
    reporter.told = True
    wait_until(lambda: ends)
    watchdog.close()
    assert reporter.reports[0]["kind"] == "stalled"


def beat(rank: int, phase: str, quiet: float) -> dict[str, Any]:
    return {"kind": "heartbeat", "rank": rank, "phase": phase, "epoch": 0, "step": 9, "quiet_seconds": quiet}


def test_waiting_for_a_peer_at_work_is_no_deadlock_and_waiting_for_each_other_is() -> None:
    monitor = RunMonitor(2, lambda _: None, LIMITS)
    monitor.receive(beat(0, "exchange", 50.0))
    assert not monitor.nobody_works(), "the other one has not been heard yet"
    monitor.receive(beat(1, "checkpoint", 0.1))
    assert not monitor.nobody_works()
    monitor.receive(beat(1, "agree", 0.1))
    assert not monitor.nobody_works(), "it has only begun to wait"
    monitor.receive(beat(1, "agree", 50.0))
    assert monitor.nobody_works()


def test_a_worker_that_waits_for_one_that_has_finished_waits_in_vain() -> None:
    monitor = RunMonitor(2, lambda _: None, LIMITS)
    monitor.receive(beat(0, "exchange", 50.0))
    monitor.receive(beat(1, "compute", 0.0))
    monitor.receive({"kind": "finished", "rank": 1})
    assert monitor.nobody_works()


def test_a_worker_whose_heart_stops_is_a_failure_and_a_finished_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hinet_model.training.control.monitor._LATE_SECONDS", 0.1)
    monitor = RunMonitor(3, lambda _: None, LIMITS, settle_seconds=0.0)
    for rank in range(3):
        monitor.receive(beat(rank, "compute", 0.0))
    monitor.receive({"kind": "finished", "rank": 0})
    monitor.find_silent()
    assert monitor.error() is None
    time.sleep(0.6)
    monitor.receive(beat(1, "compute", 0.0))
    monitor.find_silent()
    assert str(monitor.error()).startswith("rank 2 of 3 gave no sign of life for ")
    assert "rank 1" not in str(monitor.error())
