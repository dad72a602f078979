"""Delivery: hands reports to whoever shows and records them, in a thread of its own.

Neither a slow receiver (an MLflow server that is down) nor one that raises may reach the channel: the driver would
no longer hear its workers. What a receiver raises costs that report its record, never the run.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from hinet_model.training.control.reports import Report

logger = logging.getLogger(__name__)


class ReportDelivery:
    """Calls ``on_report`` with one report after the other.

    Args:
        on_report: Shows and records; may take its time, may raise.
    """

    def __init__(self, on_report: Callable[[Report], None]) -> None:
        self._on_report = on_report
        self._waiting: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
        self._failed = 0
        self._first_error: Exception | None = None
        self._thread = threading.Thread(target=self._deliver, name="report-delivery", daemon=True)
        self._thread.start()

    def put(self, report: Report) -> None:
        """Take a report in; returns at once."""
        self._waiting.put(report)

    def _deliver(self) -> None:
        while (report := self._waiting.get()) is not None:
            try:
                self._on_report(report)
            except Exception as error:
                self._failed += 1
                if self._first_error is None:
                    self._first_error = error
                    logger.exception(
                        "report '%s' of rank %s was not recorded; the run goes on",
                        report["kind"],
                        report["rank"],
                    )

    def close(self, seconds: float = 120.0) -> None:
        """Deliver what is left, for ``seconds`` at most, and say how many reports were not recorded."""
        self._waiting.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            logger.warning("reports still wait to be recorded after %g s; they are left out", seconds)
        if self._failed:
            logger.warning("%d reports were not recorded, the first for: %s", self._failed, self._first_error)
