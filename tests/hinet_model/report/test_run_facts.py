"""What a run recorded comes back as facts; what it did not record is empty, and a run that is gone is no fault."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from hinet_model.lifecycle import registry
from hinet_model.report.run_facts import RunFacts, run_facts


@pytest.fixture(scope="module")
def client(mlflow_store: str) -> Any:
    return registry.connect(mlflow_store)


@pytest.fixture
def run_id(client: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("artifacts")
    experiment = client.create_experiment(uuid.uuid4().hex, artifact_location=folder.as_uri())
    return str(client.create_run(experiment).info.run_id)


def version(run_id: str) -> registry.RegisteredVersion:
    return registry.RegisteredVersion("small", "3", run_id, {"git_sha": "abc"})


def test_curves_costs_lineage_and_settings_are_those_of_the_run(client: Any, run_id: str) -> None:
    for step, auc in ((1, 0.6), (2, 0.7)):
        client.log_metric(run_id, "val/auc/young_/click", auc, timestamp=step, step=step)
        client.log_metric(run_id, "train/seconds", 10.0, timestamp=step, step=step)
        client.log_metric(run_id, "train/rows", 1000.0, timestamp=step, step=step)
    # The run went on from its first epoch: the second was measured again.
    client.log_metric(run_id, "val/auc/young_/click", 0.65, timestamp=3, step=2)
    client.log_metric(run_id, "worker/peak_memory_mib", 900.4)
    for rank, percent in ((0, 90.0), (1, 110.0)):
        client.log_metric(run_id, f"system/rank_{rank}/cpu_percent", percent)
    client.log_param(run_id, "training.epochs", "2")
    client.log_param(run_id, "loss_weight/young", "0.5")
    client.set_tag(run_id, "plan_hash", "p")
    client.log_text(run_id, '{"scenario_rows": {"train": [70], "test": [20]}}', "snapshot.json")
    found = run_facts(client, version(run_id), [("young<", "click"), ("young<", "like")])
    assert found.curves == {("young<", "click"): [(1.0, 0.6), (2.0, 0.65)]}
    assert found.loss == []
    costs = dict(found.costs)
    assert costs["training"].startswith("20 s")
    assert costs["rows a second"] == "100"
    assert costs["peak memory of a worker"] == "900 MiB"
    assert costs["CPU of a worker"].startswith("100 % on average")
    assert dict(found.lineage) == {"run": run_id, "git_sha": "abc", "plan_hash": "p"}
    assert found.settings == [("training.epochs", "2")]
    assert found.split_rows == {"train": [70], "test": [20]}


def test_a_run_that_recorded_nothing_has_no_facts(client: Any, run_id: str) -> None:
    found = run_facts(client, version(run_id), [("young", "click")])
    assert (found.curves, found.loss, list(found.costs), list(found.settings), found.split_rows) == (
        {},
        [],
        [],
        [],
        {},
    )


@pytest.mark.parametrize("gone", ["0" * 32, ""])
def test_a_run_that_is_gone_leaves_what_the_version_says(client: Any, gone: str) -> None:
    assert run_facts(client, version(gone), [("young", "click")]) == RunFacts(lineage=[("git_sha", "abc")])
