"""Trial: one model trained on one core by the training worker's own code, and scored on the test rows.

A process by itself, so that its memory and its time are its own: ``python -m hinet_model.studies.trial ORDER`` reads an
`Order` and writes what came of it beside it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from feature_eng.encoder.state import EncoderState
from feature_eng.snapshot import SnapshotRef
from foundation.settings import load_settings
from hinet_model.data.batch import BatchLayout
from hinet_model.data.loading import SnapshotReader
from hinet_model.models.build import build_model, num_dense_parameters, num_parameters
from hinet_model.models.features import build_layout
from hinet_model.models.model import ScenarioModel
from hinet_model.objective.metrics import CellMetrics, evaluate_cells
from hinet_model.settings import RunSettings
from hinet_model.studies.trials import code_digest
from hinet_model.training.control.reports import ReportList
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.dist.world import LocalWorld
from hinet_model.training.job import TrainingJob, epoch_plan
from hinet_model.training.recording import best_weights
from hinet_model.training.worker import train

OUTCOME = "outcome.json"
SCORES = "scores.npy"


@dataclass(frozen=True)
class Order:
    """What a trial's process is told.

    Args:
        snapshot: The pinned training table, as JSON.
        config: Settings of a training run (YAML).
        overrides: Over those, as ``--set`` takes them.
        tested: Whether to score the test rows; a search must not look at them.
        code: Digest of the code that the trial is keyed by.
    """

    snapshot: str
    config: str
    overrides: tuple[str, ...]
    tested: bool
    code: str


def run_trial(order: Order) -> tuple[dict[str, Any], npt.NDArray[np.float32] | None]:
    """Train, keep the epoch that validated best, score it.

    Returns:
        What is kept of the trial, and the scores of the test rows by ascending ``row_id``, ``(R, N)``; ``None`` if not
        asked for. ``cpu_seconds`` are those of training and its validations; ``process_seconds`` of everything.
    """
    snapshot = SnapshotRef.from_json(order.snapshot)
    settings = load_settings(RunSettings, order.config, list(order.overrides))
    schema = EncoderState.load(snapshot.encoder_path).model_schema()
    with tempfile.TemporaryDirectory(prefix="hinet-trial-") as folder:
        job = TrainingJob(settings, snapshot, schema, checkpoint_folder=folder, log_folder=folder)
        begun = time.process_time()
        result = train(job, LocalWorld("cpu"), ReportList(), Progress())
        cpu_seconds = time.process_time() - begun
        layout = build_layout(settings.model, schema)
        model = build_model(settings.model, layout, seed=0)
        weights, _ = best_weights(folder)
        model.load_state_dict(weights)
    model.eval()
    history = result["history"]
    attention = model.scenario_attention()
    outcome: dict[str, Any] = {
        "validation": [entry["mean_auc"] for entry in history],
        "losses": [entry["train_loss"] for entry in history],
        "best_epoch": result["best_epoch"],
        "rows": sum(entry["rows"] for entry in history),
        "cpu_seconds": round(cpu_seconds, 1),
        "dense_parameters": num_dense_parameters(model),
        "parameters": num_parameters(model),
        "attention": None if attention is None else attention.tolist(),
    }
    scores = None
    if order.tested:
        cells, scores = _tested(job, model, layout)
        outcome["test"] = [
            {
                "scenario": layout.scenario_names[cell.scenario_index],
                "task": layout.task_names[cell.task],
                **{name: getattr(cell, name) for name in ("rows", "positives", "auc", "log_loss", "pcoc")},
            }
            for cell in cells
        ]
    outcome["process_seconds"] = round(time.process_time(), 1)
    outcome["peak_memory_mib"] = round(result["peak_memory_bytes"] / 2**20)
    return outcome, scores


@torch.inference_mode()
def _tested(
    job: TrainingJob, model: ScenarioModel, layout: BatchLayout
) -> tuple[list[CellMetrics], npt.NDArray[np.float32]]:
    """Metrics of each cell on the test rows, and the scores by ascending ``row_id``."""
    plan = epoch_plan(job, 0, "test")
    with SnapshotReader(job.snapshot, "test", layout) as reader:
        parts = [
            (batch.row_ids, batch.scenario_index, batch.labels, torch.sigmoid(model(batch).float()))
            for batch in reader.batches(plan, 0, 1)
        ]
    row_ids, scenario, labels, probs = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
    return evaluate_cells(labels, probs, scenario, layout.num_scenarios), probs[np.argsort(row_ids)]


def write_order(order: Order, folder: Path) -> Path:
    """Put an order where the process finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "order.json"
    place.write_text(json.dumps(asdict(order)), encoding="utf-8")
    return place


def main(place: Path) -> None:
    """Do what the order says, and write what came of it beside it."""
    content = json.loads(place.read_text(encoding="utf-8"))
    order = Order(**{**content, "overrides": tuple(content["overrides"])})
    if order.code != code_digest():
        raise SystemExit("the code has changed since the study began; start it again")
    outcome, scores = run_trial(order)
    if scores is not None:
        np.save(place.with_name(SCORES), scores)
    place.with_name(OUTCOME).write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
