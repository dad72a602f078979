"""The promotion gate: may this challenger replace the champion? Pure decisions, no registry, no Spark.

The gate judges *cells*, one per scenario and task, and never their mean: a model that gains on the
large scenarios by losing a small one is refused. It is closed unless told otherwise: what cannot be
judged (an undefined AUC, other test rows, a missing cell) is a reason to refuse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# 0.7 - 0.698 is a hair more than 0.002 in doubles: a loss of exactly the tolerance passes.
ROUNDING = 1e-9


@dataclass(frozen=True)
class CellResult:
    """How one model did on the test rows of one scenario and one task.

    Attributes:
        scenario: Name of the scenario.
        task: Name of the task.
        rows: Test rows of the scenario.
        positives: Rows among them whose label is 1.
        auc: Exact area under the ROC curve, or ``None`` where it is not defined (one class, no rows).
        log_loss: Mean log-loss in nats, or ``None`` without rows.
    """

    scenario: str
    task: str
    rows: int
    positives: int
    auc: float | None
    log_loss: float | None

    @property
    def name(self) -> str:
        """``<scenario>/<task>``, as in the metric names."""
        return f"{self.scenario}/{self.task}"

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict, read back by :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> CellResult:
        """Rebuild a cell from :meth:`to_json`'s dict."""
        return cls(**fields)


@dataclass(frozen=True)
class GateRules:
    """What a challenger must meet.

    Attributes:
        min_auc: Every judged cell's AUC must be at least this (0.5 is a coin).
        tolerance: How much AUC a cell may lose against the champion.
        min_class_rows: A cell with fewer positives, or fewer negatives, is too small to be judged: it
            is named in the decision and neither refuses nor supports the challenger.
    """

    min_auc: float = 0.55
    tolerance: float = 0.002
    min_class_rows: int = 10


@dataclass(frozen=True)
class Decision:
    """What the gate decided, and why.

    Attributes:
        promote: Whether the challenger may become champion.
        reasons: One line each: all that speaks against it, or, when promoted, what was checked.
        unjudged: Names of the cells that were too small to be judged.
    """

    promote: bool
    reasons: tuple[str, ...]
    unjudged: tuple[str, ...] = ()


def decide(
    challenger: Sequence[CellResult],
    champion: Sequence[CellResult] | None,
    rules: GateRules | None = None,
) -> Decision:
    """Judge the challenger cell by cell, against the champion where there is one.

    Args:
        challenger: The challenger's cells on the frozen test rows.
        champion: The champion's cells on the *same* rows; ``None`` for a first version, which is then
            held to the absolute threshold alone.
        rules: The thresholds; the defaults where ``None``.

    Returns:
        The decision with every reason at once, not only the first.
    """
    rules = rules or GateRules()
    if not challenger:
        return Decision(promote=False, reasons=("the challenger has no evaluated cell",))
    opponents = {cell.name: cell for cell in champion} if champion is not None else None
    faults: list[str] = []
    unjudged: list[str] = []
    judged = 0
    if opponents is not None:
        gone = sorted(set(opponents) - {cell.name for cell in challenger})
        faults += [f"{name}: the champion serves this cell, the challenger does not" for name in gone]
    for cell in challenger:
        opponent = opponents.get(cell.name) if opponents is not None else None
        if opponent is not None and (opponent.rows, opponent.positives) != (cell.rows, cell.positives):
            faults.append(
                f"{cell.name}: not the same test rows: {cell.rows} rows with {cell.positives} positives "
                f"against the champion's {opponent.rows} with {opponent.positives}"
            )
            continue
        if min(cell.positives, cell.rows - cell.positives) < rules.min_class_rows:
            unjudged.append(cell.name)
            continue
        judged += 1
        faults += _faults_of(cell, opponent, rules)
    if not judged:
        faults.append(
            f"no cell could be judged: each has fewer than {rules.min_class_rows} positives or negatives"
        )
    if faults:
        return Decision(promote=False, reasons=tuple(faults), unjudged=tuple(unjudged))
    against = (
        "first version: absolute threshold only"
        if opponents is None
        else f"no cell worse than the champion's by more than {rules.tolerance:g} AUC"
    )
    passed = f"all {judged} judged cells at AUC {rules.min_auc:g} or more; {against}"
    return Decision(promote=True, reasons=(passed,), unjudged=tuple(unjudged))


def _faults_of(cell: CellResult, opponent: CellResult | None, rules: GateRules) -> list[str]:
    """What speaks against one judged cell."""
    if cell.auc is None or not math.isfinite(cell.auc):
        return [f"{cell.name}: AUC is not defined"]
    faults = []
    if cell.auc < rules.min_auc:
        faults.append(f"{cell.name}: AUC {cell.auc:.4f} is below the floor of {rules.min_auc:g}")
    if (
        opponent is not None
        and opponent.auc is not None
        and opponent.auc - cell.auc > rules.tolerance + ROUNDING
    ):
        faults.append(
            f"{cell.name}: AUC {cell.auc:.4f} is {opponent.auc - cell.auc:.4f} below the champion's "
            f"{opponent.auc:.4f}; allowed {rules.tolerance:g}"
        )
    return faults
