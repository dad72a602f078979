"""Days as they come: built by date, trained on top of the champion, promoted, scored; a drifted one is stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from daily_log import DAY, START, contract_at, on, write_log
from job_files import load_job
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from benchmarks.small_flow import LENIENT, write_settings
from feature_eng import delta
from feature_eng.contract import SPLITS
from feature_eng.drift import DriftError
from feature_eng.encoder import spark as encoder
from feature_eng.encoder.state import EncoderState
from feature_eng.snapshot import ENCODER_PATH, EXAMPLES_VERSION
from hinet_model.lifecycle import registry

pytestmark = [pytest.mark.spark, pytest.mark.slow]


class Platform:
    """A folder with a log that grows, and the jobs over it, in this process."""

    def __init__(self, folder: Path, store: str, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.store, self.patch = folder, store, patch
        self.config = write_settings(
            folder / "train.yml", folder, store, "week", table="days",
            model={"embedding_dim": 8, "sequences": "together", "sub_experts": 2, "sub_expert_dims": [8],
                   "expert_dims": [8], "tower_dims": [8]},
            training={"epochs": 1, "workers": 1, "lanes": 2, "batch_size": 64},
        )  # fmt: skip

    def run(self, job: str, *arguments: str | Path) -> int:
        self.patch.setattr(sys, "argv", [f"{job}.py", *map(str, arguments)])
        return int(load_job(job).main() or 0)

    def build(self, day: int, dates: str) -> None:
        contract = contract_at(
            day, self.folder, encoder={"from": "previous"}, drift={"labels": 2.5}
        ).model_dump(mode="json", by_alias=True)
        file = self.folder / "contract.yml"
        file.write_text(yaml.safe_dump(contract, sort_keys=False))
        self.run("build_features", "--contract", file, "--warehouse", self.folder, "--dates", dates)

    def train_to_champion(self, *overrides: str) -> registry.RegisteredVersion:
        config = ("--config", self.config)
        assert self.run("train", *config, *overrides) == 0
        assert self.run("evaluate", *config) == 0
        assert self.run("promote", *config, *LENIENT, "--rule", "margin=1") == 0
        found = registry.find(registry.connect(self.store), "week", registry.CHAMPION)
        assert found is not None
        return found

    def check_table(self, spark: SparkSession) -> None:
        """The training table holds what encoding all examples gives; days that nothing concerned have stayed."""
        days = self.folder / "days"
        record = delta.properties(days / "training")
        examples = delta.read(spark, days / "examples", int(record[EXAMPLES_VERSION]))
        whole = encoder.encode(examples.where(F.col("split").isin(list(SPLITS))), self.state())
        columns = sorted(whole.columns)
        made = delta.read(spark, days / "training").select(columns)
        assert sorted(map(str, made.collect())) == sorted(map(str, whole.select(columns).collect()))
        before, now = (
            {file.path for file in delta.snapshot(spark, days / "training", one).files} for one in (0, 1)
        )
        kept = {day for day in range(8) if any(f"on_date={on(day)}" in file for file in before & now)}
        assert kept == {0, 1}

    def state(self) -> EncoderState:
        return EncoderState.load(delta.properties(self.folder / "days" / "training")[ENCODER_PATH])


def test_a_week(
    spark: SparkSession, mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = Platform(tmp_path, mlflow_store, monkeypatch)
    write_log(tmp_path, 6, rows_a_day=60)
    platform.build(6, f":{on(6)}")
    before = platform.state().vocabularies["what"].to_pylist()
    first = platform.train_to_champion()

    write_log(tmp_path, 7, rows_a_day=60)
    platform.build(7, f"{on(5)}:{on(7)}")
    now = platform.state().vocabularies["what"].to_pylist()
    assert (before, now) == (["a", "b", "c"], ["a", "b", "c", "d"])
    platform.check_table(spark)
    second = platform.train_to_champion("--set", "model.warm_start=models:/week@champion")
    assert second.tags["began_with"].startswith(f"models:/week/{first.version}")
    assert second.version != first.version

    requests = [{"row": 10_000 + row, "who": row % 4, "what": "abcd"[row % 4], "at": START + 8 * DAY + row,
                 "page": 1 + row % 2} for row in range(8)]  # fmt: skip
    spark.createDataFrame(pa.Table.from_pylist(requests)).write.format("delta").save(
        str(tmp_path / "requests")
    )
    scored = ("--input", tmp_path / "requests", "--output", tmp_path / "scores")
    platform.run("score", "--config", platform.config, *scored)
    scores = delta.read(spark, tmp_path / "scores").collect()
    assert {row["row"] for row in scores} == {10_000 + row for row in range(8)}
    assert {row["model_version"] for row in scores} == {second.version}

    drifted: list[dict[str, Any]] = pq.read_table(tmp_path / "shown.parquet").to_pylist()
    pq.write_table(
        pa.Table.from_pylist([{**row, "clicked": 0} for row in drifted]), tmp_path / "shown.parquet"
    )
    training = tmp_path / "days" / "training"
    version = delta.newest_version(training)
    with pytest.raises(DriftError, match=r"drift\.labels: click in home"):
        platform.build(8, f"{on(0)}:{on(7)}")
    assert delta.newest_version(training) == version
