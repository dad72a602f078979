"""A small log with its contract and settings, for runs of whole jobs in which the jobs matter and not their quality."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

SCENARIOS = ("young", "old")
TASKS = ("click", "like")
LENIENT = tuple(
    f"--rule={rule}" for rule in ("floors.auc=0", "calibration.pcoc=null", "min_rows=10", "min_positives=5")
)
"""Options of a promotion that a small log's model passes."""


@dataclass(frozen=True)
class SmallFlow:
    """Where everything of a flow lies.

    Args:
        folder: Holds all of it.
        contract: The data contract.
        config: Settings of the training run.
        warehouse: Of the Delta tables.
        tracking_uri: Of MLflow.
    """

    folder: Path
    contract: Path
    config: Path
    warehouse: Path
    tracking_uri: str


def write_flow(folder: Path, **training: Any) -> SmallFlow:
    """Write the log and what the jobs need to train on it with two workers; keywords go to the section ``training``."""
    warehouse, tracking_uri = folder / "warehouse", f"sqlite:///{folder / 'mlflow.db'}"
    write_log(folder)
    contract = write_contract(folder / "contract.yml", behaviour=False, log=folder / "impressions.csv")
    two = {"workers": 2, "threads_per_worker": 1, "batch_size": 64, "log_every_steps": 1}
    config = write_settings(
        folder / "train.yml",
        warehouse,
        tracking_uri,
        "small",
        training={"epochs": 3, **two, **training},
        checkpoint={"folder": str(folder / "checkpoints"), "every_steps": 4},
    )
    return SmallFlow(folder, contract, config, warehouse, tracking_uri)


def write_log(folder: Path, rows: int = 1200, seed: int = 0) -> None:
    """Write ``impressions.csv``: users like items of their own parity, and some like everything."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    pairs = random.permutation([(user, item) for user in range(60) for item in range(40)])[:rows]
    with (folder / "impressions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "age", "zip", "rating", "at"])
        for time, (user, item) in enumerate(pairs):
            affinity = 1.5 * ((user + item) % 2) + 0.8 * (user % 3 == 0) + random.normal(0, 0.7)
            rating = int(np.clip(round(2.5 + affinity), 1, 5))
            writer.writerow([user, item, 20 if user % 2 else 45, f"0{user % 5}000", rating, 1_000_000 + time])


def write_contract(
    path: Path, name: str = "small", behaviour: bool = True, log: str | Path = "impressions.csv"
) -> Path:
    """Write a contract of two scenarios and two tasks over the log."""
    contract = {
        "name": name,
        "source": {
            "reader": "tables",
            "tables": {
                "impressions": {
                    "path": str(log),
                    "format": "csv",
                    "types": dict.fromkeys(["user_id", "item_id", "age", "rating", "at"], "integer"),
                }
            },
        },
        # A user has one zip, so that all rows of a user form one list.
        "columns": {
            "key": ["user_id", "item_id"],
            "user": "user_id",
            "item": "item_id",
            "time": "at",
            "list": "zip",
        },
        "scenario": {
            "column": "age",
            "values": {"young": {"range": [0, 29]}, "old": {"range": [30, 99]}},
        },
        "tasks": {
            "click": {"column": "rating", "greater_than": 3},
            "like": {"column": "rating", "greater_than": 4},
        },
        "behaviour": behaviour,
        "features": {
            "user_id": {"kind": "categorical", "column": "user_id"},
            "item_id": {"kind": "categorical", "column": "item_id"},
            "zip": {"kind": "categorical", "column": "zip", "buckets": 8},
            "recent_items": {"kind": "history", "of": "item", "last": 3},
        },
        "split": {"method": "random", "fractions": [0.7, 0.1, 0.2], "allow_leakage": True},
    }
    path.write_text(yaml.safe_dump(contract, sort_keys=False))
    return path


def write_settings(
    path: Path, warehouse: str | Path, tracking_uri: str, registered_model: str, table: str = "small",
    **sections: Any,
) -> Path:  # fmt: skip
    """Write the settings of a training run; sections given replace those that fit the small log."""
    settings = {
        "data": {"table": f"{warehouse}/{table}/training"},
        "model": {
            "embedding_dim": 8,
            "embedding_dims": {"item_id": 16},
            "sub_experts": 2,
            "sub_expert_dims": [16],
            "shared_experts": 1,
            "specific_experts": 1,
            "expert_dims": [16],
            "tower_dims": [8],
            "scenario_embedding_dim": 4,
        },
        "checkpoint": {"folder": str(path.parent / "checkpoints")},
        "mlflow": {
            "tracking_uri": tracking_uri,
            "experiment": registered_model,
            "registered_model": registered_model,
            "artifact_location": str(path.parent / "artifacts"),
        },
    }
    path.write_text(yaml.safe_dump(settings | sections, sort_keys=False))
    return path
