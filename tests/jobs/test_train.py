"""jobs/train.py on MovieLens-100K by spark-submit: real Delta, Petastorm, two Horovod workers, MLflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from hinet_model.serving.scorer import Scorer, golden_rows

pytestmark = [pytest.mark.spark, pytest.mark.distributed, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SCENARIOS, TASKS = ("under_25", "from_25_to_34", "from_35"), ("click", "like")
TRAIN_ROWS = (23_284, 28_729, 27_990)


def submit(config: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of the job by spark-submit, which passes both streams on as one."""
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYSPARK_PYTHON", None)
    command = [str(binaries / "spark-submit"), "--properties-file", "conf/spark/local.conf", "jobs/train.py"]
    done = subprocess.run(
        [*command, "--config", str(config), *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def run(config: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of the job by plain Python, which saves the start of a Java process."""
    command = [sys.executable, "jobs/train.py", "--config", str(config), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def config(movielens_warehouse: Path, mlflow_store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped settings, moved into a folder of the test."""
    folder = tmp_path_factory.mktemp("train")
    settings = yaml.safe_load((ROOT / "conf" / "train" / "movielens.yml").read_text())
    settings["data"]["table"] = str(movielens_warehouse / "movielens" / "training")
    settings["checkpoint"]["folder"] = str(folder / "checkpoints")
    settings["mlflow"] |= {
        "tracking_uri": mlflow_store,
        "experiment": "train-job",
        "registered_model": "train-job",
        "artifact_location": str(folder / "artifacts"),
    }
    path = folder / "train.yml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def trained(config: Path, mlflow_store: str) -> tuple[str, str, MlflowClient]:
    """Output of a job of one epoch, id of its run, and a client of its store."""
    code, output = submit(config, "--set", "training.epochs=1")
    assert code == 0, output[-4000:]
    client = MlflowClient(mlflow_store)
    version = client.get_model_version_by_alias("train-job", "challenger")
    return output, version.run_id, client


def test_it_shows_progress_and_ends_with_a_table(trained: tuple[str, str, MlflowClient]) -> None:
    output, run_id, _ = trained
    assert "epoch 1/1  step 79/79" in output
    assert "rows/s" in output
    assert " left" in output
    assert "waited for data" in output
    assert "INFO mlflow" not in output
    for scenario in SCENARIOS:
        assert sum(line.split()[:1] == [scenario] for line in output.splitlines()) == len(TASKS)
    assert f"run       {run_id}" in output
    assert "alias challenger" in output


def test_mlflow_holds_the_dataset_proportions_as_loss_weights(trained: tuple[str, str, MlflowClient]) -> None:
    _, run_id, client = trained
    run = client.get_run(run_id)
    for scenario, rows in zip(SCENARIOS, TRAIN_ROWS, strict=True):
        share = rows / sum(TRAIN_ROWS)
        assert run.data.metrics[f"loss_weight/{scenario}"] == pytest.approx(share, abs=1e-12)
        assert float(run.data.params[f"loss_weight/{scenario}"]) == pytest.approx(share, abs=1e-12)
    document = json.loads(Path(client.download_artifacts(run_id, "loss_weights.json")).read_text())
    assert document["scheme"] == "proportion"
    assert [cell["row_factor"] for cell in document["scenarios"].values()] == [1.0, 1.0, 1.0]


def test_mlflow_holds_configuration_lineage_metrics_and_figures(
    trained: tuple[str, str, MlflowClient], movielens_warehouse: Path
) -> None:
    _, run_id, client = trained
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.epochs"] == "1"
    tags = run.data.tags
    assert tags["delta_table"] == str(movielens_warehouse / "movielens" / "training")
    assert tags["delta_version"].isdigit()
    assert len(tags["contract_fingerprint"]) == len(tags["plan_hash"]) == 64
    assert tags["world_size"] == "2"
    assert tags["version.torch"]
    for scenario in SCENARIOS:
        for task in TASKS:
            assert 0.5 < run.data.metrics[f"val/auc/{scenario}/{task}"] < 1
            assert 0 < run.data.metrics[f"val/log_loss/{scenario}/{task}"] < 1
    assert run.data.metrics["train/rows"] == sum(TRAIN_ROWS)
    assert 0 <= run.data.metrics["train/data_wait_share"] < 1
    assert run.data.metrics["worker/peak_memory_mib"] > 100
    figures = {item.path for item in client.list_artifacts(run_id, "figures")}
    assert figures == {
        "figures/validation_auc.png",
        "figures/train_loss.png",
        "figures/scenario_attention.png",
    }


def test_the_registered_model_scores_its_golden_rows(
    trained: tuple[str, str, MlflowClient], config: Path
) -> None:
    _, run_id, _ = trained
    folder = config.parent / "checkpoints" / run_id / "model"
    rows = golden_rows(folder)
    probs = Scorer.load(folder).score(rows)
    assert probs.shape == (rows.num_rows, 2)
    assert ((probs > 0) & (probs < 1)).all()


def test_resume_goes_on_with_the_same_run(trained: tuple[str, str, MlflowClient], config: Path) -> None:
    _, run_id, client = trained
    code, output = submit(config, "--set", "training.epochs=2", "--resume", run_id)
    assert code == 0, output[-4000:]
    assert "epoch 1/2" not in output
    assert "epoch 2/2 done" in output
    assert [point.step for point in client.get_metric_history(run_id, "train/loss")] == [1, 2]
    assert str(client.get_model_version_by_alias("train-job", "challenger").version) == "2"


def test_settings_that_a_run_did_not_begin_with_are_named_before_anything_starts(
    trained: tuple[str, str, MlflowClient], config: Path
) -> None:
    code, output = run(
        config, "--resume", trained[1], "--set", "model.embedding_dim=4", "--set", "training.seed=9"
    )
    assert code == 2, output[-4000:]
    assert "model.embedding_dim: is 4, the run began with 16" in output
    assert "training.seed: is 9, the run began with 0" in output
    assert "starting 2 workers" not in output
    assert "Traceback" not in output


def test_a_misspelt_setting_is_refused_by_name_with_the_right_one(config: Path) -> None:
    code, output = submit(config, "--set", "training.epoch=1")
    assert code == 2
    assert "did you mean 'training.epochs'" in output
    assert "Traceback" not in output


def test_a_version_that_does_not_exist_is_refused(config: Path) -> None:
    code, output = run(config, "--set", "data.version=999")
    assert code == 2
    assert "no version 999" in output
