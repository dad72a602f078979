"""Tables for a terminal: what a job prints when it is done."""

from __future__ import annotations

from collections.abc import Sequence

from hinet_model.lifecycle.promotion import CellResult


def cells_table(cells: Sequence[CellResult], champion: Sequence[CellResult] | None = None) -> str:
    """Scenario x task: rows, positives, AUC, log-loss; with a champion, its AUC and the difference.

    A metric that is not defined (one class only) is shown as ``-``.
    """
    opponents = {cell.name: cell for cell in champion or ()}
    header = ["scenario", "task", "rows", "positives", "AUC", "log-loss"]
    if champion is not None:
        header += ["champion", "change"]
    lines = [header]
    for cell in cells:
        line = [cell.scenario, cell.task, f"{cell.rows:,}", f"{cell.positives:,}"]
        line += [_number(cell.auc), _number(cell.log_loss)]
        if champion is not None:
            opponent = opponents.get(cell.name)
            other = opponent.auc if opponent is not None else None
            change = None if cell.auc is None or other is None else cell.auc - other
            line += [_number(other), "-" if change is None else f"{change:+.4f}"]
        lines.append(line)
    return aligned(lines, text_columns=2)


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
