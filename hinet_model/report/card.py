"""Model card: what a registered version is, in Markdown, for whoever meets it in the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from feature_eng.encoder.state import EncoderState
from feature_eng.snapshot import SnapshotRef
from hinet_model.objective.metrics import CellMetrics


def model_card(
    architecture: str,
    stand_in: str | None,
    snapshot: SnapshotRef,
    state: EncoderState,
    history: Sequence[Mapping[str, Any]],
) -> str:
    """Purpose, data, cells, limits and use of a model that has just been trained.

    Args:
        architecture: Name of the model among those that can be configured.
        stand_in: Scenario as which a row of an unknown one is scored; None refuses it.
        snapshot: Its training table.
        state: The encoder, which knows scenarios, tasks and raw columns.
        history: One entry per validation, as the workers' results have it; the best one is shown.
    """
    best = max(history, key=lambda entry: _or_least(entry["mean_auc"]), default=None)
    tasks = ", ".join(f"`{task}`" for task in state.task_names)
    lines = [
        f"**Purpose.** Scores a row of one of {len(state.scenario_names)} scenarios with the probability of each task "
        f"({tasks}). Architecture `{architecture}`, trained on all scenarios together.",
        "",
        f"**Data.** Contract `{snapshot.contract_name}`, table `{snapshot.table}` at version {snapshot.version}: "
        f"{snapshot.rows('train'):,} rows for training, {snapshot.rows('validation'):,} for validation. "
        "The test rows were not read.",
        "",
        *_cells(state, snapshot, best),
        "",
        "**Limits.** "
        + (
            f"A row of an unknown scenario is scored as `{stand_in}`. "
            if stand_in
            else "A row of an unknown scenario is refused. "
        )
        + "Ids that were not seen in training share one embedding. A cell whose AUC is not defined had one class alone "
        "among its validation rows. Probabilities are those of the log that it was trained on: where negatives "
        "were dropped, or have changed since, they are off.",
        "",
        "**Use.** `mlflow.pyfunc.load_model(uri).predict(rows)` takes the raw columns of the signature and returns "
        "`scenario` and "
        + ", ".join(f"`{task}_prob`" for task in state.task_names)
        + "; `jobs/score.py` scores whole "
        "tables on Spark. Evaluation and promotion are the tags `validation_status` and `evaluated_against`.",
    ]
    return "\n".join(lines)


def _cells(state: EncoderState, snapshot: SnapshotRef, best: Mapping[str, Any] | None) -> list[str]:
    rows = snapshot.scenario_rows["train"]
    if best is None:
        return ["**Cells.** Not validated."]
    header = " | ".join(f"AUC `{task}`" for task in state.task_names)
    lines = [
        f"**Cells.** Validation after epoch {best['epoch'] + 1}, mean AUC {_shown(best['mean_auc'])}.",
        "",
    ]
    lines += [f"| scenario | training rows | {header} |", "|---|" + "---|" * (1 + len(state.task_names))]
    cells = [CellMetrics(**cell) for cell in best["cells"]]
    for place, scenario in enumerate(state.scenario_names):
        of_it = cells[place * len(state.task_names) : (place + 1) * len(state.task_names)]
        aucs = " | ".join(_shown(cell.auc) for cell in of_it)
        lines.append(f"| {scenario} | {rows[place]:,} | {aucs} |")
    return lines


def _shown(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"


def _or_least(value: float | None) -> float:
    return float("-inf") if value is None else value
