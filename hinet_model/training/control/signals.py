"""Signals: Horovod replaces the handlers of SIGINT and SIGTERM for good, and hides what came; both are undone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from types import TracebackType

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class KeptSignals:
    """Within a ``with`` block: remembers the signals that came, and puts the handlers back at its end.

    For the main thread, as all of Python's handling of signals.
    """

    def __enter__(self) -> KeptSignals:
        self._handlers = {number: signal.getsignal(number) for number in NUMBERS}
        self._own: set[signal.Signals] = set()
        # The one place where a signal leaves a trace whoever handles it.
        self._reading, self._writing = socket.socketpair()
        self._reading.setblocking(False)
        self._writing.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        return self

    def replaced(self, number: signal.Signals) -> bool:
        """Whether another handler stands in for the one from before."""
        return signal.getsignal(number) is not self._handlers[number]

    def send(self, number: signal.Signals) -> None:
        """Send this process a signal that is not counted as one that came."""
        self._own.add(number)
        os.kill(os.getpid(), number)

    def came(self, number: signal.Signals) -> bool:
        """Whether this signal has come, from outside, since the beginning."""
        if number in self._own:
            return False
        with contextlib.suppress(BlockingIOError):
            return number in self._reading.recv(4096, socket.MSG_PEEK)
        return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._before)
        self._reading.close()
        self._writing.close()
        for number, handler in self._handlers.items():
            if handler is not None:  # one that was not set from Python cannot be put back by it
                signal.signal(number, handler)
