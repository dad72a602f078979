"""What building features and scoring cost: the table of goals, of a generated log of six scenarios.

examples:
    python -m benchmarks.features
    python -m benchmarks.features --figures before per_row --builds 1
    python -m benchmarks.features --figures day --large 300000
    python -m benchmarks.features --figures before --large 300000 --conf spark.driver.memory=4g

About so many minutes on two quiet cores for three repeats (one of `ten_million`); other sizes than these have no goals:

    before       40   builds of 3 x 10^6 impressions, by an earlier commit and by this one in turn
    per_row      15   builds of 3 x 10^6 and of 3 x 10^5 (those of `before` are not built again)
    ten_million  15   one build of 10^7 impressions
    day          35   nine days of 3 x 10^6 impressions, the tenth on top of them, and all ten at once
    scores       10   a build of 3 x 10^5 impressions and three epochs; ready rows and new requests scored in turn

Each build runs in a process of its own with the session that the job itself would start; its start is left out. The
earlier commit's own code builds the same log, from a work tree that is made for it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.features_log import contract_of, write_log
from benchmarks.goals import goals_table, judge
from benchmarks.machine import start
from benchmarks.pairing import Figure, Measured, ratios
from benchmarks.small_flow import write_settings
from benchmarks.workload import GOAL_MODEL

ROOT = Path(__file__).resolve().parents[1]
LARGE, SMALL, LARGEST = 3_000_000, 300_000, 10_000_000
FIGURES = ("before", "per_row", "ten_million", "day", "scores")
_BEFORE = "7184f2e"
_DAYS, _DAY, _ALL = ":2024-01-09", "2024-01-10:", ":"

Runs = dict[str, list[dict[str, float]]]
"""What was built -> seconds and more of each repeat."""


class _Bench:
    """Builds, in a scratch folder, with what they found.

    Args:
        given: Options of the run.
        scratch: Folder for logs, contracts and warehouses.
    """

    def __init__(self, given: argparse.Namespace, scratch: Path) -> None:
        self.given, self.scratch, self.runs = given, scratch, Runs()
        self.conf = dict(pair.partition("=")[::2] for pair in given.conf)

    def log(self, rows: int) -> Path:
        folder = Path(self.given.logs or self.scratch) / f"log-{rows}"
        if not folder.exists():
            write_log(folder, rows)
        return folder

    def build(
        self, name: str, rows: int, warehouse: Path, tree: Path = ROOT, dates: str | None = None
    ) -> None:
        """Build in a process of its own."""
        contract, report = self.scratch / "contract.yml", self.scratch / "report.json"
        described = contract_of(self.log(rows), by_date=dates is not None)
        # YAML reads JSON.
        contract.write_text(json.dumps(described.model_dump(mode="json", by_alias=True)))
        self.child(
            tree, "features_build.py", tree, contract, warehouse, json.dumps(self.conf), report, *filter(None, [dates])
        )  # fmt: skip
        self.runs.setdefault(name, []).append(json.loads(report.read_text()))

    def child(self, tree: Path, script: str | Path, *arguments: str | Path) -> None:
        """Run a script by the code of a tree: one of this folder by its name, or another by its whole path."""
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {script} {' '.join(map(str, arguments[1:3]))}\n")
        environment = {**os.environ, "PYTHONPATH": str(tree), "PYSPARK_PYTHON": sys.executable}
        command = [sys.executable, str(Path(__file__).parent / script), *map(str, arguments)]
        subprocess.run(command, check=True, cwd=self.scratch, env=environment, stdout=sys.stderr)

    @contextmanager
    def warehouse(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="warehouse-", dir=self.scratch) as folder:
            yield Path(folder)

    def seconds(self, name: str) -> list[float]:
        return [one["seconds"] for one in self.runs.get(name, [])]


def measure(given: argparse.Namespace) -> Measured:
    """Run the benchmark."""
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory(prefix="hinet-features-") as scratch:
        bench = _Bench(given, Path(scratch))
        if "before" in given.figures:
            figures |= _before(bench)
        if "per_row" in given.figures:
            figures |= _per_row(bench)
        if "ten_million" in given.figures:
            figures |= _ten_million(bench)
        if "day" in given.figures:
            figures |= _day(bench)
        rates: dict[str, list[float]] = {}
        if "scores" in given.figures:
            rates = _scores(bench)
            figures["requests"] = ratios(rates["requests"], rates["ready"])
            epochs = min(len(rates["ready"]), len(rates["training"]))
            figures["batch_scoring"] = ratios(rates["ready"][:epochs], rates["training"][:epochs])
        raw = {"conf": bench.conf, "builds": bench.runs, "rows_per_second": rates}
    return Measured(figures, raw)


def _before(bench: _Bench) -> dict[str, Figure]:
    rows = bench.given.large
    with _tree_of(bench.given.against) as before:
        for _ in range(bench.given.builds):
            for name, tree in (("before", before), ("now", ROOT)):
                with bench.warehouse() as warehouse:
                    bench.build(f"{rows:,} {name}", rows, warehouse, tree)
    figure = ratios(bench.seconds(f"{rows:,} now"), bench.seconds(f"{rows:,} before"))
    return {"features_3e6": figure} if rows == LARGE else {"before": figure}


def _per_row(bench: _Bench) -> dict[str, Figure]:
    large, small = bench.given.large, bench.given.small
    for rows in (large, small):
        while len(bench.seconds(f"{rows:,} now")) < bench.given.builds:
            with bench.warehouse() as warehouse:
                bench.build(f"{rows:,} now", rows, warehouse)
    of_large, of_small = (
        [one / rows for one in bench.seconds(f"{rows:,} now")[: bench.given.builds]]
        for rows in (large, small)
    )
    figure = ratios(of_large, of_small)
    return {"features_per_row" if (large, small) == (LARGE, SMALL) else "per_row": figure}


def _ten_million(bench: _Bench) -> dict[str, Figure]:
    rows = bench.given.largest
    with bench.warehouse() as warehouse:
        bench.build(f"{rows:,} now", rows, warehouse)
    found = bench.runs[f"{rows:,} now"][-1]
    figure = Figure.of([found["heap_gib"]], f"{found['seconds']:,.0f} s")
    return {"features_1e7" if rows == LARGEST else "heap": figure}


def _day(bench: _Bench) -> dict[str, Figure]:
    rows = bench.given.large
    for _ in range(bench.given.builds):
        with bench.warehouse() as warehouse:
            bench.build(f"{rows:,} nine days", rows, warehouse, dates=_DAYS)
            bench.build(f"{rows:,} the tenth day", rows, warehouse, dates=_DAY)
        with bench.warehouse() as warehouse:
            bench.build(f"{rows:,} ten days", rows, warehouse, dates=_ALL)
    figure = ratios(bench.seconds(f"{rows:,} the tenth day"), bench.seconds(f"{rows:,} ten days"))
    return {"features_day" if rows == LARGE else "day": figure}


def _scores(bench: _Bench) -> dict[str, list[float]]:
    """Rows per second of scoring ready rows and requests, and of training, for each repeat or epoch."""
    rows, threads = bench.given.small, len(os.sched_getaffinity(0))
    report = bench.scratch / "report.json"
    with bench.warehouse() as folder:
        bench.build(f"{rows:,} to score", rows, folder)
        # As many workers of one thread as scoring has tasks.
        settings = {"workers": threads, "threads_per_worker": 1, "epochs": 3, "batch_size": 4096}
        config = write_settings(
            folder / "train.yml", folder, f"sqlite:///{folder / 'mlflow.db'}", "measured", table="measured",
            model=GOAL_MODEL.model_dump(mode="json", exclude_unset=True),
            training={**settings, "lanes": 4 * threads},
        )  # fmt: skip
        bench.child(ROOT, ROOT / "jobs" / "train.py", "--config", config)
        impressions = bench.log(rows) / "impressions"
        bench.child(
            ROOT,
            "features_scores.py",
            config,
            impressions,
            folder / "scores",
            str(bench.given.builds),
            report,
        )
    found: dict[str, list[float]] = json.loads(report.read_text())
    return found


@contextmanager
def _tree_of(commit: str) -> Iterator[Path]:
    """A work tree of a commit."""
    folder = Path(tempfile.mkdtemp(prefix="hinet-before-"))
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder / "tree"), commit], check=True)
    try:
        yield folder / "tree"
    finally:
        subprocess.run([*git, "remove", "--force", str(folder / "tree")], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def report(measured: Measured) -> str:
    """What was measured, and the table of goals, as lines."""
    lines = [
        f"{name:<26}{one['seconds']:8.1f} s {one['cpu_seconds']:8.1f} s of processors, heap {one['heap_gib']:.1f} GiB"
        for name, runs in measured.raw["builds"].items()
        for one in runs
    ]
    lines += [
        f"{name:<26}" + " ".join(f"{rate:,.0f}" for rate in rates) + " rows/s"
        for name, rates in measured.raw["rows_per_second"].items()
    ]
    goals = judge(measured.figures)
    lines += [
        f"{name:<26}{figure.value:.3f} ({figure.low:.3f}..{figure.high:.3f}) {figure.note}"
        for name, figure in measured.figures.items()
        if name not in goals
    ]
    return "\n".join([*lines, *(["", goals_table(goals)] if goals else [])])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark, beside those of every run."""
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=list(FIGURES), help="default: all")
    parser.add_argument("--builds", type=int, default=3, help="repeats of each figure (%(default)s)")
    parser.add_argument("--large", type=int, default=LARGE, help="impressions of a large log (%(default)s)")
    parser.add_argument("--small", type=int, default=SMALL, help="impressions of a small log (%(default)s)")
    parser.add_argument("--largest", type=int, default=LARGEST, help="and of the largest (%(default)s)")
    parser.add_argument(
        "--against", metavar="COMMIT", default=_BEFORE, help="the earlier commit (%(default)s)"
    )
    parser.add_argument("--logs", metavar="FOLDER", help="keep the logs here, and take those that are there")
    parser.add_argument(
        "--conf", action="append", default=[], metavar="KEY=VALUE", help="a setting of Spark; may be repeated"
    )


def main() -> None:
    given = start("features", __doc__, add_options)
    sys.stdout.write(report(measure(given)) + "\n")


if __name__ == "__main__":
    main()
