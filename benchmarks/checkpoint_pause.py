"""What a checkpoint costs a run: how long training stands still for one, and how long it takes until it is whole.

examples:
    python -m benchmarks.checkpoint_pause --folder /data/scratch
    python -m benchmarks.checkpoint_pause --table-rows 1000000 --repeats 9

A table of 10^7 rows of width 16 with Adam's two moments: 1.9 GB in a file. Training stands still while the state is
copied in the host's memory (`checkpoint.background: true`), or until it is on the disk (`false`). Steps are timed
alone and while a checkpoint is written: they share memory and, for hashing and writing, a core.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from functools import partial

from benchmarks.machine import start
from benchmarks.workload import GOAL_MODEL, OwnSteps, build_ours, make_batches, make_layout
from hinet_model.training import checkpoint
from hinet_model.training.averaging import WeightAverage
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.saving import Writer
from hinet_model.training.state import RunState

NUM_SCENARIOS, DISTINCT_IDS, BATCHES = 6, 400, 8


def measure(given: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each kind, one for each repeat."""
    layout = make_layout(NUM_SCENARIOS, given.table_rows)
    batches = make_batches(layout, given.batch_size, BATCHES, seed=0, distinct=DISTINCT_IDS)
    steps = OwnSteps(build_ours(GOAL_MODEL, layout), layout, batches, given.device)
    state, progress = RunState(steps.parts, WeightAverage(steps.parts.model), {}), Progress()
    steps.run(3, precision="fp32")
    found: dict[str, list[float]] = {
        name: [] for name in ("pause", "whole after", "a step", "a step meanwhile")
    }
    for repeat in range(given.repeats):
        found["a step"].append(_seconds_per_step(steps, 5))
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            started = time.perf_counter()
            captured = state.capture(True, progress)
            writer = Writer(background=True)
            write = partial(checkpoint.write, folder, captured.state, captured.position)
            writer.start(write, progress.alive)
            found["pause"].append(time.perf_counter() - started)
            meanwhile = []
            while writer.busy:
                meanwhile.append(_seconds_per_step(steps, 1))
            writer.wait(progress.alive)
            found["whole after"].append(time.perf_counter() - started)
            found["a step meanwhile"].append(statistics.median(meanwhile or [float("nan")]))
        sys.stderr.write(f"{repeat + 1} of {given.repeats}\n")
    return found


def _seconds_per_step(steps: OwnSteps, count: int) -> float:
    started = time.perf_counter()
    steps.run(count, precision="fp32")
    return (time.perf_counter() - started) / count


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark, beside those of every run."""
    parser.add_argument("--table-rows", type=int, default=10_000_000)
    parser.add_argument("--folder", help="where to write; the system's temporary folder where left out")


def main() -> None:
    given = start("checkpoint_pause", __doc__, add_options)
    for name, seconds in measure(given).items():
        sys.stdout.write(
            f"{name:<18}{statistics.median(seconds):8.2f} s   ({min(seconds):.2f} to {max(seconds):.2f})\n"
        )


if __name__ == "__main__":
    main()
