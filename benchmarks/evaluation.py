"""What judging costs: all metrics with intervals, two models, six scenarios and two tasks, on Spark.

examples:
    python -m benchmarks.evaluation
    python -m benchmarks.evaluation --evaluation-rows 1000000

The rows are scored already, as one scoring pass leaves them: scenario, user, list, two labels, and two models'
probabilities for each. A quarter of a million users per 10^7 rows; half of the rows lie in the first scenario; one
label in fifty is positive. Spark runs with as many cores as the process may use, and 4 GiB of heap.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.machine import start
from benchmarks.pairing import Figure, Measured
from hinet_model.lifecycle.judging.aggregation import aggregate
from hinet_model.lifecycle.judging.counting import Columns
from hinet_model.lifecycle.judging.measures import differences, measures
from hinet_model.lifecycle.judging.sums import Shape

NUM_SCENARIOS, TASKS, CONTESTANTS = 6, ("click", "order"), ("challenger", "champion")
GOAL_ROWS = 10_000_000
HEAP = "4g"
_SHARES = (0.5, 0.2, 0.1, 0.1, 0.07, 0.03)
COLUMNS = Columns(
    strata=("scenario_index",),
    labels=tuple(f"label__{task}" for task in TASKS),
    scores=tuple(tuple(f"{task}__{name}" for name in CONTESTANTS) for task in TASKS),
    user="user_id",
    listed="request_id",
)


@dataclass(frozen=True)
class ScoredRows:
    """Row numbers -> scored rows, drawn anew for each batch.

    Args:
        users: Users that rows are spread over.
    """

    users: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            number = batch.column("id").to_numpy()
            draw = np.random.default_rng(int(number[0]))
            rows = len(number)
            columns: dict[str, Any] = {
                "scenario_index": draw.choice(NUM_SCENARIOS, rows, p=_SHARES).astype(np.int32),
                "user_id": draw.integers(0, self.users, rows),
                "request_id": number // 10,
            }
            for task in TASKS:
                logit = draw.normal(-4.4, 1.0, rows)
                columns[f"label__{task}"] = (draw.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int32)
                for name in CONTESTANTS:
                    seen = logit + draw.normal(0, 1.0, rows)
                    columns[f"{task}__{name}"] = (
                        (1 / (1 + np.exp(-seen))).astype(np.float32).astype(np.float64)
                    )
            yield pa.RecordBatch.from_pydict(columns)


def measure(given: argparse.Namespace) -> Measured:
    """Run the benchmark."""
    from foundation.session import build_session

    rows, cores = given.evaluation_rows, len(os.sched_getaffinity(0))
    spark = build_session("benchmark", {"spark.master": f"local[{cores}]", "spark.driver.memory": HEAP})
    pools = spark._jvm.java.lang.management.ManagementFactory.getMemoryPoolMXBeans()
    shape = Shape(contestants=len(CONTESTANTS), lists_at=10)
    schema = "scenario_index int, user_id long, request_id long"
    schema += "".join(f", label__{t} int" + "".join(f", {t}__{c} double" for c in CONTESTANTS) for t in TASKS)
    try:
        with tempfile.TemporaryDirectory(prefix="hinet-benchmark-") as folder:
            place = str(Path(folder) / "scored")
            made = spark.range(0, rows, numPartitions=8).mapInArrow(ScoredRows(max(1, rows // 40)), schema)
            made.write.parquet(place)
            for pool in pools:
                pool.resetPeakUsage()
            started = time.monotonic()
            totals = aggregate(spark.read.parquet(place), COLUMNS, shape)
            judged = {
                cell: [measures(sums, shape, 0), measures(sums, shape, 1), differences(sums, shape, 0, 1)]
                for cell, sums in totals.cells.items()
            }
            seconds = time.monotonic() - started
        heap = (
            sum(pool.getPeakUsage().getUsed() for pool in pools if str(pool.getType().name()) == "HEAP")
            / 2**30
        )
    finally:
        spark.stop()
    auc = judged[0][0]["auc"]
    raw = {
        "rows": rows,
        "cores": cores,
        "cells": len(judged),
        "seconds": seconds,
        "heap_gib": round(heap, 2),
        "auc_of_the_first_cell": [auc.low, auc.value, auc.high],
    }
    figures = {"judging_1e7": Figure.of([seconds], f"heap {heap:.1f} GiB")} if rows == GOAL_ROWS else {}
    return Measured(figures, raw)


def report(measured: Measured) -> str:
    """The figures as lines."""
    raw = measured.raw
    low, value, high = raw["auc_of_the_first_cell"]
    return (
        f"{raw['rows']:,} rows, {raw['cells']} cells, {raw['cores']} cores: {raw['seconds']:.0f} s, "
        f"heap {raw['heap_gib']} GiB; AUC of the first cell {value:.5f} ({low:.5f} to {high:.5f})"
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark, beside those of every run."""
    parser.add_argument("--evaluation-rows", type=int, default=GOAL_ROWS, help="rows that are judged")


def main() -> None:
    given = start("evaluation", __doc__, add_options)
    sys.stdout.write(report(measure(given)) + "\n")


if __name__ == "__main__":
    main()
