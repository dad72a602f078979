"""A log of awkward kinds through every job to REST: ids beyond 64 bits, booleans, decimals, names with spaces."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.pyfunc.scoring_server import infer_and_parse_data
from pyspark.sql import SparkSession
from small_log import LENIENT, run_job, write_settings

from feature_eng import delta
from feature_eng.contract import load_contract, stored_name
from feature_eng.encoder.state import EncoderState
from hinet_model.lifecycle.evaluation import Evaluation

pytestmark = [pytest.mark.spark, pytest.mark.distributed, pytest.mark.slow]

FIRST_USER, FIRST_ITEM = 2**63 + 1, 2**64 - 40
NAME = "odd_log"


def write_log(folder: Path) -> None:
    """Users of an even place click, the others do not: only who tells their ids apart can know."""
    folder.mkdir()
    random = np.random.default_rng(0)
    pairs = random.permutation([(user, item) for user in range(40) for item in range(20)])[:600]
    users, items = pairs[:, 0], pairs[:, 1]
    pd.DataFrame(
        {
            "User ID": (FIRST_USER + users.astype(object)).astype("uint64"),
            "item.id": [Decimal(FIRST_ITEM + int(item)) for item in items],
            "is member": users % 3 == 0,
            "price (EUR)": [Decimal(int(item)) / 4 if item else None for item in items],
            "Page Type": np.where(items % 2 == 0, "home page", "search"),
            "clicked?": users % 2 == 0,
            "at": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(len(pairs)), unit="min"),
        }
    ).to_parquet(folder / "log.parquet")


def write_contract(path: Path) -> None:
    contract = {
        "name": NAME,
        "source": {"tables": {"log": {"path": "log.parquet", "format": "parquet"}}},
        "columns": {"key": ["User ID", "item.id"], "user": "User ID", "item": "item.id", "time": "at"},
        "scenario": {
            "column": "Page Type",
            "values": {"home": {"in": ["home page"]}, "search": {"in": ["search"]}},
        },
        "tasks": {"click": {"column": "clicked?", "equals": True}},
        "features": {
            "user": {"kind": "categorical", "column": "User ID"},
            "user_hash": {"kind": "categorical", "column": "User ID", "buckets": 512},
            "item": {"kind": "categorical", "column": "item.id"},
            "member": {"kind": "categorical", "column": "is member"},
            "price": {"kind": "numeric", "column": "price (EUR)", "optional": True},
            "recent": {"kind": "history", "of": "item", "last": 2},
        },
        "split": {"method": "random", "fractions": [0.6, 0.2, 0.2], "allow_leakage": True},
    }
    path.write_text(yaml.safe_dump(contract, sort_keys=False))


def test_awkward_kinds_come_through_every_job_exactly(
    spark: SparkSession, mlflow_store: str, tmp_path: Path
) -> None:
    contract_file, warehouse = tmp_path / "odd.yml", tmp_path / "warehouse"
    write_log(tmp_path / "raw")
    write_contract(contract_file)
    config = write_settings(
        tmp_path / "train.yml", warehouse, mlflow_store, NAME, NAME,
        model={"name": "shared_bottom", "embedding_dim": 8, "expert_dims": [16], "tower_dims": [8]},
        optimiser={"learning_rate": 0.02, "table_learning_rate": 0.1},
        training={"epochs": 15, "batch_size": 64, "workers": 1},
    )  # fmt: skip

    said = run_job(
        "build_features", "--contract", contract_file, "--source", tmp_path / "raw", "--warehouse", warehouse
    )
    assert ["log", "600", "600", "0"] in [line.split() for line in said.splitlines()]
    snapshot = delta.snapshot(spark, str(warehouse / NAME / "training"))
    assert json.loads(snapshot.sources)["log"][1]["files"] == 1
    state = EncoderState.load(snapshot.encoder_path)
    assert state.raw_types == {
        "Page Type": "string", "User ID": "decimal", "item.id": "decimal", "is member": "int64",
        "price (EUR)": "double", "recent": "list<decimal>",
    }  # fmt: skip
    assert {int(key) for key in state.vocabularies["user"].to_pylist()} <= {FIRST_USER + n for n in range(40)}
    assert len(state.vocabularies["user"]) == 40

    run_job("train", "--config", config)
    judged = tmp_path / "evaluation.json"
    # Members alone: rows of weight 0 are left out.
    run_job(
        "evaluate", "--config", config, "--weight=is member", "--slices=is member,Page Type", "--json", judged
    )
    run_job("promote", "--config", config, *LENIENT)
    run_job("score", "--config", config)
    found = Evaluation.from_json(judged.read_text())
    examples = delta.read(spark, str(warehouse / NAME / "examples"))
    members = examples.where("split = 'test' AND `is%20member` = 1").count()
    assert sum(cell.rows for cell in found.cells) == members > 20
    slices = {one.scenario: one.rows for one in found.of_kind("slice")}
    assert slices.keys() == {"is%20member=1", "Page%20Type=home page", "Page%20Type=search"}

    client = MlflowClient(mlflow_store)
    version = client.get_model_version_by_alias(NAME, "champion")
    tags = client.get_run(version.run_id).data.tags
    assert json.loads(tags["sources"]) == json.loads(snapshot.sources)
    scores = delta.read(spark, str(warehouse / NAME / "scores")).collect()
    probability = {(int(row["User%20ID"]), int(row["item%2Eid"])): row["click_prob"] for row in scores}
    assert len(probability) == 600
    clicking = np.array([value for (user, _), value in probability.items() if (user - FIRST_USER) % 2 == 0])
    others = np.array([value for (user, _), value in probability.items() if (user - FIRST_USER) % 2 == 1])
    assert (clicking[:, None] > others).mean() > 0.95, "users are told apart by their whole ids"

    mlflow.set_tracking_uri(mlflow_store)
    served = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    names = list(state.raw_types)
    rows = [{name: row[stored_name(name)] for name in names} for row in examples.limit(50).collect()]
    for row in rows:
        row["User ID"], row["item.id"] = int(row["User ID"]), int(row["item.id"])
        row["is member"] = bool(row["is member"])
        row["recent"] = [int(item) for item in row["recent"]]
    as_text = [
        {**row, "User ID": str(row["User ID"]), "recent": list(map(str, row["recent"]))} for row in rows
    ]
    expected = [probability[row["User ID"], row["item.id"]] for row in rows]
    for request in (rows, as_text):
        body = json.loads(json.dumps({"dataframe_records": request}))
        frame = infer_and_parse_data(body, served.metadata.get_input_schema())
        np.testing.assert_allclose(served.predict(frame)["click_prob"], expected, atol=1e-5)
    without_price = [{name: value for name, value in row.items() if name != "price (EUR)"} for row in rows]
    assert len(served.predict(pd.DataFrame(without_price))) == 50
    assert load_contract(contract_file).optional_columns == {"price (EUR)"}
