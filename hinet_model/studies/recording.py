"""Recording: a study in MLflow, one run with a child for each trial.

Studies do not need it: their files are the record. What MLflow does not take is said once, and the study goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from hinet_model.config import MlflowSettings
from hinet_model.lifecycle import registry
from hinet_model.objective.metrics import metric_name
from hinet_model.studies.trials import Trial

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

STUDY_TAG = "hinet.study"
TRIAL_TAG = "hinet.trial"
_PARENT_TAG = "mlflow.parentRunId"
_LONGEST = 500
_RECORDED = "FINISHED"
"""Status of a trial's run once all of it is written."""


def _recorded(trials: Iterable[Run]) -> dict[str, str]:
    """Key of each trial whose run is whole -> that run."""
    return {run.data.tags[TRIAL_TAG]: run.info.run_id for run in trials if run.info.status == _RECORDED}


class StudyRun:
    """One study in MLflow; a study that goes on goes on in the same run.

    Args:
        settings: Which store, and where artifacts go; the experiment is ``studies``.
        name: Of the study.
        identity: What it is a study of: code and data.

    Raises:
        RegistryError: The store cannot be opened.
    """

    def __init__(self, settings: MlflowSettings, name: str, identity: str) -> None:
        self._client: MlflowClient = registry.connect(settings.tracking_uri)
        self._experiment = self._experiment_of(settings)
        self._name, self._told = name, False
        known = f"{name}:{identity}"
        found = self._client.search_runs([self._experiment], f"tags.`{STUDY_TAG}` = '{known}'", max_results=1)
        if found:
            self.run_id: str = found[0].info.run_id
            self._client.update_run(self.run_id, status="RUNNING")
        else:
            run = self._client.create_run(self._experiment, run_name=name, tags={STUDY_TAG: known})
            self.run_id = run.info.run_id
        trials = self._trials()
        for child in trials:
            # Of a study that was killed as it wrote: the trial is recorded anew.
            if child.info.status != _RECORDED:
                self._client.delete_run(child.info.run_id)
        self._recorded = set(_recorded(trials))

    def add(self, trial: Trial, outcome: Mapping[str, Any]) -> None:
        """Record one trial as a child; one that is there already is left as it is."""
        self._try(lambda: self._add(trial, outcome))

    def finish(self, status: str, *files: Path) -> None:
        """End the run, with the pages that were made."""

        def end() -> None:
            for file in files:
                self._client.log_artifact(self.run_id, str(file))
            self._client.set_terminated(self.run_id, status)

        self._try(end)

    def children(self) -> dict[str, str]:
        """Key of each recorded trial -> its run."""
        return _recorded(self._trials())

    def _trials(self) -> list[Run]:
        query = f"tags.`{_PARENT_TAG}` = '{self.run_id}'"
        runs = self._client.search_runs([self._experiment], query, max_results=10_000)
        return [run for run in runs if TRIAL_TAG in run.data.tags]

    def _experiment_of(self, settings: MlflowSettings) -> str:
        found = self._client.get_experiment_by_name("studies")
        if found is not None:
            return str(found.experiment_id)
        location = settings.artifact_location
        if location is not None and "://" not in location:
            location = Path(location).resolve().as_uri()
        return str(self._client.create_experiment("studies", artifact_location=location))

    def _add(self, trial: Trial, outcome: Mapping[str, Any]) -> None:
        if trial.key in self._recorded:
            return
        name = f"{trial.variant}, {trial.candidate}, {trial.stage} {trial.seed}"
        tags = {_PARENT_TAG: self.run_id, TRIAL_TAG: trial.key, "git_sha": str(outcome["commit"])}
        run_id = self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id
        params = {
            "variant": trial.variant,
            "candidate": trial.candidate,
            "stage": trial.stage,
            "seed": str(trial.seed),
            **{f"set.{path}": value for path, _, value in (one.partition("=") for one in trial.overrides)},
        }
        now = int(time.time() * 1000)
        metrics = [
            Metric("val/auc_mean", value, now, epoch)
            for epoch, value in enumerate(outcome["validation"], start=1)
            if value is not None
        ]
        metrics += [
            Metric(metric_name("test", "auc", cell["scenario"], cell["task"]), cell["auc"], now, 0)
            for cell in outcome.get("test", [])
            if cell["auc"] is not None
        ]
        metrics += [
            Metric(name, float(outcome[name]), now, 0)
            for name in ("cpu_seconds", "peak_memory_mib", "dense_parameters")
        ]
        self._client.log_batch(
            run_id,
            metrics=metrics,
            params=[Param(key, value[:_LONGEST]) for key, value in params.items()],
            tags=[RunTag("study", self._name)],
        )
        self._client.set_terminated(run_id)
        self._recorded.add(trial.key)

    def _try(self, call: Any) -> None:
        try:
            call()
        except MlflowException as error:
            if not self._told:
                logger.warning("MLflow does not take what the study records: %s", error.message)
            self._told = True
