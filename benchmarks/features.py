"""What building features costs: from raw Parquet to the training table, against an earlier commit if one is named.

examples:
    python -m benchmarks.features
    python -m benchmarks.features --feature-rows 300000 3000000 --against 7184f2e
    python -m benchmarks.features --feature-rows 300000 --conf spark.driver.memory=4g

Each build runs in a process of its own with the session that the job itself would start; its start is left out. With
``--against`` the commit's own code builds the same log in its turn, from a work tree that is made for it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.features_log import contract_of, write_log
from benchmarks.machine import start
from benchmarks.pairing import Figure, Measured, ratios

ROOT = Path(__file__).resolve().parents[1]
ROWS = (300_000, 3_000_000)


def measure(given: argparse.Namespace) -> Measured:
    """Run the benchmark."""
    conf = dict(pair.partition("=")[::2] for pair in given.conf)
    with tempfile.TemporaryDirectory(prefix="hinet-features-") as scratch, _trees(given.against) as trees:
        raw: dict[str, Any] = {"conf": conf, "builds": {}}
        for rows in given.feature_rows:
            log = Path(given.logs or scratch) / f"log-{rows}"
            if not log.exists():
                write_log(log, rows)
            builds: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
            for _ in range(given.builds):
                for name, tree in trees.items():
                    sys.stderr.write(f"{name}: {rows:,} rows\n")
                    builds[name].append(_build(tree, log, Path(scratch), conf))
            raw["builds"][str(rows)] = builds
    return Measured(_figures(raw["builds"]), raw)


def _build(tree: Path, log: Path, scratch: Path, conf: dict[str, str]) -> dict[str, float]:
    contract, report = scratch / "contract.yml", scratch / "report.json"
    # YAML reads JSON.
    contract.write_text(json.dumps(contract_of(log).model_dump(mode="json", by_alias=True)))
    with tempfile.TemporaryDirectory(prefix="warehouse-", dir=scratch) as warehouse:
        command = [
            sys.executable,
            str(Path(__file__).with_name("features_build.py")),
            str(tree),
            str(contract),
            warehouse,
            json.dumps(conf),
            str(report),
        ]
        environment = {**os.environ, "PYTHONPATH": str(tree), "PYSPARK_PYTHON": sys.executable}
        subprocess.run(command, check=True, cwd=scratch, env=environment, stdout=sys.stderr)
    found: dict[str, float] = json.loads(report.read_text())
    return found


@contextmanager
def _trees(against: str | None) -> Iterator[dict[str, Path]]:
    """This tree, and one of the commit to compare with."""
    if against is None:
        yield {"now": ROOT}
        return
    with tempfile.TemporaryDirectory(prefix="hinet-before-") as folder:
        before = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(before), against], check=True)
        try:
            yield {"before": before, "now": ROOT}
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)


def _figures(builds: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, Figure]:
    seconds = {
        int(rows): {name: [one["seconds"] for one in runs] for name, runs in variants.items()}
        for rows, variants in builds.items()
    }
    figures = {}
    if "before" in seconds.get(3_000_000, {}):
        figures["features_3e6"] = ratios(seconds[3_000_000]["now"], seconds[3_000_000]["before"])
    if {300_000, 3_000_000} <= set(seconds):
        per_row = {rows: [one / rows for one in seconds[rows]["now"]] for rows in (300_000, 3_000_000)}
        figures["features_per_row"] = ratios(per_row[3_000_000], per_row[300_000])
    return figures


def report(measured: Measured) -> str:
    """The figures as lines."""
    lines = [
        f"{int(rows):>11,} rows, {name:<6}: {one['seconds']:7.1f} s, {one['cpu_seconds']:7.1f} s of processors, "
        f"heap {one['heap_gib']:.1f} GiB"
        for rows, variants in measured.raw["builds"].items()
        for name, runs in variants.items()
        for one in runs
    ]
    return "\n".join(lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark, beside those of every run."""
    parser.add_argument(
        "--feature-rows", type=int, nargs="+", default=list(ROWS), help="impressions of the logs"
    )
    parser.add_argument("--against", metavar="COMMIT", help="build the same logs by this commit too")
    parser.add_argument("--builds", type=int, default=1, help="builds of each log by each commit")
    parser.add_argument("--logs", metavar="FOLDER", help="keep the logs here, and take those that are there")
    parser.add_argument(
        "--conf", action="append", default=[], metavar="KEY=VALUE", help="a setting of Spark; may be repeated"
    )


def main() -> None:
    given = start("features", __doc__, add_options)
    sys.stdout.write(report(measure(given)) + "\n")


if __name__ == "__main__":
    main()
