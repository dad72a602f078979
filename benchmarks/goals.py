"""The goals: what the figures of the benchmarks are held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.pairing import Figure


@dataclass(frozen=True)
class Goal:
    """A bound on one figure.

    Args:
        name: Name of the figure.
        bound: What it should reach.
        at_least: True if more is better, False if less is.
        says: What the figure is.
    """

    name: str
    bound: float
    at_least: bool
    says: str

    def met(self, figure: Figure) -> bool:
        """Whether the figure's value reaches the bound."""
        return figure.value >= self.bound if self.at_least else figure.value <= self.bound


_FULL = "rows/s, full attention, the better of fp32 and bf16, over the reference in fp32"

GOALS = (
    Goal("speedup_6", 5.0, True, f"6 scenarios: {_FULL}"),
    Goal("speedup_6_fp32", 2.0, True, "6 scenarios: rows/s, full attention, both in fp32"),
    Goal("product_share_6_fp32", 0.65, True, "6 scenarios, fp32: share of the rate of a large fp32 product"),
    Goal("speedup_50", 5.0, True, f"50 scenarios: {_FULL}"),
    Goal("speedup_50_top4", 20.0, True, "50 scenarios: as before, but listening to four scenarios"),
    Goal(
        "flat_100", 1.5, False, "cost of a row, fp32: 100 scenarios listening to four over 6, full attention"
    ),
    Goal("table_1e7", 1.3, False, "seconds of a step: table of 10^7 rows over one of 10^4"),
    Goal(
        "judging_1e7",
        300.0,
        False,
        "seconds to judge 10^7 scored rows of two models: 6 x 2 cells, all intervals",
    ),
    Goal(
        "features_3e6",
        0.5,
        False,
        "seconds to build features of 3 x 10^6 impressions, over an earlier commit's",
    ),
    Goal(
        "features_per_row",
        1.0,
        False,
        "seconds per row: a build of 3 x 10^6 impressions over one of 3 x 10^5",
    ),
    Goal("features_1e7", 8.0, False, "GiB of heap that a build of 10^7 impressions takes"),
    Goal("features_day", 0.2, False, "seconds to add the last of ten days, over a build of all ten"),
    Goal("requests", 0.5, True, "rows/s of scoring requests with behaviour, over scoring ready rows"),
    Goal("batch_scoring", 2.5, True, "rows/s of scoring ready rows over those of training, same threads"),
)


def judge(figures: Mapping[str, Figure]) -> dict[str, dict[str, Any]]:
    """Every goal whose figure was measured: value, goal, met and spread, for JSON."""
    return {
        goal.name: {
            "value": figures[goal.name].value,
            "goal": f"{'>=' if goal.at_least else '<='} {goal.bound:g}",
            "met": goal.met(figures[goal.name]),
            "spread": [figures[goal.name].low, figures[goal.name].high],
            "says": goal.says,
            "note": figures[goal.name].note,
        }
        for goal in GOALS
        if goal.name in figures
    }


def goals_table(judged: Mapping[str, Mapping[str, Any]]) -> str:
    """The judged goals as lines: name, value, spread, goal, met."""
    lines = [f"{'goal':<22}{'value':>9}{'spread':>18}{'wanted':>10}  met"]
    for name, found in judged.items():
        low, high = found["spread"]
        spread = f"{low:.3f}..{high:.3f}"
        met = "yes" if found["met"] else "no"
        note = f"  ({found['note']})" if found["note"] else ""
        lines.append(f"{name:<22}{found['value']:>9.3f}{spread:>18}{found['goal']:>10}  {met}{note}")
    return "\n".join(lines)
