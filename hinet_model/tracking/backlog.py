"""A backlog of calls that could not be delivered: kept in order, on disk, and delivered later.

Tracking must never cost a training run. Calls that fail wait here as JSON lines; while the receiver is
down it is asked again only after a pause, since every attempt may block for its whole time limit.

A backlog belongs to one run and to one receiver, whose name is its first line: it is delivered to no other.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Entry = dict[str, Any]
Deliver = Callable[[str, dict[str, Any]], None]


class RefusedError(Exception):
    """The receiver is up and will never take this call."""


class Backlog:
    """Delivers calls in order, and keeps on disk those that fail.

    Args:
        path: JSON-lines file of the undelivered calls; exists only while there are any. Calls left in it
            by an earlier process are delivered first.
        receiver: Name of who is meant; calls that were left for another one stay where they are, in a file beside.
        deliver: Does one call, given its name and JSON-able arguments; `RefusedError` means "never", any
            other exception "not now".
        pause_seconds: Time between two attempts while the receiver is down.
    """

    def __init__(self, path: Path, receiver: str, deliver: Deliver, pause_seconds: float = 60.0) -> None:
        if path.exists() and receiver_of(path) != receiver:
            logger.warning("%s waits for %s and is not delivered to %s", path, receiver_of(path), receiver)
            path = path.with_name(
                f"{path.stem}-{hashlib.sha256(receiver.encode()).hexdigest()[:8]}{path.suffix}"
            )
        self.path, self.receiver = path, receiver
        self._deliver = deliver
        self._pause = pause_seconds
        self._retry_at = 0.0
        self._reported = False
        self._lock = threading.RLock()
        self._waiting = _read(path)

    def __len__(self) -> int:
        """Number of calls that wait."""
        return len(self._waiting)

    def call(self, name: str, /, **arguments: Any) -> bool:
        """Deliver a call, after all that wait; keep it if that fails.

        Returns:
            Whether it was delivered. Never raises for a receiver that is down.
        """
        with self._lock:
            self._waiting.append({"call": name, "arguments": arguments})
            if self.flush(force=False):
                return True
            self._write([self._waiting[-1]], mode="a")
            return False

    def flush(self, force: bool = True) -> bool:
        """Deliver what waits.

        Args:
            force: Try even within the pause after a failure.

        Returns:
            Whether nothing waits any more.
        """
        with self._lock:
            if not force and time.monotonic() < self._retry_at:
                return False
            delivered = 0
            try:
                for entry in self._waiting:
                    self._deliver_or_drop(entry)
                    delivered += 1
            except Exception as error:
                self._retry_at = time.monotonic() + self._pause
                self._report(error)
            del self._waiting[:delivered]
            if delivered and self.path.exists():
                # The call in hand, if it failed, is appended by `call`.
                self._write(self._waiting if force else self._waiting[:-1], mode="w")
            return not self._waiting

    def _deliver_or_drop(self, entry: Entry) -> None:
        """Deliver one call; one that can never be delivered must not block those behind it."""
        try:
            self._deliver(entry["call"], entry["arguments"])
        except RefusedError as error:
            logger.warning("MLflow refuses %s, which is left out: %s", entry["call"], error)

    def _report(self, error: Exception) -> None:
        """Say once that the receiver is down; the rest goes to the debug log."""
        if self._reported:
            logger.debug("still not delivered: %s", error)
            return
        self._reported = True
        cause = str(error).partition("\n")[0]
        logger.warning("MLflow cannot be reached; the run goes on, records wait in %s (%s)", self.path, cause)

    def _write(self, entries: list[Entry], mode: str) -> None:
        """Write calls to the file; a disk that refuses must not end the run either."""
        try:
            if mode == "w" and not entries:
                self.path.unlink(missing_ok=True)
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = mode == "w" or not self.path.exists()
            with self.path.open(mode, encoding="utf-8") as file:
                if new:
                    file.write(json.dumps({"receiver": self.receiver}) + "\n")
                file.writelines(json.dumps(entry) + "\n" for entry in entries)
        except OSError as error:
            logger.warning("%s cannot be written: %s", self.path, error)


def claim(folder: Path) -> int | None:
    """Keep other processes from delivering what a live run has in its folder; they find out by claiming it too.

    Returns:
        A descriptor that holds the claim until it is closed, or its process ends; None where another holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        logger.debug("%s lies on storage without locks", folder)
    return descriptor


def receiver_of(path: Path) -> str | None:
    """Whom the calls in a file are for; None where there is no such file, or it does not say."""
    try:
        with path.open(encoding="utf-8") as file:
            return str(json.loads(file.readline())["receiver"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(path: Path) -> list[Entry]:
    """The calls an earlier process left; a last line cut short by its death is dropped."""
    if not path.exists():
        return []
    entries: list[Entry] = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            logger.warning("%s: a line that is cut short is left out", path)
    return entries
