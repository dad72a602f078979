"""Signals: SIGINT and SIGTERM at the driver while workers run; Horovod would have the workers killed for them at once.

Horovod installs handlers of its own for good, which end the workers' processes, and hides what came. Here the workers
are asked first: whoever drives them (`hinet_model.training.control.launch`) sees what came and gives them time to
write a checkpoint.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class KeptSignals:
    """Within a ``with`` block: signals are noted, and the handlers from before are put back at its end.

    A signal that comes before there are workers ends the block at once, as `KeyboardInterrupt` or `SystemExit`. For
    the main thread, as all of Python's handling of signals.

    Attributes:
        came: The first signal that came.
    """

    def __init__(self) -> None:
        self.came: signal.Signals | None = None
        self._end_processes: threading.Event | None = None

    def __enter__(self) -> KeptSignals:
        from horovod.runner import gloo_run

        self._handlers = {number: signal.getsignal(number) for number in NUMBERS}
        self._register = gloo_run.register_shutdown_event
        # Horovod asks for an event that ends its workers' processes, and would set it by handlers of its own.
        gloo_run.register_shutdown_event = self._event
        for number in NUMBERS:
            signal.signal(number, self._note)
        return self

    def _event(self) -> threading.Event:
        self._end_processes = threading.Event()
        return self._end_processes

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.came = self.came is not None, self.came or signal.Signals(number)
        if self._end_processes is None:
            self.throw()
        elif again:  # whoever asks twice does not want to wait
            self.end_processes()

    def throw(self, cause: BaseException | None = None) -> None:
        """Raise what stands for the signal that came, if one did."""
        if self.came == signal.SIGINT:
            raise KeyboardInterrupt from cause
        if self.came is not None:
            raise SystemExit(128 + self.came) from cause

    def end_processes(self) -> bool:
        """Have Horovod end its workers' processes: SIGTERM, five seconds, SIGKILL; False where it has none yet."""
        if self._end_processes is None:
            return False
        self._end_processes.set()
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from horovod.runner import gloo_run

        gloo_run.register_shutdown_event = self._register
        for number, handler in self._handlers.items():
            if handler is not None:  # one that was not set from Python cannot be put back by it
                signal.signal(number, handler)
