"""Reports: what workers tell the driver while they train, and the one thing it can answer.

Horovod hands over a worker's output only when the job ends, so progress, metrics and failures travel on a
channel of their own: JSON lines over an authenticated ``multiprocessing.connection`` (bytes only, never
pickles). The driver answers with a command: ``stop`` (finish the step, write a checkpoint, end) or ``abort``
(end at once: a peer has failed, and this worker may hang in a collective that nobody will complete).

Every report is a mapping with ``kind`` and ``rank``. Kinds: ``hello``, ``heartbeat``, ``progress``, ``epoch``,
``checkpoint``, ``finished``, ``failed``, ``stalled``; the server adds ``disconnected`` when a worker's connection
ends without one of the last three.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, Protocol

logger = logging.getLogger(__name__)

LAST_WORDS = frozenset({"finished", "failed", "stalled"})
ABORT_EXIT_CODE = 71

Report = Mapping[str, Any]


class Reporter(Protocol):
    """How a worker speaks to whoever listens."""

    def send(self, kind: str, **fields: Any) -> None:
        """Say something; never raises for want of a listener."""

    @property
    def stop_requested(self) -> bool:
        """Whether the driver has asked to write a checkpoint and stop."""


class ReportList:
    """Keeps reports in a list: for one process, without a driver."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        self.stop_requested = False

    def send(self, kind: str, **fields: Any) -> None:
        self.reports.append({"kind": kind, "rank": 0, **fields})


class ReportClient:
    """A worker's end of the channel.

    Args:
        address: Host and port of the driver's `ReportServer`.
        key: Its authentication key.
        rank: Rank of this worker.
        heartbeat_seconds: Time between two signs of life.
        state: Called at each sign of life for what to say with it (epoch, step, phase).
    """

    def __init__(
        self,
        address: tuple[str, int],
        key: bytes,
        rank: int,
        heartbeat_seconds: float,
        state: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._connection: Connection = Client(address, authkey=key)
        self._rank = rank
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.stop_requested = False
        self._beat_every, self._state = heartbeat_seconds, state
        threading.Thread(target=self._heartbeat, name="heartbeat", daemon=True).start()
        threading.Thread(target=self._obey, name="driver-commands", daemon=True).start()

    def send(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"kind": kind, "rank": self._rank, **fields}).encode()
        # A driver that is gone ends this process through Spark; a report that nobody reads is no failure.
        with self._lock, contextlib.suppress(OSError):
            self._connection.send_bytes(line)

    def _heartbeat(self) -> None:
        while not self._closed.wait(self._beat_every):
            self.send("heartbeat", **self._state())

    def _obey(self) -> None:
        while True:
            try:
                command = self._connection.recv_bytes(64)
            except (EOFError, OSError):
                return
            if command == b"stop":
                self.stop_requested = True
            elif command == b"abort":
                # The main thread may be blocked in a collective for good: nothing gentler reaches it.
                os._exit(ABORT_EXIT_CODE)

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            _hang_up(self._connection)


class ReportServer:
    """The driver's end: one thread per worker reads its reports and passes them to ``on_report``.

    Args:
        host: Address to listen on; workers must reach it.
        on_report: Called with each report, one at a time, from threads of the server. Must not raise.
    """

    def __init__(self, host: str, on_report: Callable[[Report], None]) -> None:
        self.key = secrets.token_bytes(32)
        self._listener = Listener((host, 0), backlog=128, authkey=self.key)
        self.address: tuple[str, int] = (host, self._listener.address[1])
        self._on_report = on_report
        self._lock = threading.Lock()
        self._connections: list[Connection] = []
        self._closed = False
        threading.Thread(target=self._accept, name="reports", daemon=True).start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection = self._listener.accept()
            except OSError:
                # Closed by `close`, or a peer that went away while it was let in.
                time.sleep(0.1)
                continue
            except Exception as error:  # a stranger: wrong key, or not our protocol
                logger.warning("refused a connection to the report channel: %s", error)
                continue
            self._connections.append(connection)
            threading.Thread(target=self._read, args=(connection,), name="report-reader", daemon=True).start()

    def _read(self, connection: Connection) -> None:
        rank, last_words = -1, False
        while True:
            try:
                report = json.loads(connection.recv_bytes())
            except (EOFError, OSError):
                break
            rank = report["rank"]
            last_words = last_words or report["kind"] in LAST_WORDS
            self._pass_on(report)
        if not last_words and not self._closed:
            self._pass_on({"kind": "disconnected", "rank": rank})

    def _pass_on(self, report: Report) -> None:
        with self._lock:
            self._on_report(report)

    def command(self, word: str) -> None:
        """Send ``stop`` or ``abort`` to every worker that is still there."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.send_bytes(word.encode())

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.close()
        for connection in self._connections:
            _hang_up(connection)


def _hang_up(connection: Connection) -> None:
    """Close a connection that another thread may be reading: closing alone would not wake it, nor the peer."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        connection.close()
