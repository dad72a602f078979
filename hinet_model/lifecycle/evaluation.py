"""Evaluation of registered versions: per cell, on one frozen set of rows, recorded with the version.

The document is what promotion decides by. It names both versions and the rows that both were judged on,
so that a decision can be checked, and repeated, later.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mlflow.entities import Metric

from hinet_model.lifecycle import registry
from hinet_model.lifecycle.judging.judgements import Judgement, Kind
from hinet_model.objective.metrics import CellMetrics, metric_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

FORMAT = 2
"""Version of the document. Raise it when a reader of old documents would misread new ones, or the reverse."""

CHALLENGER, CHAMPION, UNCALIBRATED = "challenger", "champion", "uncalibrated"
WEIGHED_BY = "weighed_by"
"""Key of an evaluation's rows: the column that they were weighed by, where they were."""
VALIDATION_STATUS = "validation_status"
_METRICS_A_CALL = 500
_DOCUMENT = "evaluation/version_{version}.json"
_PAGE = "evaluation/version_{version}.html"


@dataclass(frozen=True)
class CellResult:
    """A cell as training validates it: by name, without intervals.

    Attributes:
        scenario, task: Names.
        rows, positives: What the metrics rest on.
        auc: ``None`` where it is not defined (one class, no rows).
        log_loss: Mean log-loss in nats, or ``None`` without rows.
    """

    scenario: str
    task: str
    rows: int
    positives: int
    auc: float | None
    log_loss: float | None


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


@dataclass(frozen=True)
class Evaluation:
    """A challenger's cells, and the champion's on the same rows.

    Attributes:
        model: Name of the registered model.
        challenger: Version that was judged.
        champion: Version it was compared with; ``None`` where there was no champion.
        made_at: When, ISO 8601 in UTC.
        rows: The frozen rows: table, version, split, contract, the training table that they belong to, and the column
            that they were weighed by, if they were.
        seen: Model -> test rows that were among its training rows (``null``: not known), and how that was found out.
        methods: How intervals come about, and with which bins, resamples and lists.
        judgements: Cells scenario by scenario, slices, means.
    """

    model: str
    challenger: str
    champion: str | None
    made_at: str
    rows: Mapping[str, Any]
    seen: Mapping[str, Mapping[str, Any]]
    methods: Mapping[str, Any]
    judgements: tuple[Judgement, ...]

    def of_kind(self, *kinds: Kind) -> Iterator[Judgement]:
        """Judgements of some kinds, in order."""
        return (one for one in self.judgements if one.kind in kinds)

    @property
    def cells(self) -> tuple[Judgement, ...]:
        """The cells, scenario by scenario."""
        return tuple(self.of_kind("cell"))

    def to_json(self) -> str:
        """JSON text, read back by :meth:`from_json`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Read what :meth:`to_json` wrote.

        Raises:
            RegistryError: It is of another format.
        """
        content = json.loads(text)
        found = content.pop("format", 1)
        if found != FORMAT:
            raise registry.RegistryError(
                f"an evaluation of format {found}; this code reads format {FORMAT}: run jobs/evaluate.py again"
            )
        content["judgements"] = tuple(Judgement.from_json(one) for one in content["judgements"])
        return cls(**content)

    def metrics(self) -> dict[str, float]:
        """The challenger's defined metrics: ``test/<metric>/<scenario>/<task>``, means ``test/<metric>_mean``."""
        named: dict[str, float] = {}
        for one in self.judgements:
            for metric, measure in one.measures.get(CHALLENGER, {}).items():
                if measure.value is None:
                    continue
                if one.kind == "overall":
                    named[metric_name("test", f"{metric}_mean")] = measure.value
                elif one.kind == "scenario":
                    named[metric_name("test", f"{metric}_mean", one.scenario)] = measure.value
                else:
                    named[metric_name("test", metric, one.scenario, one.task)] = measure.value
        return named


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
    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, 0) for name, value in evaluation.metrics().items()]
    for start in range(0, len(metrics), _METRICS_A_CALL):
        client.log_batch(version.run_id, metrics=metrics[start : start + _METRICS_A_CALL])
    client.log_text(version.run_id, evaluation.to_json(), _DOCUMENT.format(version=version.version))
    client.set_model_version_tag(version.name, version.version, VALIDATION_STATUS, status)
    client.set_model_version_tag(
        version.name, version.version, "evaluated_against", evaluation.champion or "none"
    )


def record_page(client: MlflowClient, version: registry.RegisteredVersion, html: str) -> None:
    """Write the page of a version's evaluation beside its document."""
    client.log_text(version.run_id, html, _PAGE.format(version=version.version))


def latest(client: MlflowClient, version: registry.RegisteredVersion) -> Evaluation:
    """The evaluation last recorded for a version.

    Raises:
        RegistryError: There is none, or it is of another format.
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
