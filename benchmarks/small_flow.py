"""A small log with its contract and settings, for runs of whole jobs in which the jobs matter and not their quality."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

_USERS, _ITEMS, _ROWS = 60, 40, 1200


@dataclass(frozen=True)
class SmallFlow:
    """Where everything of a flow lies.

    Args:
        folder: Holds all of it.
        contract: The data contract.
        config: Settings of the training run.
        warehouse: Of the Delta tables.
        tracking_uri: Of MLflow.
        lenient: Options of `promote.py` that a model of so few rows passes.
    """

    folder: Path
    contract: Path
    config: Path
    warehouse: Path
    tracking_uri: str
    lenient: tuple[str, ...] = (
        "--rule=floors.auc=0",
        "--rule=calibration.pcoc=null",
        "--rule=min_rows=10",
        "--rule=min_positives=5",
    )


def write_flow(folder: Path, **training: Any) -> SmallFlow:
    """Write a log of two scenarios and two tasks, and what the jobs need; keywords go to the section ``training``."""
    folder.mkdir(parents=True)
    _write_log(folder / "impressions.csv")
    flow = SmallFlow(
        folder,
        folder / "contract.yml",
        folder / "train.yml",
        folder / "warehouse",
        f"sqlite:///{folder / 'mlflow.db'}",
    )
    numbers = dict.fromkeys(["user_id", "item_id", "age", "rating", "at"], "integer")
    table = {"path": str(folder / "impressions.csv"), "format": "csv", "types": numbers}
    contract = {
        "name": "small",
        "source": {"reader": "tables", "tables": {"impressions": table}},
        "columns": {"key": ["user_id", "item_id"], "user": "user_id", "item": "item_id", "time": "at"},
        "scenario": {
            "column": "age",
            "values": {"young": {"range": [0, 29]}, "old": {"range": [30, 99]}},
        },
        "tasks": {
            "click": {"column": "rating", "greater_than": 3},
            "like": {"column": "rating", "greater_than": 4},
        },
        "behaviour": False,
        "features": {
            "user_id": {"kind": "categorical", "column": "user_id"},
            "item_id": {"kind": "categorical", "column": "item_id"},
        },
        "split": {"method": "random", "fractions": [0.7, 0.1, 0.2]},
    }
    settings = {
        "data": {"table": str(flow.warehouse / "small" / "training")},
        "model": {
            "embedding_dim": 8,
            "sub_experts": 2,
            "sub_expert_dims": [16],
            "expert_dims": [16],
            "tower_dims": [8],
        },
        "training": {
            "epochs": 3,
            "batch_size": 64,
            "workers": 2,
            "threads_per_worker": 1,
            "log_every_steps": 1,
            **training,
        },
        "checkpoint": {"folder": str(folder / "checkpoints"), "every_steps": 4},
        "mlflow": {
            "tracking_uri": flow.tracking_uri,
            "experiment": "small",
            "registered_model": "small",
            "artifact_location": str(folder / "artifacts"),
        },
    }
    flow.contract.write_text(yaml.safe_dump(contract, sort_keys=False), encoding="utf-8")
    flow.config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return flow


def _write_log(file: Path) -> None:
    """Users like items of their own parity, and some like everything."""
    random = np.random.default_rng(0)
    pairs = random.permutation([(user, item) for user in range(_USERS) for item in range(_ITEMS)])[:_ROWS]
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["user_id", "item_id", "age", "rating", "at"])
        for moment, (user, item) in enumerate(pairs):
            affinity = 1.5 * ((user + item) % 2) + 0.8 * (user % 3 == 0) + random.normal(0, 0.7)
            rating = int(np.clip(round(2.5 + affinity), 1, 5))
            writer.writerow([user, item, 20 if user % 2 else 45, rating, 1_000_000 + moment])
