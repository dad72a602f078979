"""Every job, from raw log to REST: a log of awkward kinds, two workers, and every place on an object store.

Its negatives are thinned and some of its labels are missing, and still its probabilities are right.
"""

from __future__ import annotations

import json
import os
from decimal import Decimal
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from deltalake import DeltaTable
from job_runs import SAID, run_job
from mlflow.pyfunc.scoring_server import infer_and_parse_data
from pyarrow import fs

from benchmarks.small_flow import LENIENT, write_settings
from feature_eng import delta
from feature_eng.contract import load_contract, stored_name
from feature_eng.encoder.state import EncoderState
from feature_eng.snapshot import ENCODER_PATH, SOURCES
from foundation import access, stores
from hinet_model.lifecycle import registry
from hinet_model.lifecycle.audit import Audit, beside
from hinet_model.lifecycle.evaluation import Evaluation
from hinet_model.serving.scorer import Scorer, golden_rows

pytestmark = [pytest.mark.spark, pytest.mark.distributed, pytest.mark.slow]

FIRST_USER, FIRST_ITEM = 2**63 + 1, 2**64 - 40
NAME = "odd_log"


def write_log(folder: Path) -> None:
    """Users of an even place click often, the others seldom: only who tells their ids apart can know.

    Half of the clicks are liked; of a third of the rows nobody knows.
    """
    folder.mkdir()
    random = np.random.default_rng(0)
    pairs = random.permutation([(user, item) for user in range(40) for item in range(20)])[:600]
    users, items = pairs[:, 0], pairs[:, 1]
    clicked = random.random(len(pairs)) < np.where(users % 2 == 0, 0.8, 0.1)
    liked = pd.Series(clicked & (random.random(len(pairs)) < 0.5), dtype="boolean")
    pd.DataFrame(
        {
            "User ID": (FIRST_USER + users.astype(object)).astype("uint64"),
            "item.id": [Decimal(FIRST_ITEM + int(item)) for item in items],
            "is member": users % 3 == 0,
            "price (EUR)": [Decimal(int(item)) / 4 if item else None for item in items],
            "Page Type": np.where(items % 2 == 0, "home page", "search"),
            "clicked?": clicked,
            "liked": liked.where(random.random(len(pairs)) < 2 / 3),
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
        "tasks": {
            "click": {"column": "clicked?", "equals": True},
            "like": {"column": "liked", "equals": True, "null_is": "missing"},
        },
        "sampling": {"keep_negatives": 0.4, "task": "click", "correction": "shift"},
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


def rows_of(table: str) -> pd.DataFrame:
    """The newest version of a Delta table, read without Spark."""
    address, options = access.for_delta_rs(table)
    return DeltaTable(address, storage_options=options).to_pandas()


def _check_probabilities(examples: pd.DataFrame, scores: pd.DataFrame, found: Evaluation) -> None:
    """Evaluation judges by the probabilities in the table of scores, each task by the rows that have its label."""
    keys = ["User%20ID", "item%2Eid"]
    labels = examples[[*keys, "split", "is%20member", "label__click", "label__like"]]
    rows = scores.merge(labels, on=keys, validate="one_to_one")
    assert 60 < (rows["split"] == "unsampled").sum() < 160
    assert 350 < rows["label__like"].notna().sum() < 450
    judged = rows[(rows["split"] == "test") & (rows["is%20member"] == 1)]
    for cell in found.cells:
        of_cell = judged[(judged["scenario"] == cell.scenario) & judged[f"label__{cell.task}"].notna()]
        label, probability = of_cell[f"label__{cell.task}"], of_cell[f"{cell.task}_prob"]
        assert (cell.rows, cell.positives) == (len(of_cell), label.sum())
        expected = pytest.approx(probability.sum() / label.sum(), rel=1e-3) if label.any() else None
        assert cell.measure("challenger", "pcoc").value == expected


SECRETS = {"MLFLOW_TRACKING_PASSWORD": "planted-of-mlflow", "GIT_TOKEN": "planted-of-git"}
"""In the environment of every job, beside the object store's key."""


def holders_of(secret: str, folders: list[Path], bucket: str) -> list[str]:
    """Files and objects, and what jobs have printed, in which a secret stands."""
    found = ["output" for text in SAID if secret in text]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    found += [str(path) for path in files if secret.encode() in path.read_bytes()]
    store, base = access.filesystem(bucket)
    objects = store.get_file_info(fs.FileSelector(base, recursive=True))
    names = [entry.path for entry in objects if entry.type == fs.FileType.File]
    assert files
    assert names
    return found + [name for name in names if secret.encode() in store.open_input_stream(name).read()]


def test_awkward_kinds_come_through_every_job_exactly_with_every_place_on_an_object_store(
    object_store: str, mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    home = f"s3a://{object_store.removeprefix('s3://')}/a b"  # not encoded on the way
    warehouse, raw = f"{home}/warehouse", f"{home}/raw"
    contract_file, here = tmp_path / "odd.yml", tmp_path / "elsewhere"
    here.mkdir()
    write_log(tmp_path / "raw")
    stores.upload(tmp_path / "raw" / "log.parquet", stores.join(raw, "log.parquet"))
    write_contract(contract_file)
    config = write_settings(
        tmp_path / "train.yml", warehouse, mlflow_store, NAME, NAME,
        model={"name": "shared_bottom", "embedding_dim": 8, "expert_dims": [16], "tower_dims": [8]},
        optimiser={"learning_rate": 0.02, "table_learning_rate": 0.1},
        training={"epochs": 12, "batch_size": 64, "workers": 2},
        checkpoint={"folder": f"{home}/checkpoints"},
    )  # fmt: skip
    settings = yaml.safe_load(config.read_text())
    settings["mlflow"]["artifact_location"] = f"{object_store}/artifacts"
    config.write_text(yaml.safe_dump(settings))

    said = run_job(
        "build_features", "--contract", contract_file, "--source", raw, "--warehouse", warehouse, here=here
    )
    assert ["log", "600", "600", "0"] in [line.split() for line in said.splitlines()]
    training = stores.join(home, "warehouse", NAME, "training")
    about = delta.properties(training)
    assert json.loads(about[SOURCES])["log"][1]["files"] == 1
    state = EncoderState.load(about[ENCODER_PATH])
    assert state.raw_types == {
        "Page Type": "string", "User ID": "decimal", "item.id": "decimal", "is member": "int64",
        "price (EUR)": "double", "recent": "list<decimal>",
    }  # fmt: skip
    assert {int(key) for key in state.vocabularies["user"].to_pylist()} <= {FIRST_USER + n for n in range(40)}
    assert len(state.vocabularies["user"]) == 40

    run_job("train", "--config", config, here=here)
    judged = tmp_path / "evaluation.json"
    # Members alone: rows of weight 0 are left out.
    run_job(
        "evaluate", "--config", config, "--weight=is member", "--slices=is member,Page Type", "--json", judged,
        here=here,
    )  # fmt: skip
    run_job("promote", "--config", config, *LENIENT, "--rule=weight=is member", here=here)
    run_job("score", "--config", config, here=here)
    found = Evaluation.from_json(judged.read_text())
    examples = rows_of(f"{warehouse}/{NAME}/examples")
    members = ((examples["split"] == "test") & (examples["is%20member"] == 1)).sum()
    assert sum(cell.rows for cell in found.cells if cell.task == "click") == members > 20
    slices = {one.scenario: one.rows for one in found.of_kind("slice")}
    assert slices.keys() == {"is%20member=1", "Page%20Type=home page", "Page%20Type=search"}

    client = registry.connect(mlflow_store)
    champion = registry.resolve(client, NAME, registry.CHAMPION)
    run = client.get_run(champion.run_id)
    assert json.loads(run.data.tags["sources"]) == json.loads(about[SOURCES])
    assert run.info.artifact_uri.startswith(f"{object_store}/artifacts/")
    assert champion.tags["delta_table"] == training
    decided = Audit(beside(training)).records(NAME)
    assert [(one["action"], one["outcome"]) for one in decided] == [
        ("promote", "claimed"),
        ("promote", "done"),
    ]
    checkpoints = stores.join(home, "checkpoints", champion.run_id)
    kept = [name for name in stores.names(checkpoints) if name.startswith("step-")]
    assert kept
    assert all(stores.is_file(stores.join(checkpoints, name, "manifest.json")) for name in kept)

    scores = rows_of(f"{warehouse}/{NAME}/scores")
    keys = zip(map(int, scores["User%20ID"]), map(int, scores["item%2Eid"]), strict=True)
    probability = dict(zip(keys, scores["click_prob"], strict=True))
    assert len(probability) == len(scores) == 600
    _check_probabilities(examples, scores, found)
    # Training saw four negatives in ten, so the odds among all rows are 0.4 of what it learned.
    folder = here / "local" / "runs" / champion.run_id / "model"
    golden, scorer = golden_rows(folder), Scorer.load(folder)
    keys = zip(golden["User ID"].to_pylist(), golden["item.id"].to_pylist(), strict=True)
    stored = [probability[int(user), int(item)] for user, item in keys]
    encoded = scorer.encode(golden)
    scorer.model.train()
    learned = scorer.logits(encoded)[:, 0]
    np.testing.assert_allclose(stored, 1 / (1 + np.exp(-learned) / 0.4), atol=1e-5)
    clicking = np.array([value for (user, _), value in probability.items() if (user - FIRST_USER) % 2 == 0])
    others = np.array([value for (user, _), value in probability.items() if (user - FIRST_USER) % 2 == 1])
    assert (clicking[:, None] > others).mean() > 0.9, "users are told apart by their whole ids"

    mlflow.set_tracking_uri(mlflow_store)
    served = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    names = list(state.raw_types)
    few = examples.head(50).astype(object).where(examples.head(50).notna(), None).to_dict("records")
    rows = [{name: row[stored_name(name)] for name in names} for row in few]
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

    # Nothing of it is on this machine, under whatever name a URI would make when taken for a path.
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    # A model is made on the driver's disk, and sent from there; the log was sent from here.
    made_here = (f"elsewhere/local/runs/{champion.run_id}/model/", "raw/")
    local = [path for path in left if not path.startswith(made_here)]
    assert len(local) < len(left)
    assert not [path for path in local if "s3" in path or path.endswith((".parquet", ".pt", "_delta_log"))]

    # No secret of the environment has come into a table, a checkpoint, a record, a page, a log or a terminal.
    written = [tmp_path, Path(mlflow_store.removeprefix("sqlite:///")).parent]
    for secret in (*SECRETS.values(), os.environ["AWS_SECRET_ACCESS_KEY"]):
        assert holders_of(secret, written, object_store) == []
    (tmp_path / "planted.txt").write_text(secret)
    assert holders_of(secret, written, object_store) == [str(tmp_path / "planted.txt")]
