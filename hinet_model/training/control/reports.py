"""Reports: what workers tell the driver while they train, and the one thing it can answer.

Horovod hands over a worker's output only when the job ends, so progress, metrics and failures travel on a
channel of their own: JSON over an authenticated connection (bytes only, never pickles). The driver answers with a
command: ``stop`` (finish the step, write a checkpoint, end), ``abort`` (end at once: a peer has failed, and this
worker may hang in a collective that nobody will complete) or ``nobody works`` (all wait for each other).

Every report is a mapping with ``kind`` and ``rank``. Kinds: ``hello``, ``heartbeat``, ``resumed``, ``begins``,
``progress``, ``epoch``, ``resources``, ``checkpoint``, ``finished``, ``failed``, ``stalled``; the server adds
``disconnected`` when a worker's connection ends without one of the last three, and ``reconnected`` when it is back.

All but heartbeats are numbered, and kept until the driver has confirmed them: after a broken connection those that
it has not heard are sent again, and what it has heard already is not heard twice.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from multiprocessing import AuthenticationError
from typing import Any, Protocol

from hinet_model.training.control.link import HANDSHAKE_SECONDS, LARGEST_FRAME, FrameError, Link

logger = logging.getLogger(__name__)

LAST_WORDS = frozenset({"finished", "failed", "stalled"})
ABORT_EXIT_CODE = 71
LOST_EXIT_CODE = 72
_REFUSED_SECONDS = 5.0
"""How long the driver's host may say that nobody listens: the listener lives as long as the driver's process."""
CONFIRMED = b"heard "
"""With a number: all reports up to it have arrived."""

Report = Mapping[str, Any]


class ChannelError(RuntimeError):
    """A worker cannot reach the driver."""


class Reporter(Protocol):
    """How a worker speaks to whoever listens."""

    def send(self, kind: str, **fields: Any) -> None:
        """Say something; never raises for want of a listener."""

    @property
    def stop_requested(self) -> bool:
        """Whether the driver has asked to write a checkpoint and stop."""

    def told_nobody_works(self) -> bool:
        """Whether the driver has said, since the last call, that every worker waits for the others."""


class ReportList:
    """Keeps reports in a list: for one process, without a driver."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        self.stop_requested = False

    def send(self, kind: str, **fields: Any) -> None:
        self.reports.append({"kind": kind, "rank": 0, **fields})

    def told_nobody_works(self) -> bool:
        return False


class ReportClient:
    """A worker's end of the channel. What it is told to send waits for no network, but for last words.

    Args:
        address: Host and port of the driver's `ReportServer`.
        key: Its authentication key.
        rank: Rank of this worker.
        heartbeat_seconds: Time between two heartbeats.
        state: Called at each heartbeat for what to say with it (epoch, step, phase).
        reconnect_seconds: How long to try to reach the driver, at the start and after a broken connection; then
            this process ends, for the driver has given it up.

    Raises:
        ChannelError: The driver cannot be reached.
    """

    def __init__(
        self,
        address: tuple[str, int],
        key: bytes,
        rank: int,
        heartbeat_seconds: float,
        state: Callable[[], Mapping[str, Any]],
        reconnect_seconds: float = 60.0,
    ) -> None:
        self._address, self._key, self._rank = address, key, rank
        self._beat_every, self._state = heartbeat_seconds, state
        self._reconnect_seconds = reconnect_seconds
        self.stop_requested = False
        self._nobody_works = False
        # Never long: while the driver is away it grows for `reconnect_seconds` at most.
        self._unconfirmed: deque[tuple[int, bytes]] = deque()
        self._number = 0
        self._closed = False
        self._changed = threading.Condition()
        link = self._reach()
        self._thread = threading.Thread(target=self._speak, args=(link,), name="reports", daemon=True)
        self._thread.start()

    def send(self, kind: str, **fields: Any) -> None:
        with self._changed:
            self._number += 1
            report = {"kind": kind, "rank": self._rank, "number": self._number, **fields}
            frame = json.dumps(report).encode()
            if len(frame) > LARGEST_FRAME:
                logger.error("a report '%s' of %d bytes is too large to be sent", kind, len(frame))
                return
            self._unconfirmed.append((self._number, frame))
            self._changed.notify_all()
            if kind in LAST_WORDS:
                # The process may end right after them.
                self._changed.wait_for(lambda: not self._unconfirmed, self._reconnect_seconds)

    def told_nobody_works(self) -> bool:
        told, self._nobody_works = self._nobody_works, False
        return told

    def _speak(self, link: Link) -> None:
        """Send what is to be sent, over one connection after the other."""
        while True:
            broken = threading.Event()
            listener = threading.Thread(target=self._listen, args=(link, broken), daemon=True)
            listener.start()
            with contextlib.suppress(OSError):
                self._speak_on(link, broken)
            link.shut()
            listener.join()
            if self._all_said():
                return
            logger.warning("the connection to the driver broke; trying to reach it again")
            try:
                link = self._reach()
            except ChannelError as error:
                if self._closed:
                    return
                try:
                    logger.error("%s; this worker ends, the driver has given it up", error)
                    sys.stderr.write(f"{error}\n")
                finally:  # who read what it writes may be gone too
                    os._exit(LOST_EXIT_CODE)

    def _speak_on(self, link: Link, broken: threading.Event) -> None:
        """Returns when all is said and this end is closed, or when the connection is found broken."""
        link.send(json.dumps({"kind": "connected", "rank": self._rank}).encode())
        sent, next_beat = 0, time.monotonic() + self._beat_every
        while True:
            with self._changed:
                while (left := next_beat - time.monotonic()) > 0 and not (
                    broken.is_set() or self._all_said() or self._newest() > sent
                ):
                    self._changed.wait(left)
                due = [(number, frame) for number, frame in self._unconfirmed if number > sent]
                if broken.is_set() or self._all_said():
                    return
            for number, frame in due:
                link.send(frame)
                sent = number
            if time.monotonic() >= next_beat:
                link.send(json.dumps({"kind": "heartbeat", "rank": self._rank, **self._state()}).encode())
                next_beat = time.monotonic() + self._beat_every

    def _all_said(self) -> bool:
        return self._closed and not self._unconfirmed

    def _newest(self) -> int:
        return self._unconfirmed[-1][0] if self._unconfirmed else 0

    def _listen(self, link: Link, broken: threading.Event) -> None:
        """Obey the driver, for as long as the connection lasts."""
        with contextlib.suppress(EOFError, OSError, FrameError):
            while True:
                self._obey(link.receive(64))
        link.close()
        with self._changed:
            broken.set()
            self._changed.notify_all()

    def _obey(self, command: bytes) -> None:
        if command == b"stop":
            self.stop_requested = True
        elif command == b"nobody works":
            self._nobody_works = True
        elif command == b"abort":
            # The main thread may be blocked in a collective for good: nothing gentler reaches it.
            os._exit(ABORT_EXIT_CODE)
        elif command.startswith(CONFIRMED):
            heard = int(command.removeprefix(CONFIRMED))
            with self._changed:
                while self._unconfirmed and self._unconfirmed[0][0] <= heard:
                    self._unconfirmed.popleft()
                self._changed.notify_all()

    def _reach(self) -> Link:
        """Connect, again and again for as long as a worker is waited for, or until the driver is known to be gone."""
        began, pause = time.monotonic(), 0.1
        deadline = began + self._reconnect_seconds
        refused_until: float | None = None
        while True:
            try:
                return self._connect()
            except (OSError, EOFError, AssertionError, AuthenticationError) as error:
                now = time.monotonic()
                if not isinstance(error, ConnectionRefusedError):
                    refused_until = None
                elif refused_until is None:
                    refused_until = now + _REFUSED_SECONDS
                if now + pause > min(deadline, refused_until or deadline):
                    host, port = self._address
                    raise ChannelError(
                        f"rank {self._rank} on {socket.gethostname()} cannot reach the driver's report channel at "
                        f"{host}:{port} after {now - began:.1f} s ({type(error).__name__}: {error}); "
                        "expected spark.driver.host to be an address that the workers can reach"
                    ) from error
            # Not all workers at once.
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 5.0)

    def _connect(self) -> Link:
        end = socket.create_connection(self._address, timeout=HANDSHAKE_SECONDS)
        end.settimeout(None)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # A network that swallows everything is a broken connection too; the system would try for a quarter
            # of an hour.
            milliseconds = int(1000 * self._reconnect_seconds)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        link = Link(end)
        try:
            link.enter(self._key)
        except BaseException:
            link.close()
            raise
        return link

    def close(self) -> None:
        """Say what is left to say, and hang up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(self._reconnect_seconds)
