"""Report server: the driver's end of the report channel.

The port can be reached by anyone in the network. Whoever does not show the key within some seconds is shut out, in
a thread of its own, so that it keeps nobody waiting; there is a limit to how many may try at once and to what they
may send before.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from hinet_model.training.control.link import LARGEST_FRAME, FrameError, Link
from hinet_model.training.control.reports import CONFIRMED, LAST_WORDS, Report

logger = logging.getLogger(__name__)

_MOST_STRANGERS = 64
"""Connections that may be open without having shown the key; the others are closed, and workers come again."""


class ReportServer:
    """Lets workers in and passes their reports on to ``on_report``, each once and in order.

    Args:
        host: Address to listen on; workers must reach it.
        on_report: Called with each report, one at a time, from threads of the server; quick. What it raises is
            logged, and the channel goes on.
    """

    def __init__(self, host: str, on_report: Callable[[Report], None]) -> None:
        self.key = secrets.token_bytes(32)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=512)
        self.address: tuple[str, int] = (host, self._listener.getsockname()[1])
        self._on_report = on_report
        self._lock = threading.Lock()
        self._links: dict[int, Link] = {}
        self._heard: dict[int, int] = {}
        self._ended: set[int] = set()
        self._commands: list[bytes] = []
        self._strangers = threading.Semaphore(_MOST_STRANGERS)
        self._noted: set[str] = set()
        self._noting = threading.Lock()
        self._closed = False
        threading.Thread(target=self._accept, name="reports", daemon=True).start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                end, _ = self._listener.accept()
            except OSError:
                # Closed by `close`, or a peer that went away at once.
                time.sleep(0.1)
                continue
            if not self._strangers.acquire(blocking=False):
                self._note("crowd", f"{_MOST_STRANGERS} connections have not shown the key yet; refused more")
                end.close()
                continue
            threading.Thread(target=self._serve, args=(end,), name="report-reader", daemon=True).start()
        self._listener.close()

    def _serve(self, end: socket.socket) -> None:
        """One connection, from the handshake to its end."""
        link = Link(end)
        try:
            try:
                link.admit(self.key)
            finally:
                self._strangers.release()
        except Exception as error:  # wrong key, not our protocol, too late
            self._note("stranger", f"refused a connection ({type(error).__name__}: {error})")
            link.close()
            return
        rank = None
        try:
            while True:
                report = _parse(link.receive(LARGEST_FRAME))
                rank = report["rank"]
                if report["kind"] == "connected":
                    self._welcome(rank, link)
                else:
                    self._take(rank, report, link)
        except (EOFError, OSError):
            pass
        except FrameError as error:
            self._note("garbage", f"ended a connection of rank {rank}: {error}")
        link.close()
        with self._lock:
            gone = rank is not None and self._links.get(rank) is link
            if gone and rank not in self._ended and not self._closed:
                self._pass_on({"kind": "disconnected", "rank": rank})

    def _welcome(self, rank: int, link: Link) -> None:
        with self._lock:
            before = self._links.get(rank)
            self._links[rank] = link
            commands = list(self._commands)
            if before is not None:
                before.shut()
                self._pass_on({"kind": "reconnected", "rank": rank})
        for command in commands:
            link.send(command)

    def _take(self, rank: int, report: dict[str, Any], link: Link) -> None:
        number = report.pop("number", None)
        with self._lock:
            if number is None or number > self._heard.get(rank, 0):
                if report["kind"] in LAST_WORDS:
                    self._ended.add(rank)
                self._pass_on(report)
                self._heard[rank] = number or self._heard.get(rank, 0)
        if number is not None:
            link.send(CONFIRMED + str(number).encode())

    def _pass_on(self, report: Report) -> None:
        try:
            self._on_report(report)
        except Exception:
            logger.exception("report '%s' of rank %s could not be taken in", report["kind"], report["rank"])

    def _note(self, kind: str, text: str) -> None:
        """Say once what strangers do; they may do it often."""
        with self._noting:
            first = kind not in self._noted
            self._noted.add(kind)
        logger.log(logging.WARNING if first else logging.DEBUG, "report channel: %s", text)

    def command(self, word: str) -> None:
        """Send a command to every worker, to those that come (back) later too if it is an order to end."""
        with self._lock:
            if word in ("stop", "abort"):
                self._commands.append(word.encode())
            links = list(self._links.values())
        for link in links:
            with contextlib.suppress(OSError):
                link.send(word.encode())

    def close(self) -> None:
        """Hang up on all and listen no more."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        with self._lock:
            links = list(self._links.values())
        for link in links:
            link.shut()


def _parse(frame: bytes) -> dict[str, Any]:
    """A report out of its frame; `FrameError` where it is none."""
    try:
        report = json.loads(frame)
    except ValueError:
        report = None
    if not isinstance(report, dict) or not isinstance(report.get("rank"), int) or "kind" not in report:
        raise FrameError(f"no report: {frame[:80]!r}")
    return report
