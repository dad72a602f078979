"""``make bench``: the benchmarks that need no data of others, the table of goals, and ``benchmarks/results.json``.

examples:
    python -m benchmarks
    python -m benchmarks --only train_throughput --scenarios 6 --results /tmp/results.json
    python -m benchmarks --only table_size --repeats 9

Each benchmark also runs by itself (``python -m benchmarks.train_throughput --help``). Goals of benchmarks that were not
run are left out. Quality on MovieLens-1M is measured by `benchmarks.movielens_1m`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import evaluation, loader, model_throughput, table_size, train_throughput
from benchmarks.goals import goals_table, judge
from benchmarks.machine import add_run_options, describe, prepare
from benchmarks.pairing import Measured

RESULTS = Path(__file__).with_name("results.json")


def _measure_loader(given: argparse.Namespace) -> Measured:
    return loader.measure(given.loader_rows, loader.ROW_GROUP, given.batch_size, loader.PACE)


BENCHMARKS: dict[str, tuple[Callable[[argparse.Namespace], Measured], Callable[[Measured], str]]] = {
    "loader": (_measure_loader, loader.report),
    "train_throughput": (train_throughput.measure, train_throughput.report),
    "table_size": (table_size.measure, table_size.report),
    "model_throughput": (model_throughput.measure, model_throughput.report),
    "evaluation": (evaluation.measure, evaluation.report),
}
"""By name: what measures, and what writes it as lines."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--results", type=Path, default=RESULTS, help="file that the run writes")
    parser.add_argument("--loader-rows", type=int, default=loader.ROWS)
    train_throughput.add_options(parser)
    table_size.add_options(parser)
    evaluation.add_options(parser)
    add_run_options(parser)
    given = parser.parse_args()
    prepare(given)
    machine = describe(given)
    sys.stdout.write("".join(f"{name}: {value}\n" for name, value in machine.items()))
    measured: dict[str, Measured] = {}
    # `only` names benchmarks here; the variants of train_throughput are all run.
    options = argparse.Namespace(**{**vars(given), "only": None})
    for name in given.only:
        measure, report = BENCHMARKS[name]
        measured[name] = measure(options)
        sys.stdout.write(f"\n{name}\n{report(measured[name])}\n")
        # Models of one benchmark are in each other's cycles; they must not weigh on the next one's memory.
        gc.collect()
    machine["load_average_after"] = round(os.getloadavg()[0], 2)
    if "train_throughput" in measured:
        machine["gflops_of_a_product"] = measured["train_throughput"].raw["gflops_of_a_product"]
    goals = judge({name: figure for one in measured.values() for name, figure in one.figures.items()})
    if goals:
        sys.stdout.write(f"\n{goals_table(goals)}\n")
    results = {"machine": machine, "goals": goals, "raw": {name: one.raw for name, one in measured.items()}}
    given.results.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"written to {given.results}\n")


if __name__ == "__main__":
    main()
