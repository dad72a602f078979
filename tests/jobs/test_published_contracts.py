"""The contracts of public data build, train an epoch and score, on samples in the shapes in which the data come."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from job_files import load_job
from published_samples import SAMPLES
from pyspark.sql import SparkSession

from feature_eng import delta
from feature_eng.contract import SPLITS, load_contract
from feature_eng.encoder.state import EncoderState
from feature_eng.golden import golden_rows
from foundation.settings import load_settings
from hinet_model.serving.scorer import Scorer
from hinet_model.settings import RunSettings
from hinet_model.training.control.reports import ReportList
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.dist.world import LocalWorld
from hinet_model.training.job import TrainingJob
from hinet_model.training.recording import export_model
from hinet_model.training.worker import train

pytestmark = [pytest.mark.spark, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
SMALL = [
    "model={name: hinet, embedding_dim: 4, sub_experts: 1, sub_expert_dims: [8], expert_dims: [8], tower_dims: [4]}",
    "training={epochs: 1, batch_size: 128, workers: 1, threads_per_worker: 1}",
]


@pytest.fixture(scope="module")
def job() -> ModuleType:
    return load_job("build_features")


@pytest.mark.parametrize("name", SAMPLES)
def test_a_contract_of_published_data_builds_trains_and_scores(
    name: str, job: ModuleType, spark: SparkSession, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    SAMPLES[name](raw)
    contract = load_contract(ROOT / "conf" / "contracts" / f"{name}.yml")
    snapshot = job.build(spark, contract, str(raw), tmp_path / "warehouse")
    assert all(snapshot.rows(split) > 0 for split in SPLITS)
    # All scenarios have rows to learn from, and both values of all labels occur.
    assert all(rows > 0 for rows in snapshot.scenario_rows["train"])
    trained = [cell for cell in snapshot.cells if cell.split == "train"]
    for place, task in enumerate(contract.task_names):
        positives = sum(cell.positives[place] for cell in trained)
        assert 0 < positives < sum(cell.labels[place] for cell in trained), task

    state = EncoderState.load(snapshot.encoder_path)
    settings = load_settings(RunSettings, ROOT / "conf" / "train" / f"{name}.yml", SMALL)
    folder = tmp_path / "run"
    task = TrainingJob(settings, snapshot, state.model_schema(), str(folder), str(folder / "logs"))
    (entry,) = train(task, LocalWorld(), ReportList(), Progress(), [])["history"]
    assert np.isfinite([cell["log_loss"] for cell in entry["cells"] if cell["rows"]]).all()
    golden = golden_rows(spark, snapshot, state, 2)
    scorer = Scorer.load(export_model(str(folder), tmp_path / "model", state, settings, golden))
    rows = delta.read(spark, f"{tmp_path}/warehouse/{name}/examples").where("split = 'test'").toArrow()
    scores = scorer.score(rows)
    assert scores.shape == (snapshot.rows("test"), len(contract.task_names))
    assert ((scores > 0) & (scores < 1)).all()
    assert len(np.unique(scores)) > scores.size / 4, "rows are told apart"
    _CHECKS.get(name, lambda *_: None)(spark, tmp_path / "warehouse" / name)


def check_kuairand(spark: SparkSession, root: Path) -> None:
    """Splits go by China's dates; rows without a row in a side table stay, with nulls."""
    rows = delta.read(spark, root / "examples").selectExpr(
        "split",
        "string(date(timestamp_seconds(time_ms + 8 * 3600))) AS day",
        "user_id",
        "author_id",
        "video_id",
    )
    ends = rows.groupBy("split").agg({"day": "min"}).collect()
    first = {row["split"]: row[1] for row in ends}
    assert first["train"] < "2022-04-10"
    assert "2022-04-22" <= first["validation"] < "2022-04-25"
    assert "2022-04-29" <= first["test"] < "2022-05-02"
    assert rows.where("(author_id IS NULL) != (video_id = 30)").count() == 0
    assert rows.where("user_id = 20").count() > 0


def check_tenrec(spark: SparkSession, root: Path) -> None:
    """No row is lost, rows that stand twice included; ``\\N`` is a scenario, and no gender."""
    rows = delta.read(spark, root / "examples").select("scenario", "gender").collect()
    assert len(rows) == 310
    assert {row["gender"] for row in rows} == {"1", "2", None}
    assert Counter(row["scenario"] for row in rows)["unknown"] > 50


def check_aliexpress(spark: SparkSession, root: Path) -> None:
    """Searches of one number in two countries or halves are two; each stands whole in one split, with its user."""
    rows = delta.read(spark, root / "examples")
    assert rows.count() == 4 * (40 + 12) * 3
    assert rows.where("user_2 IS NULL").count() == 0
    lists = rows.groupBy("search").agg({"split": "approx_count_distinct", "*": "count"}).collect()
    assert len(lists) == 4 * (40 + 12)
    assert {(row[1], row[2]) for row in lists} in ({(1, 3)}, {(3, 1)})


def check_travel(spark: SparkSession, root: Path) -> None:
    """The first offer of every second search was booked, on its day, by its means, to its place; half via its stop."""
    rows = delta.read(spark, root / "examples").where("offer = 0 AND search_id < 60").collect()
    assert len(rows) == 60
    for row in rows:
        booked = int(row["search_id"] % 2 == 0)
        assert [row[f"label__{task}"] for task in ("when", "how", "where")] == [booked] * 3
        assert row["label__via"] == int(row["search_id"] % 4 == 0)


_CHECKS = {
    "kuairand_pure": check_kuairand,
    "tenrec_qk_video": check_tenrec,
    "aliexpress": check_aliexpress,
    "travel": check_travel,
}
