"""What a training step costs as the embedding table grows: 10^4, 10^6 and 10^7 rows of width 16.

examples:
    python -m benchmarks.table_size
    python -m benchmarks.table_size --table-rows 10000 10000000 --repeats 9

Six scenarios and the goal sizes. Every batch touches equally many distinct ids whatever the table's size, drawn anew
uniformly over the whole table, and there are enough batches that rows are rarely still in a cache from the last
time. The largest table and its two moments take 1.9 GB.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial

import psutil

from benchmarks.machine import start
from benchmarks.pairing import Contestant, Measured, interleave, ratios
from benchmarks.workload import GOAL_MODEL, NUM_FIELDS, OwnSteps, build_ours, make_batches, make_layout

NUM_SCENARIOS, DISTINCT_BATCHES = 6, 48
SMALLEST, LARGEST = 10_000, 10_000_000


def measure(given: argparse.Namespace) -> Measured:
    """Run the benchmark."""
    contestants: dict[str, Contestant] = {}
    touched: dict[str, int] = {}
    for rows in given.table_rows:
        layout = make_layout(NUM_SCENARIOS, rows)
        batches = make_batches(
            layout, given.batch_size, DISTINCT_BATCHES, seed=0, distinct=min(given.distinct, given.batch_size)
        )
        steps = OwnSteps(build_ours(GOAL_MODEL, layout), layout, batches, given.device, given.compile)
        contestants[str(rows)] = partial(steps.run, precision="fp32")
        touched[str(rows)] = len(batches[0].unique_ids)
    memory = psutil.Process().memory_info().rss
    seconds = interleave(contestants, given.repeats, given.block_seconds)
    smallest = seconds[str(min(given.table_rows))]
    against = {rows: ratios(found, smallest) for rows, found in seconds.items()}
    raw = {
        "batch_size": given.batch_size,
        "repeats": given.repeats,
        "distinct_ids_per_step": touched,
        "resident_gib_before_the_steps": round(memory / 2**30, 2),
        "seconds_per_step": seconds,
        "over_the_smallest": {rows: [f.value, f.low, f.high] for rows, f in against.items()},
    }
    goal = {SMALLEST, LARGEST} <= set(given.table_rows)
    return Measured({"table_1e7": against[str(LARGEST)]} if goal else {}, raw)


def report(measured: Measured) -> str:
    """The tables as lines."""
    lines = [f"{'rows of the table':>18}{'distinct ids':>14}{'s/step':>9}{'over the smallest':>30}"]
    for rows, found in measured.raw["seconds_per_step"].items():
        value, low, high = measured.raw["over_the_smallest"][rows]
        lines.append(
            f"{int(rows):>18,}{measured.raw['distinct_ids_per_step'][rows]:>14,}{statistics.median(found):>9.3f}"
            f"{f'{value:.3f} ({low:.3f}..{high:.3f})':>30}"
        )
    return "\n".join(lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark, beside those of every run."""
    parser.add_argument("--table-rows", type=int, nargs="+", default=[SMALLEST, 1_000_000, LARGEST])
    parser.add_argument(
        "--distinct", type=int, default=400, help=f"distinct ids of each of {NUM_FIELDS} features in a batch"
    )


def main() -> None:
    given = start("table_size", __doc__, add_options)
    sys.stdout.write(report(measure(given)) + "\n")


if __name__ == "__main__":
    main()
