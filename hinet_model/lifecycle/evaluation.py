"""Evaluation of registered versions: per cell, on one frozen set of rows, recorded with the version.

The document is what promotion decides by. It names both versions and the rows that both were judged on,
so that a decision can be checked, and repeated, later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hinet_model.lifecycle import registry
from hinet_model.lifecycle.promotion import CellResult
from hinet_model.objective.metrics import CellMetrics, mean_defined, metric_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

VALIDATION_STATUS = "validation_status"
_DOCUMENT = "evaluation/version_{version}.json"


@dataclass(frozen=True)
class Evaluation:
    """A challenger's cells, and the champion's on the same rows.

    Attributes:
        model: Name of the registered model.
        challenger: Version that was judged.
        champion: Version it was compared with; ``None`` where there was no champion.
        rows: The frozen rows: table, version, id, split.
        challenger_cells: Its cells, scenario by scenario.
        champion_cells: The champion's cells; ``None`` without one.
    """

    model: str
    challenger: str
    champion: str | None
    rows: Mapping[str, Any]
    challenger_cells: tuple[CellResult, ...]
    champion_cells: tuple[CellResult, ...] | None

    def to_json(self) -> str:
        """JSON text, read back by :meth:`from_json`."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Read what :meth:`to_json` wrote."""
        content = json.loads(text)
        content["challenger_cells"] = _cells(content["challenger_cells"])
        if content["champion_cells"] is not None:
            content["champion_cells"] = _cells(content["champion_cells"])
        return cls(**content)

    def metrics(self) -> dict[str, float]:
        """The challenger's defined metrics: ``test/auc/<scenario>/<task>``, log-loss, and the mean AUC."""
        named: dict[str, float | None] = {
            metric_name("test", "auc_mean"): mean_defined(cell.auc for cell in self.challenger_cells)
        }
        for cell in self.challenger_cells:
            named[metric_name("test", "auc", cell.scenario, cell.task)] = cell.auc
            named[metric_name("test", "log_loss", cell.scenario, cell.task)] = cell.log_loss
        return {name: value for name, value in named.items() if value is not None}


def _cells(documents: Sequence[Mapping[str, Any]]) -> tuple[CellResult, ...]:
    return tuple(CellResult.from_json(document) for document in documents)


def to_results(
    cells: Sequence[CellMetrics], scenario_names: Sequence[str], task_names: Sequence[str]
) -> tuple[CellResult, ...]:
    """Metrics by position as results by name."""
    return tuple(
        CellResult(
            scenario=scenario_names[cell.scenario_index],
            task=task_names[cell.task],
            rows=cell.rows,
            positives=cell.positives,
            auc=cell.auc,
            log_loss=cell.log_loss,
        )
        for cell in cells
    )


def record(
    client: MlflowClient, version: registry.RegisteredVersion, evaluation: Evaluation, status: str
) -> None:
    """Write an evaluation to the version's run, and its outcome to the version's tags.

    Args:
        client: From `registry.connect`.
        version: The challenger.
        evaluation: Of this version.
        status: ``passed`` or ``failed``: what the gate would decide now.
    """
    for name, value in evaluation.metrics().items():
        client.log_metric(version.run_id, name, value)
    client.log_text(version.run_id, evaluation.to_json(), _DOCUMENT.format(version=version.version))
    client.set_model_version_tag(version.name, version.version, VALIDATION_STATUS, status)
    client.set_model_version_tag(
        version.name, version.version, "evaluated_against", evaluation.champion or "none"
    )


def latest(client: MlflowClient, version: registry.RegisteredVersion) -> Evaluation:
    """The evaluation last recorded for a version.

    Raises:
        RegistryError: There is none.
    """
    artifact = _DOCUMENT.format(version=version.version)
    if "evaluated_against" not in version.tags:
        raise registry.RegistryError(f"{version.uri}: has not been evaluated; run jobs/evaluate.py first")
    with TemporaryDirectory() as scratch:
        try:
            path = Path(client.download_artifacts(version.run_id, artifact, scratch))
        except Exception as error:
            raise registry.RegistryError(f"{version.uri}: its evaluation cannot be read: {error}") from error
        return Evaluation.from_json(path.read_text(encoding="utf-8"))
