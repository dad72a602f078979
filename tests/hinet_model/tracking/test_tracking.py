"""What a run records arrives in MLflow, and an MLflow that dies costs the run nothing."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from model_folders import SNAPSHOT

from feature_eng.snapshot import SnapshotRef
from hinet_model.config import MlflowSettings
from hinet_model.lifecycle import registry
from hinet_model.objective.metrics import metric_name
from hinet_model.report import figures
from hinet_model.settings import RunSettings
from hinet_model.tracking.backlog import Backlog
from hinet_model.tracking.lineage import Lineage, git_state
from hinet_model.tracking.tracker import BACKLOG_FILE, Tracker, TrackingError, flatten, receiver_name


@pytest.fixture
def settings(mlflow_store: str, tmp_path: Path) -> MlflowSettings:
    return MlflowSettings(
        tracking_uri=mlflow_store,
        experiment=f"experiment_{uuid.uuid4().hex[:8]}",
        registered_model="unused",
        artifact_location=str(tmp_path / "artifacts"),
    )


@pytest.fixture
def tracker(settings: MlflowSettings, tmp_path: Path) -> Tracker:
    tracker = Tracker(settings, tmp_path / "run", retry_seconds=0.0)
    tracker.start_run()
    return tracker


def recorded(tracker: Tracker) -> Any:
    return registry.connect(tracker.settings.tracking_uri).get_run(tracker.run_id)


def artifact(tracker: Tracker, name: str) -> Path:
    path = Path(tracker.settings.artifact_location or "") / tracker.run_id / "artifacts" / name
    assert path.exists(), f"{name} was not recorded"
    return path


def test_settings_are_params_and_a_file(tracker: Tracker) -> None:
    document = RunSettings().model_dump(mode="json")
    tracker.log_settings(document)
    params = recorded(tracker).data.params
    assert params["training.epochs"] == str(document["training"]["epochs"])
    assert params["loss.scheme"] == "proportion"
    assert params["model.tower_dims"] == json.dumps(document["model"]["tower_dims"])
    assert yaml.safe_load(artifact(tracker, "config.yml").read_text()) == document


def test_a_long_setting_is_cut_in_the_param_and_whole_in_the_file(tracker: Tracker) -> None:
    tracker.log_settings({"a": {"long": "x" * 2000}})
    assert recorded(tracker).data.params["a.long"] == "x" * 500
    assert len(yaml.safe_load(artifact(tracker, "config.yml").read_text())["a"]["long"]) == 2000


def test_more_settings_than_one_call_takes_all_arrive(tracker: Tracker) -> None:
    tracker.log_settings({f"key{i}": i for i in range(250)})
    assert len(recorded(tracker).data.params) == 250


def test_the_lineage_is_in_the_tags(tracker: Tracker) -> None:
    lineage = Lineage.of(replace(SNAPSHOT, meaning="3"), plan_hash="p" * 8, world_size=2, seed=7)
    tracker.log_lineage(lineage)
    tags = recorded(tracker).data.tags
    expected = {
        "delta_table": "warehouse/movielens/training",
        "delta_version": "4",
        "table_id": "id-of-the-table",
        "contract_fingerprint": "cd" * 32,
        "encoder_digest": "ef" * 32,
        "meaning": "3",
        "plan_hash": "p" * 8,
        "world_size": "2",
        "seed": "7",
        "version.mlflow": mlflow.__version__,
    }
    assert expected.items() <= tags.items()
    assert {"git_sha", "git_dirty"} <= set(tags)


def test_the_snapshot_is_the_runs_data_set(tracker: Tracker) -> None:
    tracker.log_snapshot(SNAPSHOT)
    (dataset_input,) = recorded(tracker).inputs.dataset_inputs
    assert json.loads(dataset_input.dataset.source)["delta_table_version"] == 4
    assert SnapshotRef.from_json(artifact(tracker, "snapshot.json").read_text()) == SNAPSHOT


def test_loss_weights_are_params_metrics_and_a_file(tracker: Tracker) -> None:
    names, rows = ["young", "middle", "old"], SNAPSHOT.scenario_rows["train"]
    tracker.log_loss_weights("proportion", names, rows, (0.2, 0.6, 0.2), (1.0, 1.0, 1.0), {"click": 1.0})
    data = recorded(tracker).data
    assert data.params["loss_weight/middle"] == "0.6"
    assert data.metrics["loss_weight/old"] == 0.2
    document = json.loads(artifact(tracker, "loss_weights.json").read_text())
    assert document["scenarios"]["middle"] == {
        "rows": 60,
        "share": 0.6,
        "loss_weight": 0.6,
        "row_factor": 1.0,
    }


def test_metrics_are_recorded_by_step_and_undefined_ones_left_out(tracker: Tracker) -> None:
    name = metric_name("val", "auc", "young", "click")
    tracker.log_metrics({name: 0.7, "val/auc/old/click": None}, step=1)
    tracker.log_metrics({name: 0.8}, step=2)
    client = registry.connect(tracker.settings.tracking_uri)
    assert [(m.step, m.value) for m in client.get_metric_history(tracker.run_id, name)] == [
        (1, 0.7),
        (2, 0.8),
    ]
    assert "val/auc/old/click" not in recorded(tracker).data.metrics


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_metric_that_is_not_finite_is_refused_by_name(tracker: Tracker, value: float) -> None:
    with pytest.raises(TrackingError, match=r"step 3: train/loss"):
        tracker.log_metrics({"train/loss": value, "fine": 1.0}, step=3)
    assert "fine" not in recorded(tracker).data.metrics


def test_points_of_many_steps_arrive_each_at_its_own(tracker: Tracker) -> None:
    points = [("step/loss", 1.0 / step, step, 1000 + step) for step in range(1, 701)]
    tracker.log_points([*points, ("step/loss", float("nan"), 701, 2000)])
    client = registry.connect(tracker.settings.tracking_uri)
    history = client.get_metric_history(tracker.run_id, "step/loss")
    assert [(m.step, m.value, m.timestamp) for m in history] == [
        (step, value, when) for _, value, step, when in points
    ]


def test_a_model_that_cannot_be_registered_stops_the_job_before_it_trains(
    settings: MlflowSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: MlflowClient, *args: Any, **kwargs: Any) -> None:
        raise MlflowException("PERMISSION_DENIED: no write on models\nstack", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "set_registered_model_tag", denied)
    with pytest.raises(
        registry.RegistryError, match=r"registered_model: 'unused' cannot be written to: PERM.* models$"
    ):
        Tracker(settings, tmp_path / "run")


def test_metric_names_keep_to_what_mlflow_allows(tracker: Tracker) -> None:
    name = metric_name("val", "auc", "18/24 (young)", "größe")
    assert name == "val/auc/18_24 _young_/gr__e"
    tracker.log_metrics({name: 0.5}, step=0)
    assert recorded(tracker).data.metrics[name] == 0.5


def test_figures_are_recorded_as_images(tracker: Tracker) -> None:
    table = np.array([[0.0, 0.3, 0.7], [0.5, 0.0, 0.5], [0.9, 0.1, 0.0]])
    tracker.log_figure(figures.scenario_attention(table, ["a", "b", "c"]), "figures/scenario_attention.png")
    assert artifact(tracker, "figures/scenario_attention.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_has_ended_is_gone_on_with_and_one_under_way_is_not(
    tracker: Tracker, tmp_path: Path
) -> None:
    tracker.log_metrics({"train/loss": 1.0}, step=1)
    again = Tracker(tracker.settings, tmp_path / "run")
    with pytest.raises(registry.RegistryError, match="another process on this machine is at it"):
        Tracker(tracker.settings, tmp_path / "run").start_run(tracker.run_id)
    tracker.finish("FAILED")
    assert again.start_run(tracker.run_id) == tracker.run_id
    again.log_metrics({"train/loss": 0.5}, step=2)
    assert again.finish() == 0
    run = recorded(again)
    assert (run.data.metrics["train/loss"], run.info.status) == (0.5, "FINISHED")


def test_a_store_that_cannot_be_opened_stops_the_job_at_once(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"not a database" * 100)
    with pytest.raises(registry.RegistryError, match="does not answer"):
        Tracker(MlflowSettings(tracking_uri=f"sqlite:///{tmp_path}/broken.db"), tmp_path)


def test_a_store_that_breaks_in_mid_run_costs_nothing_and_gets_all_when_it_is_back(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    tracker = Tracker(
        MlflowSettings(tracking_uri=f"sqlite:///{database}", artifact_location=str(tmp_path / "artifacts")),
        tmp_path / "run",
        retry_seconds=0.0,
    )
    tracker.start_run()
    tracker.log_metrics({"train/loss": 3.0}, step=1)
    whole = database.read_bytes()
    database.write_bytes(b"broken" * (len(whole) // 6))
    tracker.log_metrics({"train/loss": 2.0}, step=2)
    tracker.log_settings({"training": {"epochs": 1}})
    tracker.log_text("hello", "note.txt")
    assert tracker.log_model(tmp_path / "no_model_needed", lineage()) is None
    assert tracker.finish("FAILED") == 6
    backlog = tmp_path / "run" / tracker.run_id / BACKLOG_FILE
    header, *lines = (json.loads(line) for line in backlog.read_text().splitlines())
    assert header == {"receiver": f"sqlite:///{database}"}
    waiting = [line["call"] for line in lines]
    assert waiting == ["metrics", "params", "artifact", "artifact", "model", "status"]

    database.write_bytes(whole)
    tracker.log_metrics({"train/loss": 1.0}, step=3)
    assert not backlog.exists()
    run = recorded(tracker)
    assert run.info.status == "FAILED"
    assert run.data.params["training.epochs"] == "1"
    history = registry.connect(tracker.settings.tracking_uri).get_metric_history(tracker.run_id, "train/loss")
    assert [metric.value for metric in history] == [3.0, 2.0, 1.0]


def left_behind(tracker: Tracker, *calls: tuple[str, dict[str, Any]]) -> Path:
    """A backlog as a run leaves it that could not reach MLflow."""
    assert tracker.finish("FAILED") == 0
    path = tracker.folder / tracker.run_id / BACKLOG_FILE

    def down(name: str, arguments: dict[str, Any]) -> None:
        raise ConnectionError("down")

    backlog = Backlog(path, receiver_name(tracker.settings.tracking_uri), down)
    for name, arguments in calls:
        backlog.call(name, run_id=tracker.run_id, **arguments)
    return path


def metric(value: float) -> tuple[str, dict[str, Any]]:
    return "metrics", {"metrics": {"train/loss": value}, "step": 9, "timestamp": 1}


def test_what_a_run_left_is_delivered_by_a_later_one(tracker: Tracker, tmp_path: Path) -> None:
    path = left_behind(tracker, metric(0.25))
    later = Tracker(tracker.settings, tmp_path / "run")
    assert later.start_run() != tracker.run_id
    assert not path.exists()
    assert recorded(tracker).data.metrics["train/loss"] == 0.25
    assert recorded(later).data.metrics == {}


@pytest.mark.parametrize("gone", ["deleted", "forgotten"])
def test_records_of_a_run_that_is_no_more_keep_nobody_waiting(
    tracker: Tracker, tmp_path: Path, gone: str
) -> None:
    path = left_behind(tracker, metric(0.25), ("tags", {"tags": {"a": "b"}}))
    if gone == "deleted":
        registry.connect(tracker.settings.tracking_uri).delete_run(tracker.run_id)
    else:
        path.write_text(path.read_text().replace(tracker.run_id, "0" * 32))
    later = Tracker(tracker.settings, tmp_path / "run")
    later.start_run()
    assert not path.exists()
    later.log_metrics({"train/loss": 1.0}, step=1)
    assert later.finish() == 0
    assert recorded(later).data.metrics == {"train/loss": 1.0}


def test_what_waits_for_another_store_stays(tracker: Tracker, tmp_path: Path) -> None:
    path = left_behind(tracker, metric(0.25))
    path.write_text(path.read_text().replace("sqlite:///", "sqlite:////elsewhere"))
    before = path.read_text()
    later = Tracker(tracker.settings, tmp_path / "run")
    later.start_run()
    assert path.read_text() == before
    assert recorded(tracker).data.metrics == {}


def test_a_model_that_waits_is_registered_under_the_name_it_was_meant_for(tracker: Tracker) -> None:
    assert tracker.finish() == 0
    tracker._deliver = lambda name, arguments: calls.append((name, arguments))  # type: ignore[method-assign]
    calls: list[Any] = []
    tracker.start_run(tracker.run_id)
    tracker.log_model(tracker.folder / "model", lineage())
    assert [(name, arguments["name"]) for name, arguments in calls] == [("model", "unused")]


def test_one_store_has_one_name_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert receiver_name("sqlite:///a/m.db") == f"sqlite:///{tmp_path}/a/m.db"
    assert receiver_name("https://u:one@host") == receiver_name("https://u:two@host") == "https://***@host"


def test_credentials_reach_neither_params_tags_data_sets_nor_artifacts(tracker: Tracker) -> None:
    secret = "hunter2"
    table = f"s3://key:{secret}@bucket/training"
    settings = RunSettings().model_dump(mode="json")
    settings["mlflow"]["tracking_uri"] = f"postgresql://mlflow:{secret}@db/mlflow"
    settings["mlflow"]["artifact_location"] = f"https://a.blob.core.windows.net/c?sig={secret}"
    settings["data"]["table"] = table
    settings["checkpoint"]["folder"] = f"s3://b/c?X-Amz-Signature={secret}"
    snapshot = replace(SNAPSHOT, table=table)
    of_it = Lineage.of(snapshot, plan_hash="p", world_size=1, seed=0)
    tracker.log_settings(settings)
    tracker.log_lineage(of_it)
    tracker.log_snapshot(snapshot)
    tracker.log_tags({"from": table})
    run = recorded(tracker)
    assert run.data.params["data.table"] == "s3://***@bucket/training"
    assert run.data.tags["delta_table"] == "s3://***@bucket/training"
    assert secret not in json.dumps(run.to_dictionary(), default=str)
    files = [path for path in Path(tracker.settings.artifact_location or "").rglob("*") if path.is_file()]
    assert {"config.yml", "snapshot.json"} <= {path.name for path in files}
    local = [path for path in tracker.folder.rglob("*") if path.is_file()]
    for path in files + local:
        assert secret.encode() not in path.read_bytes(), path


def test_credentials_do_not_reach_the_backlog(tracker: Tracker, tmp_path: Path) -> None:
    def down(name: str, arguments: dict[str, Any]) -> None:
        raise ConnectionError("down")

    tracker._backlog = Backlog(tmp_path / "b.jsonl", receiver_name("https://u:hunter2@host"), down)
    tracker.log_tags({"table": "s3://k:hunter2@b/t"})
    text = (tmp_path / "b.jsonl").read_text()
    assert "s3://***@b/t" in text
    assert "hunter2" not in text


def lineage() -> Lineage:
    return Lineage.of(SNAPSHOT, plan_hash="p", world_size=1, seed=0)


@pytest.mark.parametrize(
    ("nested", "flat"),
    [
        ({"a": {"b": 1, "c": {"d": None}}}, {"a.b": "1", "a.c.d": "null"}),
        ({"a": [1, 2], "b": {}}, {"a": "[1, 2]", "b": "{}"}),
        ({"a": "text", "b": True}, {"a": "text", "b": "true"}),
    ],
)
def test_nested_settings_become_dotted_names(nested: Mapping[str, Any], flat: Mapping[str, str]) -> None:
    assert flatten(nested) == flat


def test_the_git_state_names_commit_and_changes(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments],
            check=True,
            capture_output=True,
            env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull},
        )

    assert git_state(tmp_path) == ("unknown", "unknown")
    git("init", "-q")
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-q", "-m", "first")
    commit, dirty = git_state(tmp_path)
    assert (len(commit), dirty) == (40, "false")
    (tmp_path / "code.py").write_text("2")
    assert git_state(tmp_path) == (commit, "true")


def test_an_experiment_whose_artifacts_are_elsewhere_says_so(
    settings: MlflowSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("one", "two"):
        Tracker(settings, tmp_path / folder)
    assert "keeps its artifacts" not in caplog.text
    Tracker(settings.model_copy(update={"artifact_location": f"{tmp_path}/other"}), tmp_path / "three")
    assert f"keeps its artifacts at file://{tmp_path}/artifacts" in caplog.text


def test_a_run_that_goes_on_knows_the_version_that_its_weights_began_with(
    settings: MlflowSettings, tmp_path: Path, tracker: Tracker
) -> None:
    assert tracker.began_with(None) is None
    assert tracker.began_with("models:/small/3") == "models:/small/3"
    tracker.finish("FAILED")
    again = Tracker(settings, tmp_path / "run", retry_seconds=0.0)
    again.start_run(tracker.run_id)
    assert again.began_with(None) == "models:/small/3"
