"""Recording: what a run's reports become in MLflow, and what its best checkpoint becomes: a model folder."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from feature_eng.encoder.state import EncoderState
from feature_eng.snapshot import SnapshotRef
from foundation import stores
from hinet_model.objective.losses import loss_weights
from hinet_model.objective.metrics import metric_name
from hinet_model.report import figures
from hinet_model.serving.scorer import save_model_folder
from hinet_model.settings import RunSettings
from hinet_model.tracking.tracker import Point, Tracker
from hinet_model.training import checkpoint
from hinet_model.training.control.reports import Report
from hinet_model.training.control.restarts import Attempts
from hinet_model.training.state import weights_of

logger = logging.getLogger(__name__)

_POINTS_A_CALL, _POINTS_SECONDS = 200, 10.0
"""Points of steps that wait for one call to MLflow, and how long."""


class RunRecorder:
    """Turns reports into metrics and figures of one MLflow run.

    Args:
        tracker: The run.
        settings: The run's settings.
        state: The encoder, for the names of scenarios and tasks.
    """

    def __init__(self, tracker: Tracker, settings: RunSettings, state: EncoderState) -> None:
        self._tracker, self._settings = tracker, settings
        self._scenarios, self._tasks = state.scenario_names, state.task_names
        self._losses: list[tuple[float, float]] = []
        self._auc: dict[tuple[str, str], list[tuple[float, float]]] = {}
        self._attention: list[list[float]] | None = None
        self._points: list[Point] = []
        self._points_since = time.monotonic()

    def log_loss_weights(self, snapshot: SnapshotRef) -> None:
        """Record the dataset proportions and what they make of a row's loss."""
        loss = self._settings.loss
        scenario_rows = snapshot.scenario_rows["train"]
        weights = loss_weights(
            loss,
            self._scenarios,
            self._tasks,
            scenario_rows,
            snapshot.whole_weights(),
            snapshot.trained_weights(),
        )
        self._tracker.log_loss_weights(
            loss.scheme,
            self._scenarios,
            scenario_rows,
            weights.alphas,
            weights.row_factors,
            dict(zip(self._tasks, weights.tasks, strict=True)),
        )

    def record(self, report: Report) -> None:
        """Take one report in: of steps, of what workers use, of an epoch, of a checkpoint,
        of what came before where a run goes on."""
        if report["kind"] == "progress":
            step = int(report["epoch"]) * int(report["steps"]) + int(report["step"])
            self._note("step", {name: report[name] for name in ("loss", "rows_per_second")}, step)
            return
        if report["kind"] == "resources":
            self._note(f"system/rank_{report['rank']}", report["used"], int(report["global_step"]))
            return
        if report["kind"] == "checkpoint":
            cost = {name: report[name] for name in ("pause_seconds", "seconds")}
            self._note("checkpoint", cost, int(report["global_step"]))
            return
        # What waits goes with the epoch or the last words that follow.
        self._flush_points()
        if report["kind"] == "restarts":
            self._auc, self._losses = {}, []
        elif report["kind"] == "resumed":
            self._auc = {}
            for entry in report["history"]:
                self._add_to_curves(entry)
            self._losses = list(report["losses"])
        elif report["kind"] == "epoch":
            self._record_epoch(report)

    def _record_epoch(self, report: Report) -> None:
        epoch = int(report["epoch"]) + 1
        metrics: dict[str, float | None] = {
            "train/loss": report["train_loss"],
            "train/rows": report["rows"],
            "train/rows_per_second": report["rows_per_second"],
            "train/seconds": report["seconds"],
            "train/data_wait_share": report["data_wait_share"],
            "val/auc_mean": report["mean_auc"],
        }
        for task_name, weight in zip(self._tasks, report["task_weights"], strict=True):
            metrics[metric_name("task_weight", task_name)] = weight
        for position, cell in enumerate(report["cells"]):
            scenario, task = divmod(position, len(self._tasks))
            names = self._scenarios[scenario], self._tasks[task]
            for measure in ("auc", "log_loss", "pcoc", "gauc"):
                metrics[metric_name("val", measure, *names)] = cell[measure]
            if cell["auc_error"]:
                metrics[metric_name("val", "auc_error", *names)] = cell["auc_error"]
        for scenario, losses in enumerate(report["train_cell_losses"]):
            for task, loss in enumerate(losses):
                name = metric_name("train", "log_loss", self._scenarios[scenario], self._tasks[task])
                metrics[name] = loss
        self._tracker.log_metrics(metrics, step=epoch)
        self._add_to_curves(report)
        self._losses += report["losses"]
        if report["scenario_attention"] is not None:
            self._attention = report["scenario_attention"]

    def _add_to_curves(self, entry: Mapping[str, Any]) -> None:
        """Points of the learning curves; an epoch that was not validated has none."""
        for position, cell in enumerate(entry["cells"]):
            scenario, task = divmod(position, len(self._tasks))
            auc = math.nan if cell["auc"] is None else cell["auc"]
            names = self._scenarios[scenario], self._tasks[task]
            self._auc.setdefault(names, []).append((int(entry["epoch"]) + 1, auc))

    def _note(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Keep points for a call that takes many; a call each would be more work than the steps."""
        now = int(time.time() * 1000)
        self._points += [(f"{group}/{name}", float(value), step, now) for name, value in values.items()]
        if len(self._points) >= _POINTS_A_CALL or time.monotonic() - self._points_since > _POINTS_SECONDS:
            self._flush_points()

    def _flush_points(self) -> None:
        points, self._points = self._points, []
        self._points_since = time.monotonic()
        if points:
            self._tracker.log_points(points)

    def log_figures(self) -> None:
        """Record learning curves, the loss and, where the model has one, the scenario attention."""
        if self._auc:
            curves = figures.learning_curves(self._auc, self._scenarios, self._tasks)
            self._tracker.log_figure(curves, "figures/validation_auc.png")
        if self._losses:
            self._tracker.log_figure(figures.loss_curve(self._losses), "figures/train_loss.png")
        if self._attention is not None:
            table = np.array(self._attention)
            attention = figures.scenario_attention(table, self._scenarios)
            self._tracker.log_figure(attention, "figures/scenario_attention.png")

    def log_goodput(self, attempts: Attempts) -> None:
        """Record how much of the run's time went into what it has at its end."""
        measured = {"goodput": attempts.goodput, "seconds": attempts.seconds, "restarts": attempts.restarts}
        self._tracker.log_metrics({f"run/{name}": value for name, value in measured.items()}, step=0)

    def log_outcome(self, results: list[dict[str, Any]]) -> None:
        """Record what the workers used: memory, threads, device."""
        peaks = [result["peak_memory_bytes"] / 2**20 for result in results]
        self._tracker.log_metrics({"worker/peak_memory_mib": max(peaks)}, step=0)
        first = results[0]
        self._tracker.log_tags(
            {
                "plan_hash": first["plan_hash"],
                "device": first["device"],
                "threads_per_worker": str(first["threads"]),
                "best_epoch": str(first["best_epoch"] + 1),
            }
        )


def best_weights(folder: stores.Place) -> tuple[dict[str, Any], int]:
    """The weights that validated best, and their epoch, 0-based; of the last checkpoint where none was validated."""
    saved, position = checkpoint.read(checkpoint.best_or_last(folder))
    epoch = position.history[-1]["epoch"] if position.history else position.epoch
    return weights_of(saved), epoch


def export_model(
    checkpoint_folder: stores.Place,
    target: Path,
    state: EncoderState,
    settings: RunSettings,
    golden_rows: pa.Table,
) -> Path:
    """Make a model folder of a run's best checkpoint.

    Args:
        checkpoint_folder: Place of the run's checkpoints.
        target: New folder on this machine.
        state: The encoder that the training table was made with.
        settings: The run's settings.
        golden_rows: Raw rows, a few of every scenario.
    """
    weights, epoch = best_weights(checkpoint_folder)
    logger.info("exporting the model of epoch %d", epoch + 1)
    return save_model_folder(target, state, settings.model.model_dump(mode="json"), weights, golden_rows)
