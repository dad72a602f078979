"""Pairing: variants timed in turn, so that what they are compared on met the same machine.

A repeat times one block of each variant, one after the other. A ratio is formed within each repeat; its value is the
median over the repeats, and the lowest and highest stay with it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

Contestant = Callable[[int], None]
"""Takes so many steps, and returns when they are done."""


@dataclass(frozen=True)
class Figure:
    """A measured value with what it was over the repeats.

    Args:
        value: Median of the repeats.
        low: Least.
        high: Greatest.
        note: What a reader of the value needs to know.
    """

    value: float
    low: float
    high: float
    note: str = ""

    @classmethod
    def of(cls, values: Sequence[float], note: str = "") -> Figure:
        """The figure of these repeats."""
        return cls(statistics.median(values), min(values), max(values), note)


@dataclass(frozen=True)
class Measured:
    """What a benchmark found.

    Args:
        figures: By name; `benchmarks.goals` has goals for some of them.
        raw: Settings and all measurements, for JSON.
    """

    figures: dict[str, Figure] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)


def ratios(numerator: Sequence[float], denominator: Sequence[float], note: str = "") -> Figure:
    """The ratio of two variants, repeat by repeat."""
    return Figure.of([a / b for a, b in zip(numerator, denominator, strict=True)], note)


def interleave(
    contestants: Mapping[str, Contestant], repeats: int, block_seconds: float, warmup_steps: int = 2
) -> dict[str, list[float]]:
    """Time every variant once per repeat.

    A block has as many steps as fit into ``block_seconds`` by the variant's last warm-up step, one at least.

    Args:
        contestants: The variants.
        repeats: Timed blocks of each.
        block_seconds: About how long a block is.
        warmup_steps: Steps before the first timed one, one at least.

    Returns:
        Seconds per step of each repeat.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    steps: dict[str, int] = {}
    with tqdm(total=(repeats + 1) * len(contestants), file=sys.stderr, unit="block") as bar:
        for name, contestant in contestants.items():
            bar.set_description(f"warm-up {name}")
            for _ in range(max(warmup_steps, 1)):
                last = _timed(contestant, 1)
            steps[name] = max(1, round(block_seconds / last))
            bar.update()
        for repeat in range(repeats):
            for name, contestant in contestants.items():
                bar.set_description(f"repeat {repeat + 1} {name}")
                seconds[name].append(_timed(contestant, steps[name]) / steps[name])
                bar.update()
    return seconds


def _timed(contestant: Contestant, steps: int) -> float:
    started = time.perf_counter()
    contestant(steps)
    return time.perf_counter() - started
