"""Link: one authenticated connection between a worker and the driver, and the limits of what it takes in."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

HANDSHAKE_SECONDS = 10.0
"""Time that either side has to show that it knows the key."""

LARGEST_FRAME = 64 << 20
"""Bytes of the largest report: one epoch's losses, a few million of them."""


class FrameError(ValueError):
    """What came is not what this channel carries."""


class Link:
    """A connection that one thread reads, any thread may write to, and any thread may end.

    Args:
        end: A connected socket; it belongs to the link from now on.
    """

    def __init__(self, end: socket.socket) -> None:
        end.settimeout(None)
        self._socket = end
        self._connection: Connection = Connection(os.dup(end.fileno()))
        self._writing = threading.Lock()

    def send(self, frame: bytes) -> None:
        """Send one frame; OSError where the link has ended."""
        with self._writing:
            self._connection.send_bytes(frame)

    def receive(self, largest: int) -> bytes:
        """Wait for one frame.

        Raises:
            EOFError: The peer has left.
            OSError: The link has ended.
            FrameError: The frame is larger than ``largest`` bytes; it is not read.
        """
        try:
            return self._connection.recv_bytes(largest)
        except OSError as error:
            if error.errno is None:  # not the system's error, but the length that the frame announces
                raise FrameError(f"a frame of more than {largest} bytes") from error
            raise

    def admit(self, key: bytes) -> None:
        """Let a peer in that shows the key, and show it to the peer; the driver's side."""
        with self._hurried():
            deliver_challenge(self._connection, key)
            answer_challenge(self._connection, key)

    def enter(self, key: bytes) -> None:
        """As `admit`, from the worker's side."""
        with self._hurried():
            answer_challenge(self._connection, key)
            deliver_challenge(self._connection, key)

    @contextlib.contextmanager
    def _hurried(self) -> Iterator[None]:
        # A time limit of the socket would count from byte to byte.
        timer = threading.Timer(HANDSHAKE_SECONDS, self.shut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def shut(self) -> None:
        """End it from any thread: whoever reads wakes up, here and at the other end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give it back to the system; for the thread that reads, when it reads no more."""
        self.shut()
        with self._writing, contextlib.suppress(OSError):
            self._connection.close()
        self._socket.close()
