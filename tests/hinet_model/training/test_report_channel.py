"""The report channel among strangers, broken connections and receivers that raise; real sockets throughout."""

from __future__ import annotations

import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hinet_model.training.control import link as links
from hinet_model.training.control import report_server
from hinet_model.training.control.delivery import ReportDelivery
from hinet_model.training.control.link import Link
from hinet_model.training.control.monitor import RunMonitor
from hinet_model.training.control.report_server import ReportServer
from hinet_model.training.control.reports import LOST_EXIT_CODE, ChannelError, ReportClient
from hinet_model.training.control.watchdog import PhaseLimits

LIMITS = PhaseLimits(step=60.0, by_phase={})


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


@contextmanager
def serving(on_report: Callable[[Any], None]) -> Iterator[ReportServer]:
    server = ReportServer("127.0.0.1", on_report)
    yield server
    server.close()


@contextmanager
def client_of(server: ReportServer, rank: int = 0, address: Any = None) -> Iterator[ReportClient]:
    client = ReportClient(address or server.address, server.key, rank, 60.0, dict, reconnect_seconds=5.0)
    yield client
    client.close()


class Relay:
    """Carries bytes between worker and driver, until told to cut them off."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = ("127.0.0.1", self._listener.getsockname()[1])
        self._ends: list[socket.socket] = []
        self.deaf_to_driver = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            worker, _ = self._listener.accept()
            driver = socket.create_connection(self._target)
            self._ends += [worker, driver]
            threading.Thread(target=self._carry, args=(worker, driver, False), daemon=True).start()
            threading.Thread(target=self._carry, args=(driver, worker, True), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, from_driver: bool) -> None:
        try:
            while data := source.recv(65536):
                if not (from_driver and self.deaf_to_driver):
                    sink.sendall(data)
        except OSError:
            pass

    def cut(self) -> None:
        ends, self._ends = self._ends, []
        for end in ends:
            end.shutdown(socket.SHUT_RDWR)
            end.close()


def test_a_connection_that_says_nothing_keeps_no_worker_out() -> None:
    received: list[Any] = []
    with serving(received.append) as server:
        idle = [socket.create_connection(server.address) for _ in range(3)]
        started = time.monotonic()
        with client_of(server) as client:
            client.send("hello", log="here")
            wait_until(lambda: received)
        assert time.monotonic() - started < 3.0
        for end in idle:
            end.close()
        wait_until(lambda: "stranger" in server._noted)  # and not while another test reads the log


def test_a_stranger_has_limited_time_and_there_is_a_limit_to_their_number(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(links, "HANDSHAKE_SECONDS", 1.0)
    caplog.set_level(logging.WARNING)
    received: list[Any] = []
    with serving(received.append) as server:
        crowd = [socket.create_connection(server.address) for _ in range(report_server._MOST_STRANGERS + 9)]
        with client_of(server) as client:
            client.send("hello", log="here")
            wait_until(lambda: received)
        for end in crowd:
            end.settimeout(5.0)
            while end.recv(4096):
                pass  # the challenge, and then the end: the server has hung up
            end.close()
    texts = [record.getMessage() for record in caplog.records]
    assert sum("have not shown the key yet" in text for text in texts) == 1
    assert sum("refused a connection" in text for text in texts) == 1


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", struct.pack("!i", 2**31 - 1), struct.pack("!iQ", -1, 2**62), b"\0" * 8],
    ids=["http", "huge", "huge64", "empty"],
)
def test_garbage_and_huge_frames_of_strangers_are_refused(garbage: bytes) -> None:
    received: list[Any] = []
    with serving(received.append) as server:
        with socket.create_connection(server.address, timeout=5.0) as end:
            end.sendall(garbage)
            try:
                while end.recv(4096):
                    pass
            except ConnectionResetError:
                pass
        with client_of(server) as client:
            client.send("hello", log="here")
            wait_until(lambda: received)
    assert received[0]["kind"] == "hello"


def test_what_a_worker_may_send_is_bounded_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(report_server, "LARGEST_FRAME", 1000)
    received: list[Any] = []
    with serving(received.append) as server:
        for frame in (b"x" * 1001, b"no json", json.dumps({"kind": "epoch"}).encode()):
            worker = multiprocessing.connection.Client(server.address, authkey=server.key)
            worker.send_bytes(frame)
            with pytest.raises((EOFError, ConnectionResetError)):
                worker.recv_bytes()
        with client_of(server) as client:
            client.send("hello", log="here")
            wait_until(lambda: received)
    assert sum("ended a connection" in record.getMessage() for record in caplog.records) == 1


def test_reports_survive_a_broken_connection_each_once_and_in_order() -> None:
    received: list[Any] = []
    with serving(received.append) as server:
        relay = Relay(server.address)
        with client_of(server, address=relay.address) as client:
            for step in range(100):
                client.send("progress", step=step)
                if step % 30 == 10:
                    wait_until(lambda said=step: any(r.get("step", -1) > said - 5 for r in received))
                    relay.cut()
            client.send("finished")
        assert [r["step"] for r in received if r["kind"] == "progress"] == list(range(100))
        assert sum(r["kind"] == "reconnected" for r in received) >= 1
        assert received[-1]["kind"] == "finished"


def test_what_has_arrived_but_was_not_confirmed_is_not_taken_twice() -> None:
    received: list[Any] = []
    with serving(received.append) as server:
        relay = Relay(server.address)
        with client_of(server, address=relay.address) as client:
            client.send("progress", step=0)
            wait_until(lambda: len(received) == 1 and not client._unconfirmed)
            relay.deaf_to_driver = True
            client.send("progress", step=1)
            wait_until(lambda: len(received) == 2)
            assert client._unconfirmed, "its confirmation was swallowed"
            relay.deaf_to_driver = False
            relay.cut()
            wait_until(lambda: not client._unconfirmed)
    assert [r["step"] for r in received if r["kind"] == "progress"] == [0, 1]


def test_a_command_reaches_a_worker_that_was_away_when_it_was_given() -> None:
    received: list[Any] = []
    with serving(received.append) as server:
        relay = Relay(server.address)
        with client_of(server, address=relay.address) as client:
            client.send("hello", log="here")
            wait_until(lambda: received)
            relay.cut()
            server.command("stop")
            wait_until(lambda: client.stop_requested)


def test_a_worker_that_is_away_is_lost_only_after_its_time() -> None:
    monitor = RunMonitor(2, lambda _: None, LIMITS, reconnect_seconds=0.3, settle_seconds=0.0)
    monitor.receive({"kind": "disconnected", "rank": 1})
    monitor.find_silent()
    assert monitor.error() is not None, "asked now, it is the likely cause"
    assert not monitor.failed, "but it has not failed yet"
    monitor.receive({"kind": "reconnected", "rank": 1})
    time.sleep(0.4)
    monitor.find_silent()
    assert monitor.error() is None
    monitor.receive({"kind": "disconnected", "rank": 1})
    time.sleep(0.4)
    monitor.find_silent()
    assert monitor.failed
    assert "rank 1 of 2 ended without a word" in str(monitor.error())


def _lonely(address: tuple[str, int], key: bytes) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # nobody reads what it writes either
    sys.stderr = os.fdopen(writer, "w", buffering=1)
    client = ReportClient(address, key, 0, 60.0, dict, reconnect_seconds=60.0)
    client.send("hello", log="here")
    time.sleep(60)


def test_a_worker_that_finds_no_driver_any_more_ends() -> None:
    received: list[Any] = []
    with serving(received.append) as server:
        process = multiprocessing.get_context("spawn").Process(
            target=_lonely, args=(server.address, server.key)
        )
        process.start()
        wait_until(lambda: received, 30)
    process.join(15)
    assert process.exitcode == LOST_EXIT_CODE


def test_a_driver_that_cannot_be_reached_is_named() -> None:
    with serving(lambda _: None) as server:
        pass
    with pytest.raises(
        ChannelError, match=r"rank 3 on .* cannot reach .*127\.0\.0\.1:\d+ after 0\.\d s.*host"
    ):
        ReportClient(server.address, server.key, 3, 60.0, dict, reconnect_seconds=0.2)


def test_a_driver_that_accepts_and_says_nothing_does_not_hold_a_worker_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "HANDSHAKE_SECONDS", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(ChannelError, match="cannot reach"),
    ):
        ReportClient(("127.0.0.1", silent.getsockname()[1]), b"key", 0, 60.0, dict, reconnect_seconds=0.5)


def test_sending_waits_for_nobody() -> None:
    with serving(lambda _: time.sleep(0.2)) as server, client_of(server) as client:
        started = time.monotonic()
        for step in range(20):
            client.send("progress", step=step)
        assert time.monotonic() - started < 0.15


def test_a_receiver_that_raises_costs_a_record_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    recorded: list[Any] = []

    def on_report(report: Any) -> None:
        if report["kind"] == "epoch":
            raise OSError("the terminal is gone")
        recorded.append(report["kind"])

    delivery = ReportDelivery(on_report)
    monitor = RunMonitor(1, delivery.put, LIMITS, settle_seconds=0.0)
    with serving(monitor.receive) as server:
        with client_of(server) as client:
            client.send("epoch", epoch=0)
            client.send("epoch", epoch=1)
            client.send("checkpoint", epoch=1)
            client.send("failed", error="ValueError", message="m", traceback="t")
        wait_until(lambda: monitor.failed)
    delivery.close()
    assert recorded == ["checkpoint", "failed"]
    assert str(monitor.error()).startswith("rank 0 of 1 raised ValueError")
    texts = [record.getMessage() for record in caplog.records]
    assert sum("'epoch' of rank 0 was not recorded" in text for text in texts) == 1
    assert "2 reports were not recorded, the first for: the terminal is gone" in texts


def test_a_report_that_cannot_be_judged_ends_neither_the_channel_nor_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    received: list[Any] = []

    def on_report(report: Any) -> None:
        received.append(report["step"])

    with serving(on_report) as server, client_of(server) as client:
        client.send("progress")
        client.send("progress", step=1)
        wait_until(lambda: received)
    assert received == [1]
    assert "could not be taken in" in caplog.text


def test_a_link_can_be_ended_while_another_thread_reads_and_one_writes() -> None:
    one, other = socket.socketpair()
    here, there = Link(one), Link(other)
    woken = threading.Event()

    def read() -> None:
        with pytest.raises((EOFError, OSError)):
            here.receive(10)
        here.close()
        woken.set()

    threading.Thread(target=read, daemon=True).start()
    time.sleep(0.05)
    here.shut()
    assert woken.wait(5.0)
    with pytest.raises(OSError):
        here.send(b"late")
    here.shut()
    there.close()
