"""A small log of impressions, its contract and settings, and a runner: for tests that run jobs on small logs."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

SCENARIOS = ("young", "old")
TASKS = ("click", "like")
ROOT = Path(__file__).parents[2]
LENIENT = [
    f"--rule={rule}" for rule in ("floors.auc=0", "calibration.pcoc=null", "min_rows=10", "min_positives=5")
]
"""Options of a promotion that a small log's model passes."""


SAID: list[str] = []
"""All that jobs have printed, on stdout and stderr."""


def run_job(name: str, *arguments: str | Path, here: Path = ROOT) -> str:
    """Run a job as a user would, from a folder; what it prints."""
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    SAID.extend([done.stdout, done.stderr])
    assert done.returncode == 0, f"{name}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


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


def write_contract(path: Path, name: str = "small", behaviour: bool = True) -> Path:
    """Write a contract of two scenarios and two tasks over the log."""
    contract = {
        "name": name,
        "source": {
            "reader": "tables",
            "tables": {
                "impressions": {
                    "path": "impressions.csv",
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
