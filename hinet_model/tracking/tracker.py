"""Tracking: what a run records in MLflow. The driver alone talks to it.

Opening the store is strict: a wrong URI ends the job before a GPU is paid for. From then on nothing here
can end the run: a call that fails is kept in ``tracking_backlog.jsonl`` in the run's own folder and delivered
when MLflow answers again (`hinet_model.tracking.backlog`), by this run or by a later one.

Whatever is recorded is recorded without the credentials that a URI may carry (`foundation.redaction`).
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from matplotlib.figure import Figure
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from feature_eng.snapshot import SnapshotRef
from foundation import stores
from foundation.redaction import redact, redacted
from foundation.settings import UserError, flatten
from hinet_model.config import MlflowSettings
from hinet_model.lifecycle import publishing, registry
from hinet_model.lifecycle.ancestry import BEGAN_WITH
from hinet_model.objective.metrics import metric_name
from hinet_model.tracking.backlog import Backlog, RefusedError, claim, receiver_of
from hinet_model.tracking.lineage import Lineage

logger = logging.getLogger(__name__)

BACKLOG_FILE = "tracking_backlog.jsonl"
_LONGEST_PARAM = 500
_METRICS_A_CALL = 500
_PARAMS_A_CALL = 90
_NEVER = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")
"""What MLflow says of a call that it will never take: of a run that was deleted since, for one."""


Point = tuple[str, float, int, int]
"""A metric's name, value, step, and time in milliseconds since 1970."""


class TrackingError(ValueError):
    """A value that must not be recorded."""


class Tracker:
    """Records one run.

    Args:
        settings: Section ``mlflow`` of the run's settings.
        folder: Local folder of all runs, each with a folder of its own (its id) for artifacts, which are written
            there first, and for the backlog. What an earlier run left for this MLflow is delivered too.
        retry_seconds: Pause between two attempts to reach an MLflow that is down.

    Raises:
        RegistryError: The store cannot be opened, or the model could not be registered there.
        UserError: The folder cannot be written to.
    """

    def __init__(self, settings: MlflowSettings, folder: Path, retry_seconds: float = 60.0) -> None:
        # MLflow's own defaults would hold the driver for minutes at each call while a server is down.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self.settings = settings
        self.folder = folder
        self.run_id = ""
        self.version: registry.RegisteredVersion | None = None
        _check_folder(folder)
        self._client = registry.connect(settings.tracking_uri)
        self._experiment_id = self._experiment()
        registry.prepare(self._client, settings.registered_model)
        self._receiver = receiver_name(settings.tracking_uri)
        self._retry_seconds = retry_seconds
        self._backlog: Backlog | None = None
        self._claim: int | None = None

    def _experiment(self) -> str:
        """Id of the experiment, made with the configured artifact location if it is new."""
        name, location = self.settings.experiment, self.settings.artifact_location
        if location is not None and location.startswith(("s3:", "s3a:")):
            location = stores.normalised(location)  # MLflow knows S3 by one name
        elif location is not None and not stores.has_scheme(location):
            if registry.on_databricks(self.settings.tracking_uri):
                raise registry.RegistryError(
                    f"mlflow.artifact_location: '{location}' is a folder of this machine; expected null, or a URI "
                    "such as dbfs:/Volumes/…, where mlflow.tracking_uri is databricks"
                )
            Path(location).mkdir(parents=True, exist_ok=True)
            location = Path(location).resolve().as_uri()
        try:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                return str(self._client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            # Another driver may have made it since we looked.
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise registry.RegistryError(f"mlflow.experiment: '{name}': {error.message}") from error
        if found.lifecycle_stage != "active":
            raise registry.RegistryError(
                f"mlflow.experiment: '{name}' is deleted; restore it or take another name"
            )
        if location is not None and found.artifact_location.rstrip("/") != location.rstrip("/"):
            logger.warning(
                "experiment '%s' keeps its artifacts at %s, as it was made; mlflow.artifact_location %s would take "
                "another mlflow.experiment",
                name,
                redact(found.artifact_location),
                redact(location),
            )
        return str(found.experiment_id)

    def start_run(self, run_id: str | None = None) -> str:
        """Start a run, or go on with one when training resumes.

        Returns:
            The run's id.

        Raises:
            RegistryError: MLflow does not take it, or another process is at it.
        """
        if run_id is not None:
            self._claim_run(run_id)
        try:
            if run_id is None:
                run = self._client.create_run(self._experiment_id, run_name=self.settings.run_name)
                self.run_id = run.info.run_id
            else:
                self._client.update_run(run_id, status="RUNNING")
                self.run_id = run_id
        except MlflowException as error:
            raise registry.RegistryError(
                f"MLflow cannot start run {run_id or '(new)'}: {error.message}"
            ) from error
        if self._claim is None:
            self._claim_run(self.run_id)
        path = self.folder / self.run_id / BACKLOG_FILE
        self._backlog = Backlog(path, self._receiver, self._deliver, self._retry_seconds)
        self._deliver_what_is_left()
        return self.run_id

    def began_with(self, version: str | None) -> str | None:
        """Keep, or for a run that goes on find, the version that its weights began with."""
        try:
            if version is None:
                tags: Mapping[str, str] = self._client.get_run(self.run_id).data.tags
                return tags.get(BEGAN_WITH)
            self._client.set_tag(self.run_id, BEGAN_WITH, version)
        except MlflowException as error:
            raise registry.RegistryError(f"run {self.run_id}: {error.message}") from error
        return version

    def _claim_run(self, run_id: str) -> None:
        """Two processes that went on with one run would write each other's checkpoints and records."""
        own = self.folder / run_id
        own.mkdir(parents=True, exist_ok=True)
        self._claim = claim(own)
        if self._claim is None:
            raise registry.RegistryError(
                f"run {run_id}: another process on this machine is at it ({own} is locked); expected a run that has "
                "ended: wait for it, or end it"
            )

    def _deliver_what_is_left(self) -> None:
        """Deliver what earlier runs left for this MLflow, unless they are still at it."""
        for path in sorted(self.folder.glob(f"*/{BACKLOG_FILE}")):
            if path.parent.name == self.run_id or receiver_of(path) != self._receiver:
                continue
            held = claim(path.parent)
            if held is None:
                continue
            left = Backlog(path, self._receiver, self._deliver)
            logger.info("delivering %d records that run %s left", len(left), path.parent.name)
            delivered = left.flush()
            os.close(held)
            if not delivered:
                return

    # -- what a run records; none of these raises for an MLflow that is down --------------------------

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Record the whole configuration: params ``a.b.c`` and the artifact ``config.yml``.

        A param is cut at 500 characters; the artifact holds all of it.
        """
        shown = redacted(settings)
        self._call("params", params={k: v[:_LONGEST_PARAM] for k, v in flatten(shown).items()})
        self.log_text(yaml.safe_dump(json.loads(json.dumps(shown)), sort_keys=False), "config.yml")

    def log_lineage(self, lineage: Lineage) -> None:
        """Record where data and code come from, as tags of the run."""
        self._call("tags", tags=lineage.run_tags())

    def log_snapshot(self, snapshot: SnapshotRef) -> None:
        """Record the pinned Delta version: as the run's data set, and whole as ``snapshot.json``."""
        self._call(
            "dataset",
            name=snapshot.contract_name,
            digest=snapshot.schema_hash[:12],
            source={
                "path": snapshot.table,
                "delta_table_version": snapshot.version,
                "delta_table_id": snapshot.table_id,
            },
            profile={"rows_per_scenario": {k: list(v) for k, v in snapshot.scenario_rows.items()}},
        )
        self.log_text(snapshot.to_json(), "snapshot.json")

    def log_loss_weights(
        self,
        scheme: str,
        scenario_names: Sequence[str],
        scenario_rows: Sequence[int],
        loss_weights: Sequence[float],
        row_factors: Sequence[float],
        task_weights: Mapping[str, float],
    ) -> None:
        """Record how the loss weighs scenarios and tasks.

        Params and metrics ``loss_weight/<scenario>`` hold the weight ``alpha_i``; the artifact
        ``loss_weights.json`` also the rows, their shares ``p_i``, the factors per row and the task weights.

        Args:
            scheme: ``proportion`` or ``uniform``.
            scenario_names: In contract order.
            scenario_rows: Training rows of each scenario.
            loss_weights: ``alpha_i`` of each scenario; with ``proportion`` its share of the training rows.
            row_factors: What one row's loss is multiplied by, ``alpha_i / p_i``.
            task_weights: ``beta_j`` by task name.
        """
        total = sum(scenario_rows)
        table = {
            name: {"rows": rows, "share": rows / total, "loss_weight": weight, "row_factor": factor}
            for name, rows, weight, factor in zip(
                scenario_names, scenario_rows, loss_weights, row_factors, strict=True
            )
        }
        named = {metric_name("loss_weight", name): float(row["loss_weight"]) for name, row in table.items()}
        self._call("params", params={name: repr(weight) for name, weight in named.items()})
        self.log_metrics(named, step=0)
        document = {"scheme": scheme, "scenarios": table, "tasks": dict(task_weights)}
        self.log_text(json.dumps(document, indent=1), "loss_weights.json")

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Record metrics at a step; ``None`` means "not defined" (a one-class AUC) and is left out.

        Raises:
            TrackingError: A value is NaN or infinite; MLflow would store infinity as 1.8e308.
        """
        values = {name: float(value) for name, value in metrics.items() if value is not None}
        wrong = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            raise TrackingError(f"not finite at step {step}: {', '.join(sorted(wrong))}")
        if values:
            self._call("metrics", metrics=values, step=step, timestamp=int(time.time() * 1000))

    def log_points(self, points: Sequence[Point]) -> None:
        """Record many values at once, each with its own step and time; those that are not finite are left out."""
        finite = [list(point) for point in points if math.isfinite(point[1])]
        if finite:
            self._call("points", points=finite)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._call("tags", tags=dict(tags))

    def log_figure(self, figure: Figure, artifact: str) -> None:
        """Record a figure, say ``figures/loss.png``."""
        path = self._local(artifact)
        figure.savefig(path)
        self._artifact(path, artifact)

    def log_text(self, text: str, artifact: str) -> None:
        """Record a text file, say ``config.yml``."""
        path = self._local(artifact)
        path.write_text(redact(text), encoding="utf-8")
        self._artifact(path, artifact)

    def log_model(
        self, model_folder: Path, lineage: Lineage, card: str = "", tags: Mapping[str, str] | None = None
    ) -> registry.RegisteredVersion | None:
        """Record the model, register it as a new version and point the alias ``challenger`` at it.

        Args:
            model_folder: Folder written by `hinet_model.serving.scorer.save_model_folder`.
            lineage: Goes into the version's tags, with ``run_id`` and ``validation_status: pending``.
            card: The version's description, in Markdown.
            tags: More tags of the version.

        Returns:
            The new version; ``None`` if MLflow is down: the model then waits in its folder, and the
            backlog registers it when MLflow answers.
        """
        own = {"run_id": self.run_id, "validation_status": "pending"}
        self._call(
            "model",
            folder=str(model_folder.resolve()),
            name=self.settings.registered_model,
            tags={**(tags or {}), **lineage.version_tags(), **own},
            card=card,
        )
        return self.version

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> int:
        """End the run and try once more to deliver what waits.

        Returns:
            How many calls could not be delivered; they stay in the backlog file.
        """
        self._call("status", status=status)
        assert self._backlog is not None
        if not self._backlog.flush():
            logger.warning("%d records did not reach MLflow: %s", len(self._backlog), self._backlog.path)
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None
        return len(self._backlog)

    # -- delivery ------------------------------------------------------------------------------------

    def _call(self, name: str, /, **arguments: Any) -> None:
        assert self._backlog is not None, "start_run comes first"
        self._backlog.call(name, run_id=self.run_id, **redacted(arguments))

    def _local(self, artifact: str) -> Path:
        """Where an artifact is kept on this machine, its folder made."""
        path = self.folder / self.run_id / "artifacts" / artifact
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _artifact(self, path: Path, artifact: str) -> None:
        self._call("artifact", path=str(path.resolve()), folder=str(Path(artifact).parent))

    def _deliver(self, name: str, arguments: dict[str, Any]) -> None:
        """Do one call; called by the backlog."""
        try:
            getattr(self, f"_send_{name}")(**arguments)
        except registry.RegistryError:
            raise
        except UserError as error:  # a model folder that is gone or damaged
            raise RefusedError(str(error)) from error
        except MlflowException as error:
            if error.error_code in _NEVER:
                raise RefusedError(error.message) from error
            raise

    def _send_params(self, run_id: str, params: dict[str, str]) -> None:
        entries = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(entries), _PARAMS_A_CALL):
            self._client.log_batch(run_id, params=entries[start : start + _PARAMS_A_CALL])

    def _send_tags(self, run_id: str, tags: dict[str, str]) -> None:
        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _send_metrics(self, run_id: str, metrics: dict[str, float], step: int, timestamp: int) -> None:
        entries = [Metric(name, value, timestamp, step) for name, value in metrics.items()]
        for start in range(0, len(entries), _METRICS_A_CALL):
            self._client.log_batch(run_id, metrics=entries[start : start + _METRICS_A_CALL])

    def _send_points(self, run_id: str, points: list[Point]) -> None:
        entries = [Metric(name, value, timestamp, step) for name, value, step, timestamp in points]
        for start in range(0, len(entries), _METRICS_A_CALL):
            self._client.log_batch(run_id, metrics=entries[start : start + _METRICS_A_CALL])

    def _send_artifact(self, run_id: str, path: str, folder: str) -> None:
        if not Path(path).exists():
            raise RefusedError(f"{path} is gone")
        self._client.log_artifact(run_id, path, None if folder == "." else folder)

    def _send_dataset(
        self, run_id: str, name: str, digest: str, source: dict[str, Any], profile: dict[str, Any]
    ) -> None:
        dataset = Dataset(
            name=name,
            digest=digest,
            source_type="delta_table",
            source=json.dumps(source),
            profile=json.dumps(profile),
        )
        tags = [InputTag("mlflow.data.context", "training")]
        self._client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags)])

    def _send_model(self, run_id: str, folder: str, name: str, tags: dict[str, str], card: str) -> None:
        version = publishing.register(self._client, name, run_id, Path(folder), tags, card)
        if run_id == self.run_id:
            self.version = version

    def _send_status(self, run_id: str, status: str) -> None:
        self._client.set_terminated(run_id, status)


def _check_folder(folder: Path) -> None:
    """Refuse a folder that takes no files, before there is a run that would be left open."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"checkpoint.scratch, or checkpoint.folder: cannot write to {folder}: {error}"
        ) from error


def receiver_name(tracking_uri: str) -> str:
    """One name for one MLflow, wherever the process stands and whatever credentials it has."""
    path = registry.sqlite_path(tracking_uri)
    return redact(tracking_uri) if path is None else f"sqlite:///{path.absolute()}"
