"""Trial: one model trained on one core by the training worker's own code, and scored on the test split."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from feature_eng.encoder.state import EncoderState
from feature_eng.snapshot import SnapshotRef
from foundation.settings import load_settings
from hinet_model.data.batch import BatchLayout
from hinet_model.data.loading import SnapshotReader
from hinet_model.models.build import build_model, num_dense_parameters
from hinet_model.models.features import build_layout
from hinet_model.models.model import ScenarioModel
from hinet_model.objective.metrics import evaluate_cells, mean_defined
from hinet_model.settings import RunSettings
from hinet_model.training.control.reports import ReportList
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.dist.world import LocalWorld
from hinet_model.training.job import TrainingJob, epoch_plan
from hinet_model.training.recording import best_weights
from hinet_model.training.worker import train

ONE_CORE = ["training.threads_per_worker=1", "training.workers=1", "checkpoint.keep=1"]


def run_trial(snapshot_json: str, config: str, overrides: list[str], tested: bool) -> dict[str, Any]:
    """Train, keep the best validated epoch, score it.

    Args:
        snapshot_json: The pinned training table.
        config: Settings of the run, a YAML file.
        overrides: ``key=value`` settings that come on top.
        tested: Whether to score the test split; a search must not look at it.

    Returns:
        Mean AUC over cells of each validation (``validation``) and of the test split (``test``, ``test_cells``; None
        if not asked for), parameters without the embedding table, median rows per second over epochs, peak memory.
    """
    snapshot = SnapshotRef.from_json(snapshot_json)
    settings = load_settings(RunSettings, config, [*overrides, *ONE_CORE])
    schema = EncoderState.load(snapshot.encoder_path).model_schema()
    with tempfile.TemporaryDirectory() as folder:
        job = TrainingJob(settings, snapshot, schema, checkpoint_folder=folder, log_folder=folder)
        result = train(job, LocalWorld("cpu"), ReportList(), Progress())
        layout = build_layout(settings.model, schema)
        model = build_model(settings.model, layout, seed=0)
        weights, _ = best_weights(Path(folder))
        model.load_state_dict(weights)
    cells = _test_cells(job, model, layout) if tested else None
    return {
        "validation": [entry["mean_auc"] for entry in result["history"]],
        "best_epoch": result["best_epoch"],
        "test": None if cells is None else mean_defined(cells),
        "test_cells": cells,
        "dense_parameters": num_dense_parameters(model),
        "rows_per_second": statistics.median(entry["rows_per_second"] for entry in result["history"]),
        "peak_memory_mib": result["peak_memory_bytes"] / 2**20,
        "losses": [entry["train_loss"] for entry in result["history"]],
    }


@torch.no_grad()
def _test_cells(job: TrainingJob, model: ScenarioModel, layout: BatchLayout) -> list[float | None]:
    """AUC of each scenario and task on the test split."""
    model.eval()
    plan = epoch_plan(job, 0, "test")
    with SnapshotReader(job.snapshot, "test", layout) as reader:
        parts = [
            (batch.labels, torch.sigmoid(model(batch).float()), batch.scenario_index)
            for batch in reader.batches(plan, 0, 1)
        ]
    labels, probs, scenario = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
    return [cell.auc for cell in evaluate_cells(labels, probs, scenario, layout.num_scenarios)]
