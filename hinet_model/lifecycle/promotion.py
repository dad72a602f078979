"""The promotion gate: may this challenger replace the champion? Pure decisions, no registry, no Spark.

The gate judges *cells*, one per scenario and task, and never their mean alone: a model that gains on the
large scenarios by losing a small one is refused. It is closed unless told otherwise: what cannot be
judged is pooled by a stated rule or refused, and named either way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import scipy.stats

from foundation.settings import UserError, suggestion
from hinet_model.lifecycle.evaluation import CHALLENGER, CHAMPION, Evaluation
from hinet_model.lifecycle.judging.judgements import Judgement
from hinet_model.lifecycle.policy import Policy

# 0.7 - 0.698 is a hair more than 0.002 in doubles: a bound of exactly the margin passes.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Comparison:
    """A cell, or a pool of cells of one task, against the champion and the floors.

    Attributes:
        cells: ``<scenario>/<task>`` of the cell, or of every cell of the pool.
        rows, positives: What it rests on.
        auc: The challenger's; of a pool the mean, cells weighing as many pairs of a positive and a negative as they
            have.
        change: Challenger less champion; ``None`` without a champion.
        bound: Lower bound of the change.
        power: Chance that an equal challenger passes.
        verdict: ``passed``, ``refused``, or why it is not judged by itself.
    """

    cells: tuple[str, ...]
    rows: int
    positives: int
    auc: float | None
    change: float | None
    bound: float | None
    power: float | None
    verdict: str

    @property
    def name(self) -> str:
        """The cell's name, or all of the pool's."""
        return " + ".join(self.cells)


@dataclass(frozen=True)
class Decision:
    """What the gate decided, and why.

    Attributes:
        promote: Whether the challenger may become champion.
        reasons: One line each: all that speaks against it, or, when promoted, what was checked.
        unjudged: Names of the cells that were too small to be judged by themselves.
        untrained: Names of the scenarios without training rows.
        comparisons: Every cell, then every pool.
    """

    promote: bool
    reasons: tuple[str, ...]
    unjudged: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    comparisons: tuple[Comparison, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)


def decide(evaluation: Evaluation, policy: Policy | None = None) -> Decision:
    """Judge the challenger cell by cell, against the champion where there is one.

    Args:
        evaluation: Of the challenger and, on the same rows, of the champion.
        policy: The rules; the defaults where ``None``.

    Returns:
        The decision with every reason at once, not only the first.

    Raises:
        UserError: The policy names a cell that the evaluation does not have.
    """
    policy = policy or Policy()
    cells = [cell for cell in evaluation.cells if CHALLENGER in cell.measures]
    names = [cell.name for cell in cells]
    unknown = [name for name in policy.cell_floors if name not in names]
    if unknown:
        raise UserError(
            "\n".join(f"cell_floors: there is no cell '{name}'{suggestion(name, names)}" for name in unknown)
        )
    if not cells:
        return Decision(promote=False, reasons=("the challenger has no evaluated cell",))
    gate = _Gate(policy, has_champion=evaluation.champion is not None)
    faults = [
        f"{cell.name}: the champion serves this cell, the challenger does not"
        for cell in evaluation.cells
        if CHAMPION in cell.measures and CHALLENGER not in cell.measures
    ]
    untrained = tuple(dict.fromkeys(cell.scenario for cell in cells if cell.training_rows == 0))
    if policy.untrained == "refuse":
        faults += [
            f"{scenario}: the challenger has no training row of this scenario" for scenario in untrained
        ]
    compared = [gate.compare([cell]) for cell in cells]
    pools, pool_faults = gate.pools(cells, compared)
    faults += [
        fault for cell, one in zip(cells, compared, strict=True) for fault in gate.faults_of(cell, one)
    ]
    faults += pool_faults + gate.harmed(cells, compared) + gate.lacking_gain(evaluation)
    unjudged = tuple(one.name for one in compared if one.verdict not in (_PASSED, _REFUSED))
    judged = len(compared) - len(unjudged)
    if faults:
        return Decision(False, tuple(faults), unjudged, untrained, (*compared, *pools))
    against = (
        "first version: floors and calibration only"
        if evaluation.champion is None
        else f"none shown to be able to lose more than {policy.margin:g} AUC against the champion"
    )
    passed = f"{judged} cells judged by themselves, {len(unjudged)} in pools; {against}"
    return Decision(True, (passed,), unjudged, untrained, (*compared, *pools))


_PASSED, _REFUSED = "passed", "refused"


@dataclass(frozen=True)
class _Gate:
    """The rules, applied to cells and pools."""

    policy: Policy
    has_champion: bool

    def compare(self, members: Sequence[Judgement]) -> Comparison:
        """One cell, or a pool."""
        rows, positives = sum(cell.rows for cell in members), sum(cell.positives for cell in members)
        aucs = [(_pairs(cell), cell.measure(CHALLENGER, "auc").value) for cell in members]
        auc = _mean((weight, value) for weight, value in aucs if value is not None)
        change, se = self._change(members)
        z = float(scipy.stats.norm.ppf(self.policy.confidence))
        bound = None if change is None or se is None else change - z * se
        power = None
        if se is not None:
            power = 1.0 if se == 0 else float(scipy.stats.norm.cdf(self.policy.margin / se - z))
        why = self._too_small(members, rows, positives, power)
        verdict = why or (_REFUSED if self._refused(members, auc, bound) else _PASSED)
        return Comparison(
            tuple(cell.name for cell in members), rows, positives, auc, change, bound, power, verdict
        )

    def _change(self, members: Sequence[Judgement]) -> tuple[float | None, float | None]:
        """Change in AUC and its standard error.

        Cells of a pool lie in different scenarios, so on different rows, but of the same users: where users count as
        what is independent, errors add up as they would at worst, as if all cells moved together.
        """
        by_user = self.policy.interval == "by_user"
        found = []
        for cell in members:
            change = cell.differences.get("auc_by_user" if by_user else "auc")
            if change is not None and change.value is not None and change.se is not None:
                found.append((_pairs(cell), change.value, change.se))
        if not found:
            return None, None
        total = sum(weight for weight, _, _ in found)
        value = sum(weight * value for weight, value, _ in found) / total
        errors = [weight * se for weight, _, se in found]
        return value, (sum(errors) if by_user else math.hypot(*errors)) / total

    def _compared(self, members: Sequence[Judgement]) -> bool:
        """Whether there is a champion's figure to compare with: a new cell is held to the floors alone."""
        return self.has_champion and any(CHAMPION in cell.measures for cell in members)

    def _too_small(self, members: Sequence[Judgement], rows: int, positives: int, power: float | None) -> str:
        policy = self.policy
        if rows < policy.min_rows or min(positives, rows - positives) < policy.min_positives:
            return (
                f"too small: {rows:,} rows, {positives:,} positives; wanted {policy.min_rows:,} rows, "
                f"{policy.min_positives:,} positives and as many negatives"
            )
        if self._compared(members) and power is not None and power < policy.min_power:
            return f"too little power: {power:.2f} of {policy.min_power:g}"
        return ""

    def _refused(self, members: Sequence[Judgement], auc: float | None, bound: float | None) -> bool:
        worse = self._compared(members) and (bound is None or bound < -self.policy.margin - _ROUNDING)
        return worse or bool(self._floor_faults(members, auc))

    def floor(self, name: str, metric: str) -> float | None:
        """The floor of a cell."""
        floors = self.policy.cell_floors.get(name, self.policy.floors)
        value: float | None = getattr(floors, metric)
        return value

    def _floor_faults(self, members: Sequence[Judgement], auc: float | None) -> list[str]:
        name = " + ".join(cell.name for cell in members)
        if auc is None:
            return [f"{name}: AUC is not defined"]
        floor = self.floor(members[0].name, "auc") if len(members) == 1 else self.policy.floors.auc
        found = []
        if floor is not None and auc < floor - _ROUNDING:
            found.append(f"{name}: AUC {auc:.4f} is below the floor of {floor:g}")
        if len(members) == 1:
            gauc, least = members[0].measure(CHALLENGER, "gauc").value, self.floor(name, "gauc")
            if least is not None and (gauc is None or gauc < least - _ROUNDING):
                shown = "not defined" if gauc is None else f"{gauc:.4f}"
                found.append(f"{name}: GAUC is {shown}; the floor is {least:g}")
        return found

    def faults_of(self, cell: Judgement, one: Comparison) -> list[str]:
        """What speaks against a cell by itself."""
        if one.verdict.startswith("too small"):
            return [] if self.policy.too_small == "pool" else [f"{cell.name}: {one.verdict}"]
        faults = self._floor_faults([cell], one.auc) + self._calibration_faults(cell)
        if one.verdict not in (_PASSED, _REFUSED):
            return faults + ([] if self.policy.too_small == "pool" else [f"{cell.name}: {one.verdict}"])
        return faults + self._change_faults([cell], one)

    def _change_faults(self, members: Sequence[Judgement], one: Comparison) -> list[str]:
        if not self._compared(members):
            return []
        if one.change is None or one.bound is None:
            return [f"{one.name}: no difference to the champion is defined"]
        if one.bound >= -self.policy.margin - _ROUNDING:
            return []
        opponent = _mean(
            (_pairs(cell), value)
            for cell in members
            if (value := cell.measure(CHAMPION, "auc").value) is not None
        )
        moved = f"{abs(one.change):.4f} {'below' if one.change < 0 else 'above'} the champion's {opponent or 0:.4f}"
        return [
            f"{one.name}: AUC {one.auc or 0:.4f} is {moved}; the true change may be {one.bound:+.4f} "
            f"({self.policy.confidence:.0%} bound), allowed {-self.policy.margin:+g}"
        ]

    def _calibration_faults(self, cell: Judgement) -> list[str]:
        bounds, faults = self.policy.calibration, []
        pcoc, ece = (cell.measure(CHALLENGER, name).value for name in ("pcoc", "ece"))
        if bounds.pcoc is not None and pcoc is not None and not bounds.pcoc[0] <= pcoc <= bounds.pcoc[1]:
            low, high = bounds.pcoc
            faults.append(f"{cell.name}: PCOC {pcoc:.3f} is outside {low:g} to {high:g}")
        if bounds.ece is not None and ece is not None and ece > bounds.ece:
            faults.append(f"{cell.name}: ECE {ece:.4f} is above {bounds.ece:g}")
        return faults

    def pools(
        self, cells: Sequence[Judgement], compared: Sequence[Comparison]
    ) -> tuple[list[Comparison], list[str]]:
        """The pools of cells that are too small, one per task, and what speaks against them."""
        if self.policy.too_small != "pool":
            return [], []
        pools, faults = [], []
        for task in dict.fromkeys(cell.task for cell in cells):
            of_task = [(cell, one) for cell, one in zip(cells, compared, strict=True) if cell.task == task]
            members = [cell for cell, one in of_task if one.verdict not in (_PASSED, _REFUSED)]
            others = [cell for cell, one in of_task if one.verdict in (_PASSED, _REFUSED)]
            if not members:
                continue
            # Smallest first: the pool shall speak for the small cells as far as it can.
            others.sort(key=lambda cell: cell.positives, reverse=True)
            pool = self.compare(members)
            while pool.verdict not in (_PASSED, _REFUSED) and others:
                members.append(others.pop())
                pool = self.compare(members)
            pools.append(pool)
            if pool.verdict not in (_PASSED, _REFUSED):
                faults.append(f"{pool.name}: cannot be judged, even together: {pool.verdict}")
            else:
                faults += self._floor_faults(members, pool.auc) + self._change_faults(members, pool)
        return pools, faults

    def harmed(self, cells: Sequence[Judgement], compared: Sequence[Comparison]) -> list[str]:
        """Cells of too little power that are worse than the margin all the same, beyond chance among them all."""
        tested = []
        for cell, one in zip(cells, compared, strict=True):
            if one.verdict.startswith("too little power"):
                change, se = self._change([cell])
                if change is not None and se:
                    tested.append((float(scipy.stats.norm.cdf((change + self.policy.margin) / se)), one))
        tested.sort(key=lambda pair: pair[0])
        faults = []
        for place, (p, one) in enumerate(tested):
            times = {"holm": len(tested) - place, "bonferroni": len(tested), "none": 1}[
                self.policy.multiplicity
            ]
            if p * times >= 1 - self.policy.confidence:
                break
            faults.append(
                f"{one.name}: AUC {one.auc or 0:.4f} is {-(one.change or 0):.4f} below the champion's, beyond chance "
                f"(p {p * times:.2g} after {self.policy.multiplicity} over {len(tested)} cells of too little power)"
            )
        return faults

    def lacking_gain(self, evaluation: Evaluation) -> list[str]:
        """What is lacking in the mean over all cells."""
        if not self.has_champion or self.policy.gain == "none":
            return []
        (overall,) = evaluation.of_kind("overall")
        change = overall.differences.get("auc")
        if change is None or change.value is None or change.se is None:
            return ["overall: the mean change in AUC is not defined, and a gain is wanted"]
        bound = change.value - float(scipy.stats.norm.ppf(self.policy.confidence)) * change.se
        if self.policy.gain == "point" and change.value <= 0:
            return [f"overall: the mean AUC changes by {change.value:+.4f}; a gain is wanted"]
        if self.policy.gain == "shown" and bound <= 0:
            return [
                f"overall: the mean AUC changes by {change.value:+.4f}, by its {self.policy.confidence:.0%} bound "
                f"{bound:+.4f}; a gain must be shown"
            ]
        return []


def _pairs(cell: Judgement) -> float:
    return float(cell.positives) * (cell.rows - cell.positives)


def _mean(weighted: Iterable[tuple[float, float]]) -> float | None:
    pairs = list(weighted)
    total = sum(weight for weight, _ in pairs)
    return sum(weight * value for weight, value in pairs) / total if total else None
