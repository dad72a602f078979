"""Prefetch: prepare the next items in a background thread while the consumer works on this one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

# How soon a thread that waits for room notices that the consumer has gone.
_STOP_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class _End:
    """The last thing in the queue: why there is nothing more."""

    error: BaseException | None


class Prefetch(Generic[T]):
    """Iterate over ``items`` in one background thread, at most ``depth`` items ahead.

    Items come in order. An error in the thread is raised in the consumer, as the same object with its
    traceback and cause, after the items before it. Closing early stops and joins the thread; use it as a
    context manager, or read it to its end.

    Args:
        items: What to iterate over; a generator is closed in the thread that runs it.
        depth: Finished items that may wait for the consumer; one more may be in the making.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self.wait_seconds = 0.0
        """Seconds that the consumer has waited for items so far."""
        self._queue: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._finished = False
        self._thread = threading.Thread(target=self._run, args=(items,), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Prefetch[T]:
        return self

    def __next__(self) -> T:
        if self._finished:
            raise StopIteration
        started = time.perf_counter()
        item = self._queue.get()
        self.wait_seconds += time.perf_counter() - started
        if not isinstance(item, _End):
            return item
        self.close()
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and wait until it has ended; doing it again is harmless."""
        self._finished = True
        self._stop.set()
        self._thread.join()
        while not self._queue.empty():  # what the thread had ready, so that it is not kept in memory
            self._queue.get_nowait()

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, items: Iterator[T]) -> None:
        error: BaseException | None = None
        try:
            for item in items:
                if not self._put(item):
                    break
        # Whatever it is, it belongs to the consumer: a thread that dies silently would leave it waiting.
        except BaseException as caught:
            error = caught
        finally:
            try:
                if hasattr(items, "close"):
                    items.close()
            except BaseException as caught:
                error = error or caught
            self._put(_End(error))

    def _put(self, item: T | _End) -> bool:
        """Queue an item as soon as there is room; False if the consumer has gone."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_STOP_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False
