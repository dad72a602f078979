"""Progress of a run on the driver's terminal: epoch, step, rows/s, time left, and a line per epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from tqdm import tqdm


class ProgressDisplay:
    """Shows a run's reports (`hinet_model.training.control.reports`).

    A terminal gets one line that is rewritten; a file or a job log gets a line every few seconds.

    Args:
        epochs: Epochs of the run.
        rows_per_epoch: Training rows.
        scenario_names: In contract order.
        task_names: In contract order.
        stream: Where to write.
        seconds_between: Least time between two lines that are not rewritten.
    """

    def __init__(
        self,
        epochs: int,
        rows_per_epoch: int,
        scenario_names: Sequence[str],
        task_names: Sequence[str],
        stream: TextIO | None = None,
        seconds_between: float = 5.0,
    ) -> None:
        self._epochs, self._rows_per_epoch = epochs, rows_per_epoch
        self._cells = [f"{scenario}/{task}" for scenario in scenario_names for task in task_names]
        self._stream = sys.stderr if stream is None else stream
        self._rewrite = self._stream.isatty()
        self._between = seconds_between
        self._started: float | None = None
        self._last_line = 0.0

    def show(self, report: Mapping[str, Any]) -> None:
        """Show one report; kinds that say nothing to a reader are passed over."""
        if self._started is None:
            # Starting the workers is no part of the speed.
            self._started = time.monotonic()
        if report["kind"] == "progress":
            self._show_progress(report)
        elif report["kind"] == "epoch":
            self._show_epoch(report)
        elif report["kind"] == "checkpoint":
            self._line(
                f"checkpoint after step {report['global_step']}  training paused {report['pause_seconds']:.2f} s  "
                f"whole after {report['seconds']:.1f} s"
            )
        elif report["kind"] == "restarts":
            self._line(f"restart {report['restarts']}")
        elif report["kind"] in ("failed", "stalled", "disconnected"):
            self._line(f"rank {report['rank']}: {report['kind']}")

    def _show_progress(self, report: Mapping[str, Any]) -> None:
        now = time.monotonic()
        last_step = report["step"] == report["steps"]
        if not self._rewrite and now - self._last_line < self._between and not last_step:
            return
        self._last_line = now
        assert self._started is not None
        done = report["epoch"] * self._rows_per_epoch + report["rows"]
        total = self._epochs * self._rows_per_epoch
        rate = report["rows_per_second"]
        left = tqdm.format_interval((total - done) / rate) if rate else "?"
        text = (
            f"epoch {report['epoch'] + 1}/{self._epochs}  step {report['step']}/{report['steps']}  "
            f"loss {report['loss']:.4f}  {rate:,.0f} rows/s  {100 * done / total:.0f} %  {left} left"
        )
        if self._rewrite:
            self._stream.write(f"\r\x1b[K{text}")
            self._stream.flush()
        else:
            self._line(text)

    def _show_epoch(self, report: Mapping[str, Any]) -> None:
        validated = "not validated"
        if report["cells"]:
            validated = (
                f"validation AUC {_auc(report['mean_auc'])}{'  (best so far)' if report['best'] else ''}"
            )
        self._line(
            f"epoch {report['epoch'] + 1}/{self._epochs} done  train loss {report['train_loss']:.4f}  {validated}  "
            f"{report['rows_per_second']:,.0f} rows/s  waited for data {100 * report['data_wait_share']:.1f} %"
        )
        if report["cells"]:
            cells = zip(self._cells, report["cells"], strict=True)
            self._line("    " + "  ".join(f"{name} {_auc(cell['auc'])}" for name, cell in cells))

    def _line(self, text: str) -> None:
        self._stream.write(f"{chr(13) + chr(27) + '[K' if self._rewrite else ''}{text}\n")
        self._stream.flush()


def _auc(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"
