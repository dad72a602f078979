"""The whole flow with every place on an object store: raw log to scores, by S3 on loopback."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from small_log import LENIENT, SCENARIOS, TASKS, run_job, write_contract, write_log, write_settings

from foundation import stores
from hinet_model.lifecycle import registry
from hinet_model.lifecycle.audit import Audit, beside

pytestmark = [pytest.mark.spark, pytest.mark.distributed, pytest.mark.slow]


def test_from_raw_log_to_scores_with_every_place_on_an_object_store(
    tmp_path: Path, object_store: str, mlflow_store: str
) -> None:
    home = f"s3a://{object_store.removeprefix('s3://')}/a b"  # not encoded on the way
    write_log(tmp_path / "raw", rows=900)
    stores.upload(tmp_path / "raw" / "impressions.csv", stores.join(home, "raw", "impressions.csv"))
    contract = write_contract(tmp_path / "contract.yml")
    config = write_settings(
        tmp_path / "train.yml", f"{home}/warehouse", mlflow_store, "object-store",
        training={"epochs": 2, "workers": 2, "batch_size": 128},
        checkpoint={"folder": f"{home}/checkpoints"},
    )  # fmt: skip
    settings = yaml.safe_load(config.read_text())
    settings["mlflow"]["artifact_location"] = f"{object_store}/artifacts"
    config.write_text(yaml.safe_dump(settings))
    here = tmp_path / "elsewhere"
    here.mkdir()

    run_job(
        "build_features", "--contract", contract,
        "--source", f"{home}/raw", "--warehouse", f"{home}/warehouse", here=here,
    )  # fmt: skip
    run_job("train", "--config", config, here=here)
    run_job("evaluate", "--config", config, here=here)
    run_job("promote", "--config", config, *LENIENT, here=here)
    run_job("score", "--config", config, here=here)

    client = registry.connect(mlflow_store)
    champion = registry.resolve(client, "object-store", registry.CHAMPION)
    assert client.get_run(champion.run_id).info.artifact_uri.startswith(f"{object_store}/artifacts/")
    table = champion.tags["delta_table"]
    assert table == stores.join(home, "warehouse", "small", "training")
    decided = Audit(beside(table)).records("object-store")
    assert [(one["action"], one["outcome"]) for one in decided] == [
        ("promote", "claimed"),
        ("promote", "done"),
    ]
    run = stores.join(home, "checkpoints", champion.run_id)
    kept = [name for name in stores.names(run) if name.startswith("step-")]
    assert kept
    assert all(stores.is_file(stores.join(run, name, "manifest.json")) for name in kept)
    scored = stores.join(home, "warehouse", "small", "scores")
    files = [stores.join(scored, name) for name in stores.names(scored) if name.endswith(".parquet")]
    scores = pa.concat_tables(pq.read_table(pa.BufferReader(stores.read_bytes(file))) for file in files)
    assert scores.num_rows == 900
    assert set(scores["scenario"].to_pylist()) == set(SCENARIOS)
    for task in TASKS:
        assert all(0.0 < prob < 1.0 for prob in scores[f"{task}_prob"].to_pylist())
    # Nothing of it is on this machine, under whatever name a URI would make when taken for a path.
    found = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    # A model is made on the driver's disk, and sent from there.
    local = [path for path in found if not path.startswith(f"elsewhere/local/runs/{champion.run_id}/model/")]
    assert len(local) < len(found)
    assert not [path for path in local if "s3" in path or path.endswith((".parquet", ".pt", "_delta_log"))]
