"""Recording: what a run's reports become in MLflow, and what its best checkpoint becomes: a model folder."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from feature_eng.encoder.state import EncoderState
from hinet_model.objective.losses import loss_weights
from hinet_model.objective.metrics import metric_name
from hinet_model.report import figures
from hinet_model.serving.scorer import save_model_folder
from hinet_model.settings import RunSettings
from hinet_model.tracking.tracker import Tracker
from hinet_model.training import checkpoint
from hinet_model.training.control.reports import Report

logger = logging.getLogger(__name__)


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

    def log_loss_weights(self, scenario_rows: tuple[int, ...]) -> None:
        """Record the dataset proportions and what they make of a row's loss."""
        loss = self._settings.loss
        weights = loss_weights(loss, self._scenarios, self._tasks, scenario_rows)
        self._tracker.log_loss_weights(
            loss.scheme,
            self._scenarios,
            scenario_rows,
            weights.alphas,
            weights.row_factors,
            dict(zip(self._tasks, weights.tasks, strict=True)),
        )

    def record(self, report: Report) -> None:
        """Take one report in; only ``epoch`` has something to record."""
        if report["kind"] != "epoch":
            return
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
            metrics[metric_name("val", "auc", *names)] = cell["auc"]
            metrics[metric_name("val", "log_loss", *names)] = cell["log_loss"]
            metrics[metric_name("train", "log_loss", *names)] = report["train_cell_losses"][scenario][task]
            auc = math.nan if cell["auc"] is None else cell["auc"]
            self._auc.setdefault(names, []).append((epoch, auc))
        self._tracker.log_metrics(metrics, step=epoch)
        first = int(report["global_step"]) - len(report["losses"]) + 1
        self._losses += [(first + place, loss) for place, loss in enumerate(report["losses"])]
        self._attention = report["scenario_attention"]

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


def best_or_last(folder: Path) -> Path:
    """The checkpoint with the best validation, or the newest one where none was validated.

    Raises:
        CheckpointError: There is no whole checkpoint.
    """
    best = folder / checkpoint.BEST
    if best.exists():
        return best
    newest = checkpoint.latest(folder)
    if newest is None:
        raise checkpoint.CheckpointError(f"no whole checkpoint in {folder}")
    return newest


def best_weights(folder: Path) -> tuple[dict[str, Any], int]:
    """The weights that validated best, and their epoch; of the last checkpoint where none was validated."""
    saved, position = checkpoint.read(best_or_last(folder))
    # What was validated is the mean, where there is one.
    return {**saved["model"], **saved["average"]["mean"]}, position.best_epoch


def export_model(
    checkpoint_folder: Path, target: Path, state: EncoderState, settings: RunSettings, golden_rows: pa.Table
) -> Path:
    """Make a model folder of a run's best checkpoint.

    Args:
        checkpoint_folder: Folder of the run's checkpoints.
        target: New folder.
        state: The encoder that the training table was made with.
        settings: The run's settings.
        golden_rows: Raw rows, a few of every scenario.
    """
    weights, epoch = best_weights(checkpoint_folder)
    logger.info("exporting the model of epoch %d", epoch + 1)
    return save_model_folder(target, state, settings.model.model_dump(mode="json"), weights, golden_rows)
