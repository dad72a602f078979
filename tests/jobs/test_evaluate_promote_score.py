"""From a registered version to a champion's scores: the jobs, on a small log, with real Spark and MLflow."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from aged_tables import DAY, aged, vacuum
from job_files import load_job
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.small_flow import SCENARIOS, TASKS, write_contract, write_log, write_settings
from feature_eng import delta
from feature_eng.contract import load_contract
from feature_eng.encoder import arrow
from feature_eng.encoder.state import EncoderState
from feature_eng.golden import golden_rows
from feature_eng.meaning import MEANING
from feature_eng.snapshot import SnapshotRef
from foundation.settings import UserError, load_settings
from hinet_model.lifecycle import evaluation, registry
from hinet_model.lifecycle.audit import Audit, Record
from hinet_model.lifecycle.calibrating import calibrate
from hinet_model.models.build import build_model
from hinet_model.models.features import build_layout
from hinet_model.serving.calibration import Calibration, Method, Platt
from hinet_model.serving.scorer import GOLDEN_FILE, Scorer, save_model_folder
from hinet_model.serving.scorer import golden_rows as rows_of
from hinet_model.settings import RunSettings
from hinet_model.tracking.lineage import Lineage
from hinet_model.tracking.tracker import Tracker

pytestmark = [pytest.mark.spark, pytest.mark.slow]

LET_THROUGH = ("--rule", "margin=1", "--rule", "floors.auc=0", "--rule", "calibration.pcoc=null")
JOBS = Path(__file__).parents[2] / "jobs"


@dataclass
class Workshop:
    """A built small log, and a registered model of its own to play with."""

    folder: Path
    config: Path
    settings: RunSettings
    snapshot: SnapshotRef
    monkeypatch: pytest.MonkeyPatch

    def run(self, job: str, *arguments: str) -> int:
        """Run a job's main in this process."""
        self.monkeypatch.setattr(sys, "argv", [f"{job}.py", "--config", str(self.config), *arguments])
        return int(load_job(job).main() or 0)

    def client(self) -> Any:
        return registry.connect(self.settings.mlflow.tracking_uri)

    def version(self, alias: str) -> registry.RegisteredVersion | None:
        return registry.find(self.client(), self.settings.mlflow.registered_model, alias)

    def register(
        self, spark: SparkSession, steps: int, seed: int = 0, *, turned: tuple[str, str] | None = None,
        calibration: Method | None = None,
    ) -> registry.RegisteredVersion:  # fmt: skip
        """Train for some steps in plain torch and register as challenger; no steps make a bad model.

        Args:
            spark: The session.
            steps: Steps of Adam on all training rows at once.
            seed: Of the weights.
            turned: Scenario and task whose probabilities are turned round; all other cells stay as they are.
            calibration: Fitted on the validation rows.
        """
        state = EncoderState.load(self.snapshot.encoder_path)
        layout = build_layout(self.settings.model, state.model_schema())
        model = build_model(self.settings.model, layout, seed=seed)
        examples = delta.read(spark, self.folder / "warehouse" / "small" / "examples").where(
            "split = 'train'"
        )
        batch, _ = layout.to_batch(arrow.encode(examples.toArrow(), state, labels=True))
        optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(steps):
            optimiser.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(model(batch), batch.labels).backward()
            optimiser.step()
        name = uuid.uuid4().hex[:8]
        model_folder = save_model_folder(
            self.folder / name,
            state,
            self.settings.model.model_dump(mode="json"),
            model.state_dict(),
            golden_rows(spark, self.snapshot, state, 3),
        )
        if calibration is not None:
            rows = delta.read(spark, self.folder / "warehouse" / "small" / "examples")
            calibrate(model_folder, rows.where("split = 'validation'"), calibration, {}, least=5)
        if turned is not None:
            scorer = Scorer.load(model_folder)
            scorer.calibration = Calibration("platt", {turned: Platt(-1.0, 0.0)}, {}, {})
            scorer.calibration.save(model_folder)
            pq.write_table(scorer.golden(rows_of(model_folder)), model_folder / GOLDEN_FILE)
        tracker = Tracker(self.settings.mlflow, self.folder / "tracking")
        tracker.start_run()
        version = tracker.log_model(
            model_folder, Lineage.of(self.snapshot, plan_hash="p", world_size=1, seed=seed)
        )
        tracker.finish()
        assert version is not None
        return version


def build(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Run the job that builds features on what lies in a folder."""
    places = {"--contract": "contract.yml", "--source": "raw", "--warehouse": "warehouse"}
    arguments = [word for option, name in places.items() for word in (option, str(folder / name))]
    patch.setattr(sys, "argv", ["build_features.py", *arguments])
    load_job("build_features").main()


@pytest.fixture(scope="module")
def built(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small log, its features built by the job."""
    folder = tmp_path_factory.mktemp("small")
    write_log(folder / "raw")
    write_contract(folder / "contract.yml")
    with pytest.MonkeyPatch.context() as patch:
        build(folder, patch)
    return folder


@pytest.fixture
def workshop(
    spark: SparkSession, built: Path, mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Workshop:
    config = write_settings(
        tmp_path / "train.yml", built / "warehouse", mlflow_store, f"small_{uuid.uuid4().hex[:8]}"
    )
    settings = load_settings(RunSettings, config)
    snapshot = delta.snapshot(spark, built / "warehouse" / "small" / "training")
    return Workshop(built, config, settings, snapshot, monkeypatch)


def test_a_first_version_is_evaluated_promoted_and_scores(
    spark: SparkSession, workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    version = workshop.register(spark, steps=60)

    assert workshop.run("evaluate") == 0
    printed = capsys.readouterr().out
    for scenario in SCENARIOS:
        for task in TASKS:
            assert any(line.split()[:2] == [scenario, task] for line in printed.splitlines()), printed
    run = workshop.client().get_run(version.run_id)
    assert {f"test/auc/{scenario}/{task}" for scenario in SCENARIOS for task in TASKS} <= set(
        run.data.metrics
    )
    assert run.data.metrics["test/auc/young/click"] > 0.7
    challenger = workshop.version(registry.CHALLENGER)
    assert challenger is not None
    assert challenger.tags["validation_status"] == "passed"
    assert challenger.tags["evaluated_against"] == "none"
    report = workshop.config.parent / "reports" / f"{version.name}-{version.version}.html"
    assert printed.splitlines()[-1] == f"report    {report}"
    page = report.read_text(encoding="utf-8")
    for shown in ("Would be promoted", "floors and calibration only", ">impressions</th><td>1,200</td>",
                  ">task_layer.gates</td>", "ROC curve of scenario young, task click"):  # fmt: skip
        assert shown in page, shown
    recorded = [one.path for one in workshop.client().list_artifacts(version.run_id, "evaluation")]
    assert f"evaluation/version_{version.version}.html" in recorded

    assert workshop.run("promote") == 0
    assert "first version" in capsys.readouterr().out
    champion = workshop.version(registry.CHAMPION)
    assert champion is not None
    assert champion.version == version.version

    assert workshop.run("score", "--where", "split = 'test'") == 0
    assert champion.uri in capsys.readouterr().out
    scores = delta.read(spark, workshop.folder / "warehouse" / "small" / "scores")
    expected_columns = {
        "user_id",
        "item_id",
        "scenario",
        "click_prob",
        "like_prob",
        "model_name",
        "model_version",
    }
    assert expected_columns | {"run_id", "input_version", "scored_at"} == set(scores.columns)
    rows = scores.collect()
    examples = delta.read(spark, workshop.folder / "warehouse" / "small" / "examples")
    assert len(rows) == examples.where("split = 'test'").count() > 100
    assert {row["model_version"] for row in rows} == {version.version}
    assert all(0 <= row["click_prob"] <= 1 for row in rows)
    assert len({row["click_prob"] for row in rows}) > 50, "rows must be told apart"
    named = examples.select("user_id", "item_id", F.col("scenario").alias("expected"))
    wrong = scores.join(named, on=["user_id", "item_id"], how="left").where("not scenario <=> expected")
    assert wrong.count() == 0


def test_evaluation_agrees_with_the_scorer_and_scikit_learn(spark: SparkSession, workshop: Workshop) -> None:
    from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

    version = workshop.register(spark, steps=20)
    workshop.run("evaluate")
    mlflow_model = registry.fetch(workshop.client(), version, workshop.folder / "cache")
    scorer = Scorer.load(registry.model_folder(mlflow_model))
    examples = delta.read(spark, workshop.folder / "warehouse" / "small" / "examples")
    rows = examples.where("split = 'test' and scenario = 'old'").toArrow()
    scores = scorer.score(rows)[:, 1]
    metrics = workshop.client().get_run(version.run_id).data.metrics
    labels = rows["label__like"].to_numpy()
    assert metrics["test/auc/old/like"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert metrics["test/log_loss/old/like"] == pytest.approx(log_loss(labels, scores), abs=1e-5)
    # By the contract's columns.list, which tells users apart no further.
    users = rows["user_id"].to_numpy()
    lists = [users == user for user in np.unique(users) if labels[users == user].any()]
    assert len(lists) > 10
    # scikit-learn refuses a list of one row, whose order is right whatever the score.
    ndcg = [1.0 if one.sum() == 1 else ndcg_score([labels[one]], [scores[one]], k=10) for one in lists]
    assert metrics["test/ndcg/old/like"] == pytest.approx(np.mean(ndcg), abs=1e-6)
    assert 0 < metrics["test/mrr/old/like"] < 1


def test_a_worse_challenger_is_refused_with_code_3_and_rollback_restores(
    spark: SparkSession, workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    first = workshop.register(spark, steps=40)
    workshop.run("evaluate")
    assert workshop.run("promote") == 0
    worse = workshop.register(spark, steps=0)
    capsys.readouterr()
    workshop.run("evaluate")
    assert "learned from rows of another release" not in capsys.readouterr().out
    workshop.client().set_model_version_tag(first.name, first.version, "meaning", "0")
    workshop.run("evaluate")
    assert f"(meaning 0) than these (meaning {MEANING})" in capsys.readouterr().out
    assert workshop.run("promote") == 3
    printed = capsys.readouterr().out
    assert "is not promoted" in printed
    assert "below the champion's" in printed
    champion = workshop.version(registry.CHAMPION)
    assert champion is not None
    assert champion.version == first.version
    refused = registry.resolve(workshop.client(), worse.name, worse.version)
    assert refused.tags["validation_status"] == "failed"
    assert refused.tags["evaluated_against"] == first.version

    # Let through on purpose, it can be taken back.
    assert workshop.run("promote", *LET_THROUGH) == 0
    assert workshop.run("promote", "--rollback") == 0
    champion = workshop.version(registry.CHAMPION)
    assert champion is not None
    assert champion.version == first.version


def test_worse_in_one_cell_equal_and_better_are_told_apart_and_the_audit_shows_it_all(
    spark: SparkSession, workshop: Workshop, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    audit = ("--audit", str(tmp_path / "promotions"), "--by", "ann")
    # A hundred test rows a cell show no small difference.
    given = (
        "margin=0.2",
        "min_positives=10",
        "min_rows=50",
        "min_power=0.5",
        "floors.auc=0",
        "calibration.pcoc=null",
    )
    rules = [f"--rule={rule}" for rule in given]
    first = workshop.register(spark, steps=2)
    workshop.run("evaluate")
    assert workshop.run("promote", *audit, *rules) == 0

    better_but = workshop.register(spark, steps=12, turned=("old", "like"))
    workshop.run("evaluate", "--json", str(tmp_path / "evaluation.json"))
    judged = evaluation.Evaluation.from_json((tmp_path / "evaluation.json").read_text())
    assert judged.champion == first.version
    assert min(judged.cells, key=lambda cell: cell.positives).name == "old/like"
    changes = {cell.name: cell.differences["auc"].value for cell in judged.cells}
    assert sum(change for name, change in changes.items() if name != "old/like") > 0, changes
    capsys.readouterr()
    assert workshop.run("promote", *audit, *rules, "--json", str(tmp_path / "decision.json")) == 3
    assert "old/like: AUC" in capsys.readouterr().out
    decision = json.loads((tmp_path / "decision.json").read_text())
    assert (decision["version"], decision["decision"]["promote"]) == (better_but.version, False)
    assert {reason.split(":")[0] for reason in decision["decision"]["reasons"]} == {"old/like"}

    # The champion's own twin: no difference and no noise. Whether that is enough is for the policy to say.
    twin = workshop.register(spark, steps=2)
    workshop.run("evaluate")
    assert workshop.run("promote", *audit, *rules, "--rule", "gain=point") == 3
    assert workshop.run("promote", *audit, *rules, "--dry-run") == 0
    champion = workshop.version(registry.CHAMPION)
    assert champion is not None
    assert champion.version == first.version

    better = workshop.register(spark, steps=12)
    workshop.run("evaluate")
    wanted = (*rules, "--rule", "gain=point", "--rule", "approval=approval")
    capsys.readouterr()
    assert workshop.run("promote", *audit, *wanted) == 3
    assert "waits for approval" in capsys.readouterr().out
    assert workshop.run("promote", *audit, *wanted, "--approve") == 0
    assert workshop.run("promote", *audit, *wanted) == 0
    champion = workshop.version(registry.CHAMPION)
    assert champion is not None
    assert champion.version == better.version
    assert champion.tags["approval"] == "approved"
    assert workshop.run("promote", *audit, "--rollback") == 0

    found = [(row["version"], row["action"], row["outcome"]) for row in Audit(audit[1]).records(first.name)]
    assert found == [
        (first.version, "promote", "claimed"), (first.version, "promote", "done"),
        (better_but.version, "promote", "refused"),
        (twin.version, "promote", "refused"),
        (better.version, "promote", "refused"), (better.version, "approve", "approved"),
        (better.version, "promote", "claimed"), (better.version, "promote", "done"),
        (better.version, "rollback", "claimed"), (better.version, "rollback", "done"),
    ]  # fmt: skip
    last = Audit(audit[1]).records(first.name)[-1]
    assert (last["who"], last["champion_before"], last["champion_after"]) == (
        "ann",
        better.version,
        first.version,
    )


def test_a_calibrated_challenger_shows_what_it_was_before_and_slices_are_judged_on_request(
    spark: SparkSession, workshop: Workshop, tmp_path: Path
) -> None:
    workshop.register(spark, steps=0, calibration="isotonic")
    workshop.run(
        "evaluate", "--slices=zip, new_user", "--weight=age", "--json", str(tmp_path / "evaluation.json")
    )
    judged = evaluation.Evaluation.from_json((tmp_path / "evaluation.json").read_text())
    for cell in judged.cells:
        assert set(cell.curves) == {"challenger", "uncalibrated"}
        # One row in five is a positive, and the untrained model says one half.
        if cell.task == "like":
            before, after = (cell.measure(model, "pcoc").value for model in ("uncalibrated", "challenger"))
            assert before is not None
            assert after is not None
            assert abs(after - 1) < abs(before - 1) / 2
    slices = {one.scenario for one in judged.of_kind("slice")}
    assert slices == {"zip=00000", "zip=01000", "zip=02000", "zip=03000", "zip=04000", "new_user=false"}
    per_task = [
        sum(one.rows for one in judged.of_kind("slice") if one.scenario.startswith(name))
        for name in ("zip", "new_user")
    ]
    assert per_task[0] == per_task[1] == sum(cell.rows for cell in judged.cells)
    with pytest.raises(UserError, match="no column 'zop'; did you mean 'zip'"):
        workshop.run("evaluate", "--slices", "zop")
    with pytest.raises(UserError, match="weight: the rows have no column 'weight'"):
        workshop.run("evaluate", "--weight", "weight")


def test_a_version_that_was_not_evaluated_is_not_promoted(spark: SparkSession, workshop: Workshop) -> None:
    workshop.register(spark, steps=0)
    with pytest.raises(UserError, match="has not been evaluated"):
        workshop.run("promote")


def test_a_champion_that_moved_since_the_evaluation_refuses_with_code_3(
    spark: SparkSession, workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    first = workshop.register(spark, steps=40)
    second = workshop.register(spark, steps=41)
    workshop.run("evaluate", "--model-version", first.version)
    workshop.run("evaluate", "--model-version", second.version)
    assert workshop.run("promote", "--model-version", first.version) == 0
    assert workshop.run("promote", "--model-version", second.version) == 3
    assert "evaluate again" in capsys.readouterr().out


def write_raw(rows: DataFrame, path: Path, fingerprint: str) -> None:
    """Raw rows as a table that names its contract."""
    delta.write(rows, path)
    name = "hinet.contract_fingerprint"
    rows.sparkSession.sql(f"ALTER TABLE delta.`{path}` SET TBLPROPERTIES ('{name}' = '{fingerprint}')")


def test_scoring_refuses_rows_of_another_contract(
    spark: SparkSession, workshop: Workshop, tmp_path: Path
) -> None:
    workshop.register(spark, steps=0)
    examples = delta.read(spark, workshop.folder / "warehouse" / "small" / "examples").limit(5)
    write_raw(examples, tmp_path / "foreign", "0" * 64)
    with pytest.raises(UserError, match="made by contract 000000000000"):
        workshop.run("score", "--model-version", "challenger", "--input", str(tmp_path / "foreign"))
    delta.write(examples, tmp_path / "nameless")
    with pytest.raises(UserError, match=r"names no contract; .*ALTER TABLE"):
        workshop.run("score", "--model-version", "challenger", "--input", str(tmp_path / "nameless"))


def test_scoring_refuses_rows_that_mean_something_else_than_those_that_the_model_learned_from(
    spark: SparkSession, workshop: Workshop, tmp_path: Path
) -> None:
    version = workshop.register(spark, steps=0)
    assert version.tags["meaning"] == str(MEANING)
    examples = delta.read(spark, workshop.folder / "warehouse" / "small" / "examples").limit(5)
    write_raw(examples, tmp_path / "newer", workshop.snapshot.contract_fingerprint)
    arguments = ("--model-version", version.version, "--input", str(tmp_path / "newer"))
    scores = ("--output", str(tmp_path / "scores"))
    workshop.run("score", *arguments, *scores)
    spark.sql(
        f"ALTER TABLE delta.`{tmp_path / 'newer'}` SET TBLPROPERTIES ('hinet.meaning' = '{MEANING + 1}')"
    )
    with pytest.raises(
        UserError, match=rf"newer: was built .* \(meaning {MEANING + 1}\) than .* \(meaning {MEANING}\)"
    ):
        workshop.run("score", *arguments, *scores)


def test_scores_replace_no_other_table_and_are_replaced_by_rows_alone(
    spark: SparkSession, workshop: Workshop, tmp_path: Path
) -> None:
    version = workshop.register(spark, steps=0)
    scores = tmp_path / "scores"
    arguments = ("--model-version", version.version, "--output")
    workshop.run("score", *arguments, str(scores), "--where", "split = 'test'")
    examples = workshop.folder / "warehouse" / "small" / "examples"
    before = {place: delta.newest_version(place) for place in (scores, examples)}
    with pytest.raises(UserError, match=r"examples: is a table without scores, which they would replace"):
        workshop.run("score", *arguments, str(examples))
    with pytest.raises(
        UserError, match=r"has no row that meets --where \"split = 'tset'\"; .*scores is left as it is"
    ):
        workshop.run("score", *arguments, str(scores), "--where", "split = 'tset'")
    with pytest.raises(UserError, match=r"^--where: .*`spilt`"):
        workshop.run("score", *arguments, str(scores), "--where", "spilt = 'test'")
    assert before == {place: delta.newest_version(place) for place in before}


def test_a_row_of_no_scenario_ends_scoring_with_one_clear_line(
    spark: SparkSession, workshop: Workshop, tmp_path: Path
) -> None:
    workshop.register(spark, steps=0)
    examples = delta.read(spark, workshop.folder / "warehouse" / "small" / "examples").limit(5)
    strange = examples.withColumn("age", examples["age"] * 0 + 777)
    fingerprint = workshop.snapshot.contract_fingerprint
    write_raw(strange, tmp_path / "strange", fingerprint)
    with pytest.raises(
        UserError, match=r"row 0: age = 777.* belongs to no scenario; expected one of young, old$"
    ):
        workshop.run("score", "--model-version", "challenger", "--input", str(tmp_path / "strange"))


def test_the_commit_of_the_scores_bears_the_lineage(
    spark: SparkSession, workshop: Workshop, tmp_path: Path
) -> None:
    version = workshop.register(spark, steps=0)
    workshop.run("score", "--model-version", version.version, "--output", str(tmp_path / "scores"))
    log = (tmp_path / "scores" / "_delta_log" / "00000000000000000000.json").read_text()
    (commit,) = [json.loads(line)["commitInfo"] for line in log.splitlines() if "commitInfo" in line]
    lineage = json.loads(commit["userMetadata"])
    assert (lineage["model_version"], lineage["run_id"]) == (version.version, version.run_id)
    files = list((tmp_path / "scores").glob("*.parquet"))
    assert sum(pq.read_metadata(file).num_rows for file in files) == 1200


def test_requests_are_scored_as_the_rows_that_the_build_made_of_them(
    spark: SparkSession, workshop: Workshop, tmp_path: Path
) -> None:
    version = workshop.register(spark, steps=5)
    workshop.run("score", "--model-version", version.version, "--output", str(tmp_path / "scores"))
    columns = ["user_id", "item_id", "age", "zip", "at"]
    examples = delta.read(spark, workshop.folder / "warehouse" / "small" / "examples")
    delta.write(examples.select(*columns), tmp_path / "requests")
    arguments = ("--model-version", version.version, "--input", str(tmp_path / "requests"))
    workshop.run("score", *arguments, "--output", str(tmp_path / "again"))
    wanted = ["user_id", "item_id", *(f"{task}_prob" for task in TASKS)]
    built, asked = (
        sorted(map(tuple, delta.read(spark, tmp_path / name).select(*wanted).collect()))
        for name in ("scores", "again")
    )
    assert len(asked) == 1200
    assert [row[:2] for row in asked] == [row[:2] for row in built]
    assert [row[2:] for row in asked] == [pytest.approx(row[2:]) for row in built]


def test_a_version_is_judged_on_its_own_rows_after_a_rebuild_and_vacuum(
    spark: SparkSession, workshop: Workshop, built: Path
) -> None:
    version = workshop.register(spark, steps=5)
    build(built, workshop.monkeypatch)
    tables = [built / "warehouse" / "small" / name for name in ("events", "examples", "training")]
    assert delta.newest_version(tables[-1]) > workshop.snapshot.version

    def judge_after(days: int) -> int:
        for table in tables:
            aged(table, days * DAY)
        vacuum(spark, *tables)
        return workshop.run("evaluate", "--model-version", version.version)

    assert judge_after(29) == 0
    workshop.snapshot.check_files("test")
    with pytest.raises(UserError, match=r"examples/.* is gone, so version 0 .* was the table vacuumed\?"):
        judge_after(2)


def test_rows_that_an_ancestor_was_trained_on_count_as_seen(spark: SparkSession, workshop: Workshop) -> None:
    job, client = load_job("evaluate"), workshop.client()
    ancestor = workshop.register(spark, steps=0)
    version = workshop.register(spark, steps=0)
    examples, described = job.examples_of(spark, version)
    rows = examples.where("split = 'train'").limit(300).localCheckpoint()
    scorer = Scorer.load(registry.model_folder(registry.fetch(client, version, workshop.folder)))

    def seen(of: registry.RegisteredVersion, **of_others: str) -> dict[str, Any]:
        return dict(job.seen(spark, client, of, rows, {**described, **of_others}, (scorer, scorer)))

    def tagged(one: registry.RegisteredVersion, tag: str, value: str) -> registry.RegisteredVersion:
        client.set_model_version_tag(one.name, one.version, tag, value)
        return registry.resolve(client, one.name, one.version)

    assert seen(version)["rows"] == 0
    warm = tagged(version, "began_with", ancestor.uri)
    assert seen(warm)["rows"] == 0  # both of the same version of the data
    tagged(ancestor, "began_with", ancestor.uri)
    found = seen(warm, training_version="99")  # rows of another version, as it were
    assert found["rows"] == 300
    assert f"{ancestor.uri}, which it began with: test rows looked up by key" in found["how"]
    tagged(ancestor, "table_id", "another")
    assert seen(warm, training_version="99")["rows"] is None  # that table is not there
    assert seen(tagged(version, "began_with", f"models:/{version.name}/99"))["rows"] is None


def test_a_rollback_while_another_promotion_is_under_way_is_refused_with_code_3(
    spark: SparkSession, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version, table = workshop.register(spark, steps=0), str(tmp_path / "promotions")
    with Audit(table, "ann").claim(Record(version.name, "7", "promote", "")):
        assert load_job("promote").rolled_back(workshop.client(), version, Audit(table, "bob")) == 3
    assert "promote of version 7 by ann is under way" in capsys.readouterr().out
    found = [(row["who"], row["action"], row["outcome"]) for row in Audit(table).records()]
    assert found == [
        ("ann", "promote", "claimed"),
        ("bob", "rollback", "refused"),
        ("ann", "promote", "done"),
    ]


def test_a_study_takes_no_table_of_another_split_for_its_own(workshop: Workshop) -> None:
    study = load_job("study")
    place = workshop.folder / "contract.yml"
    contract, other = load_contract(place), load_contract(place, ["split.seed=7"])
    assert other.fingerprint == contract.fingerprint
    assert study._is_there(workshop.snapshot.table, contract)
    assert not study._is_there(workshop.snapshot.table, other)
    assert not study._is_there(str(workshop.folder / "nowhere"), contract)


def test_a_model_that_nobody_registered_is_one_line_and_code_2(mlflow_store: str, tmp_path: Path) -> None:
    config = write_settings(tmp_path / "train.yml", tmp_path, mlflow_store, "nobody")
    done = subprocess.run(
        [sys.executable, str(JOBS / "evaluate.py"), "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "no model is registered as 'nobody'" in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("job", ["evaluate", "promote", "score"])
def test_help_shows_examples(job: str) -> None:
    assert (
        f"python jobs/{job}.py --config conf/train/movielens.yml" in load_job(job).arguments().format_help()
    )
