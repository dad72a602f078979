"""Studies by their job: killed and started again, nothing finished is run anew; the truth stays with the judge."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from job_files import load_job
from job_runs import ROOT, run_job
from mlflow import MlflowClient
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from feature_eng.contract import load_contract
from feature_eng.encoder.spark import with_row_id
from feature_eng.sources.six_scenarios.process import Process
from feature_eng.sources.six_scenarios.truth import truth
from hinet_model.config import MlflowSettings
from hinet_model.studies.comparing import TestRows
from hinet_model.studies.recording import TRIAL_TAG, StudyRun

pytestmark = pytest.mark.spark

TINY = {
    "embedding_dim": 4, "sub_experts": 1, "sub_expert_dims": [8], "shared_experts": 1, "specific_experts": 1,
    "expert_dims": [8], "tower_dims": [4], "scenario_embedding_dim": 4,
}  # fmt: skip


def write_study(folder: Path, mlflow_store: str) -> Path:
    """A study of two tiny HiNets, of which ``--quick`` takes an epoch each."""
    config, study = folder / "run.yml", folder / "tiny.yml"
    mlflow = {"tracking_uri": mlflow_store, "artifact_location": str(folder / "artifacts")}
    config.write_text(yaml.safe_dump({"model": TINY, "mlflow": mlflow}))
    content = {
        "asks": "Does a test pass?",
        "data": {"contract": "conf/contracts/movielens.yml"},
        "config": str(config),
        "settings": {"training.batch_size": 4096},
        "variants": {"full": {}, "no gates": {"model.gates": False}, "left out": {"model.sub_experts": 3}},
        "reference": "full",
        "final": {"settings": {"training.epochs": 50}},
        "views": ["ranking", "attention", "cells"],
        "quick": {"settings": {"training.epochs": 1}, "variants": ["full", "no gates"], "seeds": [1]},
    }
    study.write_text(yaml.safe_dump(content, sort_keys=False))
    return study


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_where_it_was(
    movielens_warehouse: Path, mlflow_store: str, tmp_path: Path
) -> None:
    folder = tmp_path / "studies"
    options = ["--study", str(write_study(tmp_path, mlflow_store)), "--quick", "--folder", str(folder)]
    options += ["--warehouse", str(movielens_warehouse)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "jobs/study.py", *options], cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        while not list(folder.glob("trials/*.json")) and process.poll() is None:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    (first,) = folder.glob("trials/*.json")
    written = first.stat().st_mtime_ns
    said = run_job("study", *options)
    assert first.stat().st_mtime_ns == written
    assert len(list(folder.glob("trials/*.json"))) == 2
    page = (folder / "quick" / "tiny.md").read_text()
    assert str(folder / "quick" / "tiny.md") in said
    assert all(
        part in page for part in ("# Does a test pass?", "| full |", "| no gates |", "tiny-attention.svg")
    )
    assert "left out" not in page
    run_id = re.search(r"recorded  run (\w+)", said)
    assert run_id
    client = MlflowClient(mlflow_store)
    experiment = client.get_run(run_id[1]).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id[1]}'")
    assert sorted(child.data.params["variant"] for child in children) == ["full", "no gates"]
    assert all("test/auc/under_25/click" in child.data.metrics for child in children)


def test_a_trial_that_was_half_recorded_is_recorded_anew(mlflow_store: str) -> None:
    settings = MlflowSettings(tracking_uri=mlflow_store)
    study = StudyRun(settings, "half", "code")
    client = MlflowClient(mlflow_store)
    experiment = client.get_run(study.run_id).info.experiment_id
    tags = {"mlflow.parentRunId": study.run_id}
    whole = client.create_run(experiment, tags={**tags, TRIAL_TAG: "one"}).info.run_id
    client.set_terminated(whole)
    half = client.create_run(experiment, tags={**tags, TRIAL_TAG: "two"}).info.run_id
    again = StudyRun(settings, "half", "code")
    assert again.run_id == study.run_id
    assert again.children() == {"one": whole}
    assert client.get_run(half).info.lifecycle_stage == "deleted"


@pytest.fixture(scope="module")
def job() -> ModuleType:
    return load_job("study")


def test_test_rows_carry_their_own_truth_in_the_order_of_scores(spark: SparkSession, job: ModuleType) -> None:
    sizes = {"impressions": 300, "users": 40, "items": 30, "days": 2}
    contract = load_contract(
        ROOT / "conf" / "contracts" / "six_scenarios.yml",
        [f"source.six_scenarios.{name}={value}" for name, value in sizes.items()],
    )
    made = contract.source.six_scenarios
    assert made is not None
    shown = Process(spark, made, 2).impressions().select(
        "impression_id", F.col("user").alias("user_id"),
        F.concat(F.lit("s"), (F.col("scenario") + 1).cast("string")).alias("scenario"),
        (F.col("impression_id") % 2).alias("label__click"), F.lit(None).cast("int").alias("label__order"),
        F.when(F.col("impression_id") < 100, "train").otherwise("test").alias("split"),
    )  # fmt: skip
    examples = with_row_id(shown, contract)
    rows: TestRows = job.test_rows(spark, contract, examples)
    expected = examples.where("split = 'test'").join(truth(spark, made, 86_400.0, 2), "impression_id")
    wanted = expected.orderBy("row_id").toPandas()
    assert len(wanted) == 200
    assert rows.truth is not None
    assert rows.truth.tolist() == wanted[["click_prob", "order_prob"]].to_numpy().tolist()
    assert rows.labels[:, 0].tolist() == wanted["label__click"].tolist()
    assert set(rows.labels[:, 1]) == {-1.0}
    assert [contract.scenario_names[place] for place in rows.scenario] == wanted["scenario"].tolist()
    assert len(set(zip(rows.user, wanted["user_id"], strict=True))) == wanted["user_id"].nunique()
    assert job.planted(contract).tolist() == made.similarity.tolist()


def test_nothing_that_builds_trains_or_serves_can_reach_the_truth() -> None:
    """Only the judges import it, and what they import is no part of a training process."""
    name = "feature_eng.sources.six_scenarios.truth"
    importers = set()
    for package in ("foundation", "feature_eng", "hinet_model", "jobs"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module == name:
                    importers.add(path.relative_to(ROOT).as_posix())
                if isinstance(node, ast.Import | ast.ImportFrom):
                    assert name not in [alias.name for alias in node.names]
                    assert not (node.__dict__.get("module") == name.rpartition(".")[0]
                                and "truth" in [alias.name for alias in node.names])  # fmt: skip
    assert importers == {"jobs/study.py", "jobs/simulate_ab.py"}
