"""Training steps of every registered model, side by side, at the sizes of the MovieLens-1M studies.

examples:
    python -m benchmarks.model_throughput
    python -m benchmarks.model_throughput --threads 1 --repeats 9

Three scenarios, two tasks, seven id features of width 16, experts of 128-64, towers of 64: each model as
`docs/studies.md` has them compared on MovieLens-1M, joint, without dropout.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from typing import Any

from benchmarks.machine import start
from benchmarks.pairing import Contestant, Figure, Measured, interleave, ratios
from benchmarks.workload import OwnSteps, make_batches, make_layout
from hinet_model.models.build import build_model, num_dense_parameters
from hinet_model.models.registry import REGISTRY, read_settings

NUM_SCENARIOS, NUM_FIELDS, TABLE_ROWS, DISTINCT_BATCHES = 3, 7, 14_000, 8

SIZES: dict[str, dict[str, Any]] = {
    "pepnet": {"prior_features": ["id_0", "id_1"]},
    "ple": {"shared_experts": 1, "specific_experts": 1},
}
"""What a model needs beyond the defaults, as in the study."""


def measure(given: argparse.Namespace) -> Measured:
    """Run the benchmark."""
    layout = make_layout(NUM_SCENARIOS, TABLE_ROWS, NUM_FIELDS)
    batches = make_batches(layout, given.batch_size, DISTINCT_BATCHES, seed=0)
    contestants: dict[str, Contestant] = {}
    parameters: dict[str, int] = {}
    for name in REGISTRY:
        model = build_model(read_settings({"name": name, **SIZES.get(name, {})}), layout, seed=0)
        steps = OwnSteps(model, layout, batches, given.device, given.compile)
        contestants[name] = partial(steps.run, precision="fp32")
        parameters[name] = num_dense_parameters(model)
    seconds = interleave(contestants, given.repeats, given.block_seconds)
    against = {name: ratios(found, seconds["hinet"]) for name, found in seconds.items()}
    raw = {
        "batch_size": given.batch_size,
        "repeats": given.repeats,
        "dense_parameters": parameters,
        "seconds_per_step": seconds,
        "rows_per_second": {
            name: given.batch_size / statistics.median(found) for name, found in seconds.items()
        },
        "over_hinet": {name: _listed(figure) for name, figure in against.items()},
    }
    return Measured({}, raw)


def _listed(figure: Figure) -> list[float]:
    return [figure.value, figure.low, figure.high]


def report(measured: Measured) -> str:
    """The models as lines, fastest first."""
    lines = [f"{'model':<16}{'dense parameters':>18}{'rows/s':>10}{'seconds of a step over hinet':>32}"]
    rates = measured.raw["rows_per_second"]
    for name in sorted(rates, key=lambda name: -rates[name]):
        value, low, high = measured.raw["over_hinet"][name]
        lines.append(
            f"{name:<16}{measured.raw['dense_parameters'][name]:>18,}{rates[name]:>10,.0f}"
            f"{f'{value:.3f} ({low:.3f}..{high:.3f})':>32}"
        )
    return "\n".join(lines)


def main() -> None:
    given = start("model_throughput", __doc__)
    sys.stdout.write(report(measure(given)) + "\n")


if __name__ == "__main__":
    main()
