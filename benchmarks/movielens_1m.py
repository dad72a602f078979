"""Quality on MovieLens-1M: the jobs themselves, from raw files to test AUC, over seeds and both protocols.

    HINET_ML1M=<folder> python -m benchmarks.movielens_1m --protocol random --seeds 1 2 3
    HINET_ML1M=<folder> python -m benchmarks.movielens_1m --protocol user_disjoint --seeds 0 1 2

In ``random`` the seed draws the split and the model; in ``user_disjoint`` the split is one and the seed is the
model's. Each run goes through Delta, Petastorm, two Horovod workers and MLflow; ``evaluate`` scores the test rows
through the pyfunc's scorer. Finished runs are kept in ``--results`` (a line of JSON each) and not repeated. The
data are GroupLens's and never part of this project.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

CONTRACT, CONFIG = "conf/contracts/movielens_1m.yml", "conf/train/movielens_1m.yml"
CELLS = [(s, t) for s in ("under_25", "from_25_to_34", "from_35") for t in ("click", "like")]
TRACKING = "sqlite:///local/mlflow/mlflow.db"


def job(name: str, *arguments: str) -> float:
    """Run one job to its end; returns its seconds."""
    started = time.monotonic()
    subprocess.run([sys.executable, f"jobs/{name}.py", *arguments], check=True)
    return time.monotonic() - started


def run(protocol: str, seed: int, source: str, overrides: list[str]) -> dict[str, Any]:
    """One split and one model, from raw files to test metrics."""
    table = f"movielens_1m_{protocol}" + (f"_{seed}" if protocol == "random" else "")
    split = [f"name={table}", f"split.method={protocol}"]
    split += [f"split.seed={seed}"] if protocol == "random" else []
    warehouse = Path("local/warehouse")
    seconds = {}
    if not (warehouse / table / "training" / "_delta_log").exists():
        sets = [word for setting in split for word in ("--set", setting)]
        where = ["--source", source, "--warehouse", str(warehouse)]
        seconds["build_features"] = job("build_features", "--contract", CONTRACT, *where, *sets)
    model = f"hinet-{table}-{seed}"
    settings = [
        f"data.table={table}/training",
        f"training.seed={seed}",
        f"mlflow.tracking_uri={TRACKING}",
        f"mlflow.registered_model={model}",
        *overrides,
    ]
    arguments = ["--config", CONFIG, *(word for setting in settings for word in ("--set", setting))]
    seconds["train"] = job("train", *arguments)
    seconds["evaluate"] = job("evaluate", *arguments)
    client = MlflowClient(TRACKING)
    version = client.get_model_version_by_alias(model, "challenger")
    metrics = client.get_run(version.run_id).data.metrics
    return {
        "protocol": protocol,
        "seed": seed,
        "overrides": overrides,
        "auc": {f"{s}/{t}": metrics[f"test/auc/{s}/{t}"] for s, t in CELLS},
        "validation_auc_mean": max(
            m.value for m in client.get_metric_history(version.run_id, "val/auc_mean")
        ),
        "best_epoch": int(client.get_run(version.run_id).data.tags["best_epoch"]),
        "rows_per_second": metrics["train/rows_per_second"],
        "data_wait_share": metrics["train/data_wait_share"],
        "peak_memory_mib": metrics["worker/peak_memory_mib"],
        "seconds": seconds,
        "git_commit": version.tags["git_sha"],
    }


def table(results: list[dict[str, Any]]) -> str:
    """AUC of the six cells and their mean: each run, then mean and standard deviation over the runs."""
    names = [f"{scenario}/{task}" for scenario, task in CELLS]
    lines = [
        "| run | " + " | ".join(names) + " | mean of six | best epoch |",
        "|---" * (len(names) + 3) + "|",
    ]
    rows = [[result["auc"][name] for name in names] for result in results]
    rows = [[*row, statistics.fmean(row)] for row in rows]
    for result, row in zip(results, rows, strict=True):
        cells = " | ".join(f"{value:.4f}" for value in row)
        lines.append(f"| seed {result['seed']} | {cells} | {result['best_epoch']} |")
    if len(rows) > 1:
        columns = list(zip(*rows, strict=True))
        lines.append("| mean | " + " | ".join(f"{statistics.fmean(c):.4f}" for c in columns) + " | |")
        lines.append("| sd over runs | " + " | ".join(f"{statistics.stdev(c):.4f}" for c in columns) + " | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--protocol", choices=["random", "user_disjoint"], required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=Path("local/movielens_1m.jsonl"))
    given = parser.parse_args()
    source = os.environ.get("HINET_ML1M")
    if not source:
        raise SystemExit("HINET_ML1M is not set; expected the folder of MovieLens-1M's files")
    results = []
    for seed in given.seeds:
        wanted = {"protocol": given.protocol, "seed": seed, "overrides": given.overrides}
        lines = given.results.read_text().splitlines() if given.results.exists() else []
        done = [found for found in map(json.loads, lines) if {k: found[k] for k in wanted} == wanted]
        if not done:
            done = [run(given.protocol, seed, source, given.overrides)]
            given.results.parent.mkdir(parents=True, exist_ok=True)
            with given.results.open("a") as out:
                out.write(json.dumps(done[0]) + "\n")
        results.append(done[0])
    sys.stdout.write(f"{given.protocol}: test AUC\n{table(results)}\n")


if __name__ == "__main__":
    main()
