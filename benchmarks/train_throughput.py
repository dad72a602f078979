"""Training steps of our HiNet and of a plain one, side by side, for few and for many scenarios.

examples:
    python -m benchmarks.train_throughput
    python -m benchmarks.train_throughput --scenarios 6 --only reference_fp32 full_fp32 --repeats 9
    python -m benchmarks.train_throughput --scenarios 6 --malloc system
    python -m benchmarks.train_throughput --device cuda --compile

A step is forward, loss, backward and optimiser on a batch of 4096 rows; the i-th scenario's share of them goes with
1/i, and each has one row at least. Goal sizes (`benchmarks.workload.GOAL_MODEL`), a table of 10^4 rows, no dropout.
Variants are timed in turn; the rate of a large matrix product is measured among them. Before that the reference
gets our weights, and both must give the same logits.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import flops
from benchmarks.machine import start
from benchmarks.pairing import Contestant, Figure, Measured, interleave, ratios
from benchmarks.workload import (
    GOAL_MODEL,
    TOP_FOUR,
    OwnSteps,
    ReferenceSteps,
    SquareProducts,
    build_ours,
    build_reference,
    largest_difference,
    make_batches,
    make_layout,
    sizes_of,
)
from hinet_model.models.build import num_parameters
from hinet_model.models.hinet import HiNetSizes

REFERENCE, OURS = "reference_fp32", {"full": GOAL_MODEL, "top4": TOP_FOUR}
VARIANTS = (REFERENCE, "full_fp32", "full_bf16", "top4_fp32", "top4_bf16")
PRODUCTS = {"product_fp32": torch.float32, "product_bf16": torch.bfloat16}
TABLE_ROWS, DISTINCT_BATCHES, CHECKED_ROWS = 10_000, 8, 512
TOLERANCE = 1e-5
"""How far a logit of the reference may be from ours, in fp32."""

LEAST_REFERENCE_SHARE = 0.4
"""A reference below this share of the machine's product rate would be too easy to beat."""


def variants_of(num_scenarios: int) -> tuple[str, ...]:
    """What is measured: nobody listens to four of six, and full attention over a hundred shows nothing new."""
    if num_scenarios <= 10:
        return VARIANTS[:3]
    return VARIANTS if num_scenarios <= 50 else VARIANTS[3:]


class _Scene:
    """Everything that is measured for one number of scenarios.

    Args:
        num_scenarios: Their number.
        given: Options of the run.
    """

    def __init__(self, num_scenarios: int, given: argparse.Namespace) -> None:
        self.num_scenarios = num_scenarios
        self.variants = [name for name in variants_of(num_scenarios) if not given.only or name in given.only]
        self.contestants: dict[str, Contestant] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.difference: float | None = None
        self._given = given
        self._layout = make_layout(num_scenarios, TABLE_ROWS)
        self._batches = make_batches(self._layout, given.batch_size, DISTINCT_BATCHES, seed=num_scenarios)
        if REFERENCE in self.variants:
            self._add_reference()
        for kind in OURS:
            precisions = [name for name in self.variants if name.startswith(f"{kind}_")]
            if precisions:
                self._add_ours(kind, precisions)

    def _add_reference(self) -> None:
        ours, sizes = build_ours(GOAL_MODEL, self._layout), sizes_of(GOAL_MODEL, self._layout)
        model = build_reference(ours, sizes, self._layout)
        (rows,) = make_batches(self._layout, max(CHECKED_ROWS, 2 * self.num_scenarios), 1, seed=1)
        self.difference = largest_difference(ours, model, rows)
        if self.difference > TOLERANCE:
            raise RuntimeError(
                f"{self.num_scenarios} scenarios: a logit of the reference is {self.difference:.1e} from ours; "
                f"expected at most {TOLERANCE:.0e}"
            )
        steps = ReferenceSteps(model, self._batches, self._given.device)
        operations = flops.reference_step(sizes, ours.embedding.out_dim, self._given.batch_size)
        self._add(REFERENCE, steps.run, operations, num_parameters(model))

    def _add_ours(self, kind: str, variants: Sequence[str]) -> None:
        # One model for both precisions: weights and optimiser are fp32 in either.
        model, sizes = build_ours(OURS[kind], self._layout), sizes_of(OURS[kind], self._layout)
        steps = OwnSteps(model, self._layout, self._batches, self._given.device, self._given.compile)
        operations = self._mean_step(sizes, model.embedding.out_dim)
        for name in variants:
            run = partial(steps.run, precision="bf16" if name.endswith("_bf16") else "fp32")
            self._add(name, run, operations, num_parameters(model))

    def _mean_step(self, sizes: HiNetSizes, in_dim: int) -> int:
        steps = [flops.own_step(sizes, in_dim, batch.scenario_counts) for batch in self._batches]
        return round(statistics.fmean(steps))

    def _add(self, name: str, run: Contestant, operations: int, parameters: int) -> None:
        key = f"{self.num_scenarios}/{name}"
        self.contestants[key] = run
        self.facts[key] = {"flops_per_step": operations, "parameters": parameters}


def measure(given: argparse.Namespace) -> Measured:
    """Run the benchmark."""
    contestants: dict[str, Contestant] = {
        name: SquareProducts(given.product_size, dtype, given.device).run for name, dtype in PRODUCTS.items()
    }
    facts: dict[str, dict[str, Any]] = {}
    differences: dict[str, float | None] = {}
    for num_scenarios in given.scenarios:
        scene = _Scene(num_scenarios, given)
        contestants |= scene.contestants
        facts |= scene.facts
        differences[str(num_scenarios)] = scene.difference
    seconds = interleave(contestants, given.repeats, given.block_seconds)
    operations = 2 * given.product_size**3
    rates = {name: [operations / second for second in seconds[name]] for name in PRODUCTS}
    variants = {key: _summary(seconds[key], fact, rates, given.batch_size) for key, fact in facts.items()}
    raw = {
        "batch_size": given.batch_size,
        "repeats": given.repeats,
        "compiled": given.compile,
        "table_rows": TABLE_ROWS,
        "gflops_of_a_product": {name: statistics.median(rate) / 1e9 for name, rate in rates.items()},
        "largest_difference_of_logits": differences,
        "variants": variants,
    }
    return Measured(_figures(seconds, facts, rates["product_fp32"]), raw)


def _summary(
    seconds: list[float], fact: dict[str, Any], rates: dict[str, list[float]], batch_size: int
) -> dict[str, Any]:
    """What the raw results say of a variant."""
    share = _share(seconds, fact["flops_per_step"], rates["product_fp32"])
    return {
        **fact,
        "seconds_per_step": seconds,
        "rows_per_second": batch_size / statistics.median(seconds),
        "share_of_fp32_product": [share.value, share.low, share.high],
    }


def _share(seconds: Sequence[float], operations: int, rates: Sequence[float]) -> Figure:
    """The step's operations per second over those of a large fp32 product, repeat by repeat."""
    return ratios([operations / second for second in seconds], rates)


def _figures(
    seconds: dict[str, list[float]], facts: dict[str, dict[str, Any]], fp32_rates: list[float]
) -> dict[str, Figure]:
    """The figures that goals are set for, as far as their variants were run."""
    figures: dict[str, Figure] = {}
    for name, scenarios, kind in (
        ("speedup_6", 6, "full"),
        ("speedup_50", 50, "full"),
        ("speedup_50_top4", 50, "top4"),
    ):
        slow = seconds.get(f"{scenarios}/{REFERENCE}")
        keys = [f"{scenarios}/{kind}_{precision}" for precision in ("fp32", "bf16")]
        found = [ratios(slow, seconds[key], key) for key in keys if slow and key in seconds]
        if found:
            figures[name] = max(found, key=lambda figure: figure.value)
    if {f"6/{REFERENCE}", "6/full_fp32"} <= seconds.keys():
        figures["speedup_6_fp32"] = ratios(seconds[f"6/{REFERENCE}"], seconds["6/full_fp32"])
    if "6/full_fp32" in seconds:
        operations = facts["6/full_fp32"]["flops_per_step"]
        figures["product_share_6_fp32"] = _share(seconds["6/full_fp32"], operations, fp32_rates)
        if "100/top4_fp32" in seconds:
            figures["flat_100"] = ratios(seconds["100/top4_fp32"], seconds["6/full_fp32"])
    return figures


def report(measured: Measured) -> str:
    """The variants as lines."""
    products = measured.raw["gflops_of_a_product"].items()
    lines = ["   ".join(f"{name}: {rate:,.0f} GFLOP/s" for name, rate in products)]
    lines.append(
        f"{'scenarios/variant':<24}{'s/step':>9}{'rows/s':>10}{'GFLOP':>9}{'share of fp32 product':>30}"
    )
    for key, found in measured.raw["variants"].items():
        value, low, high = found["share_of_fp32_product"]
        lines.append(
            f"{key:<24}{statistics.median(found['seconds_per_step']):>9.3f}{found['rows_per_second']:>10,.0f}"
            f"{found['flops_per_step'] / 1e9:>9.1f}{f'{value:.3f} ({low:.3f}..{high:.3f})':>30}"
        )
        if key.endswith(REFERENCE) and value < LEAST_REFERENCE_SHARE:
            lines.append(
                f"  the reference is below {LEAST_REFERENCE_SHARE:.0%} of the product's rate: no fair yardstick"
            )
    return "\n".join(lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark, beside those of every run."""
    parser.add_argument("--scenarios", type=int, nargs="+", default=[6, 50, 100])
    parser.add_argument("--product-size", type=int, default=4096, help="rows and columns of the product")


def _add_variants(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="variants; all if left out")


def main() -> None:
    given = start("train_throughput", __doc__, add_options, _add_variants)
    measured = measure(given)
    sys.stdout.write(report(measured) + "\n")
    for name, figure in measured.figures.items():
        sys.stdout.write(f"{name}: {figure.value:.3f} ({figure.low:.3f}..{figure.high:.3f}) {figure.note}\n")


if __name__ == "__main__":
    main()
