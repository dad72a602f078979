"""Run facts: what the run that trained a version has recorded, as the report page shows it."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException

from hinet_model.lifecycle.registry import RegisteredVersion
from hinet_model.objective.metrics import metric_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

_LOSS_WEIGHT = "loss_weight/"
_CPU = re.compile(r"system/rank_\d+/cpu_percent")


@dataclass(frozen=True)
class RunFacts:
    """Plain facts; what was not recorded is empty.

    Attributes:
        curves: ``(scenario, task)`` -> points ``(epoch, validation AUC)``.
        loss: Points ``(epoch, training loss)``.
        costs: What training took: what, how much, in words.
        lineage: Where the model comes from: tags of the version, then of its run.
        settings: Settings of the run, dotted.
        split_rows: Split -> rows by scenario.
    """

    curves: Mapping[tuple[str, str], Sequence[tuple[float, float]]] = field(default_factory=dict)
    loss: Sequence[tuple[float, float]] = ()
    costs: Sequence[tuple[str, str]] = ()
    lineage: Sequence[tuple[str, str]] = ()
    settings: Sequence[tuple[str, str]] = ()
    split_rows: Mapping[str, Sequence[int]] = field(default_factory=dict)


def run_facts(client: MlflowClient, version: RegisteredVersion, cells: Sequence[tuple[str, str]]) -> RunFacts:
    """Read what the run of a version has recorded; a run that is gone leaves what the version's tags say.

    Args:
        client: From `registry.connect`.
        version: The version.
        cells: ``(scenario, task)`` of each cell whose learning curve is wanted.
    """
    lineage = dict(version.tags)
    try:
        run = client.get_run(version.run_id)
    except MlflowException as error:
        logger.warning("%s: its run %s cannot be read: %s", version.uri, version.run_id, error.message)
        return RunFacts(lineage=sorted(lineage.items()))
    lineage = {"run": version.run_id, **lineage, **_plain_tags(run)}
    curves = {cell: _history(client, run, metric_name("val", "auc", *cell)) for cell in cells}
    return RunFacts(
        curves={cell: points for cell, points in curves.items() if points},
        loss=_history(client, run, "train/loss"),
        costs=_costs(client, run),
        lineage=list(lineage.items()),
        settings=sorted((k, v) for k, v in run.data.params.items() if not k.startswith(_LOSS_WEIGHT)),
        split_rows=_split_rows(client, run),
    )


def _plain_tags(run: Run) -> dict[str, str]:
    return {key: value for key, value in sorted(run.data.tags.items()) if not key.startswith("mlflow.")}


def _history(client: MlflowClient, run: Run, name: str) -> list[tuple[float, float]]:
    if name not in run.data.metrics:
        return []
    found = client.get_metric_history(run.info.run_id, name)
    # A run that went on from a checkpoint may have measured an epoch twice: the later one counts.
    points = {int(one.step): float(one.value) for one in sorted(found, key=lambda one: int(one.timestamp))}
    return [(float(step), value) for step, value in sorted(points.items())]


def _costs(client: MlflowClient, run: Run) -> list[tuple[str, str]]:
    metrics, tags = run.data.metrics, run.data.tags
    seconds = _history(client, run, "train/seconds")
    rows = _history(client, run, "train/rows")
    found: list[tuple[str, str]] = []
    if seconds:
        total = math.fsum(value for _, value in seconds)
        found.append(("epochs", f"{len(seconds)}"))
        found.append(("training", f"{total:,.0f} s, without the start of the workers"))
        if rows and total > 0:
            found.append(("rows a second", f"{math.fsum(value for _, value in rows) / total:,.0f}"))
    if "train/data_wait_share" in metrics:
        found.append(
            ("waiting for data", f"{100 * metrics['train/data_wait_share']:.1f} % of the last epoch")
        )
    if "worker/peak_memory_mib" in metrics:
        found.append(("peak memory of a worker", f"{metrics['worker/peak_memory_mib']:,.0f} MiB"))
    busy = [
        value for name in sorted(metrics) if _CPU.fullmatch(name) for _, value in _history(client, run, name)
    ]
    if busy:
        found.append(
            ("CPU of a worker", f"{math.fsum(busy) / len(busy):.0f} % on average; 100 % is one core")
        )
    for tag, what in (
        ("world_size", "workers"),
        ("threads_per_worker", "threads of each"),
        ("device", "device"),
    ):
        if tag in tags:
            found.append((what, tags[tag]))
    if run.info.end_time and run.info.start_time:
        whole = (run.info.end_time - run.info.start_time) / 1000
        found.append(("whole run", f"{whole:,.0f} s, with start, export and registration"))
    return found


def _split_rows(client: MlflowClient, run: Run) -> dict[str, Sequence[int]]:
    with TemporaryDirectory() as scratch:
        try:
            path = Path(client.download_artifacts(run.info.run_id, "snapshot.json", scratch))
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return {split: list(rows) for split, rows in content["scenario_rows"].items()}
        except Exception as error:
            logger.info("run %s has no snapshot.json that can be read: %s", run.info.run_id, error)
            return {}
