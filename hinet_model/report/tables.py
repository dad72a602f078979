"""Tables for a terminal: what a job prints when it is done."""

from __future__ import annotations

from collections.abc import Sequence

from hinet_model.lifecycle.evaluation import CHALLENGER, CHAMPION, UNCALIBRATED, CellResult, Evaluation
from hinet_model.lifecycle.judging.judgements import Judgement
from hinet_model.lifecycle.judging.measures import Measure
from hinet_model.lifecycle.promotion import Decision


def cells_table(cells: Sequence[CellResult]) -> str:
    """Scenario x task, as training validates them: rows, positives, AUC, log-loss.

    A metric that is not defined (one class only) is shown as ``-``.
    """
    lines = [["scenario", "task", "rows", "positives", "AUC", "log-loss"]]
    for cell in cells:
        counts = [f"{cell.rows:,}", f"{cell.positives:,}"]
        lines.append([cell.scenario, cell.task, *counts, _number(cell.auc), _number(cell.log_loss)])
    return aligned(lines, text_columns=2)


def judgements_table(evaluation: Evaluation) -> str:
    """Cells, slices and means: what they rest on, AUC with its interval, other metrics, the change to the champion.

    A metric that is not defined is shown as ``-``. PCOC and ECE of a calibrated challenger stand after those that
    it had before, as ``before>after``.
    """
    compared = evaluation.champion is not None
    header = [
        "scenario",
        "task",
        "rows",
        "positives",
        "users",
        "AUC",
        "95 %",
        "GAUC",
        "log-loss",
        "NE",
        "PCOC",
        "ECE",
    ]
    lines = [header + (["champion", "change", "95 %"] if compared else [])]
    for one in evaluation.judgements:
        auc = one.measure(CHALLENGER, "auc")
        line = [one.scenario, one.task, f"{one.rows:,}", f"{one.positives:,}", f"{one.users:,}"]
        line += [_number(auc.value), _interval(auc)]
        line += [
            _number(one.measure(CHALLENGER, name).value)
            for name in ("gauc", "log_loss", "normalised_entropy")
        ]
        line += [_calibrated(one, name) for name in ("pcoc", "ece")]
        if compared:
            change = one.differences.get("auc", Measure(None))
            line += [_number(one.measure(CHAMPION, "auc").value)]
            line += ["-" if change.value is None else f"{change.value:+.4f}", _interval(change, signed=True)]
        lines.append(line)
    return aligned(lines, text_columns=2)


def decision_table(decision: Decision) -> str:
    """What the gate made of each cell, and of each pool of cells that are too small by themselves."""
    lines = [["cells", "verdict", "rows", "positives", "AUC", "change", "bound", "power"]]
    for one in decision.comparisons:
        line = [
            one.name,
            one.verdict.partition(":")[0],
            f"{one.rows:,}",
            f"{one.positives:,}",
            _number(one.auc),
        ]
        line += ["-" if value is None else f"{value:+.4f}" for value in (one.change, one.bound)]
        lines.append([*line, "-" if one.power is None else f"{one.power:.2f}"])
    text = aligned(lines, text_columns=2)
    if decision.unjudged:
        text += f"\ntoo small to be judged by themselves: {', '.join(decision.unjudged)}"
    if decision.untrained:
        text += f"\nwithout training rows: {', '.join(decision.untrained)}"
    return text


def _calibrated(one: Judgement, metric: str) -> str:
    after = _number(one.measure(CHALLENGER, metric).value)
    if UNCALIBRATED not in one.measures:
        return after
    return f"{_number(one.measure(UNCALIBRATED, metric).value)}>{after}"


def _interval(measure: Measure, *, signed: bool = False) -> str:
    if measure.low is None or measure.high is None:
        return "-"
    sign = "+" if signed else ""
    return f"{measure.low:{sign}.4f}..{measure.high:{sign}.4f}"


def aligned(lines: Sequence[Sequence[str]], text_columns: int) -> str:
    """Lines of cells as text in columns; the first line is the header.

    Args:
        lines: Equally long.
        text_columns: How many columns from the left are text; the others are aligned to the right.
    """
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = [
        "  ".join(
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([shown[0], "-" * max(map(len, shown)), *shown[1:]])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
