"""What there is to learn and to judge: rows, labels and label 1 per scenario and split, before training is paid for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from feature_eng.contract import SPLITS, Contract, ContractError
from feature_eng.digests import digest_of
from feature_eng.events import column
from feature_eng.snapshot import CellCount

Tally = Mapping[str, Any]
"""What was counted of a scenario in a split, of all rows or of some: numbers that add up, and two names."""


def tally(examples: DataFrame, contract: Contract, *by: str) -> list[Tally]:
    """Count every scenario in every split, and digest its rows.

    Args:
        examples: The rows.
        contract: Names tasks and weights.
        by: Columns by which rows are counted apart.
    """
    tasks = contract.task_names
    counts = [F.count(f"label__{task}").alias(f"labels__{task}") for task in tasks]
    counts += [F.sum(f"label__{task}").alias(f"positives__{task}") for task in tasks]
    if contract.has_row_weights:
        counts.append(F.sum("row_weight").alias("trained_weight"))
    if contract.weight is not None:
        counts.append(F.sum(column(contract.weight)).alias("weight"))
    counts.append(digest_of(examples, sorted(examples.columns)).alias("digest"))
    counted = examples.groupBy(*by, "scenario", "split").agg(F.count("*").alias("rows"), *counts)
    return [{**row.asDict(), "digest": int(row["digest"])} for row in counted.collect()]


def count_cells(examples: DataFrame, contract: Contract) -> tuple[list[CellCount], str]:
    """Count every scenario in every split: `add_up` of one tally."""
    return add_up(tally(examples, contract), contract)


def add_up(tallies: Sequence[Tally], contract: Contract) -> tuple[list[CellCount], str]:
    """Cells; and the data's version, a digest of all rows.

    The digest does not depend on the order of rows: equal data have an equal version.

    Returns:
        Cells in the contract's order: the splits that it wants, rows or not, then those of rows in none.
    """
    tasks = contract.task_names
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in tallies:
        cell = found.setdefault((one["scenario"], one["split"]), {})
        for name in one.keys() - {"scenario", "split"}:
            cell[name] = cell.get(name, 0) + (one[name] or 0)
    in_none = sorted({split for _, split in found} - set(SPLITS))
    cells = []
    for scenario in contract.scenario_names:
        for split in (*SPLITS, *in_none):
            row = found.get((scenario, split))
            if row is None and split not in contract.split.wanted:
                continue
            row = row or {}
            rows = row.get("rows", 0)
            weight = float(row.get("weight", rows))
            cells.append(
                CellCount(
                    scenario,
                    split,
                    rows,
                    tuple(row.get(f"labels__{task}", 0) for task in tasks),
                    tuple(row.get(f"positives__{task}", 0) for task in tasks),
                    weight=weight,
                    trained_weight=float(row.get("trained_weight", weight)),
                )
            )
    return cells, f"{sum(one['digest'] for one in tallies) % 2**64:016x}"


def check_splits(cells: Sequence[CellCount], contract: Contract) -> None:
    """Stop where a split that the contract wants has no rows, or the training rows weigh nothing.

    Raises:
        ContractError: One line, with what rows there are.
    """
    rows: dict[str, int] = {}
    for cell in cells:
        rows[cell.split] = rows.get(cell.split, 0) + cell.rows
    empty = [split for split in contract.split.wanted if not rows.get(split)]
    if empty:
        there_are = ", ".join(f"{split} {count:,}" for split, count in rows.items())
        column = contract.split.column
        what = {"dates": "dates", "column": f"values of {column!r}"}.get(contract.split.method, "fractions")
        raise ContractError(
            [
                f"split: no rows in {' and '.join(empty)} (rows: {there_are}); expected other {what}, or more data"
            ]
        )
    if sum(cell.trained_weight for cell in cells if cell.split == "train") <= 0:
        raise ContractError(
            [f"weight: every training row weighs 0 in '{contract.weight}'; expected some above 0"]
        )


def cells_rows(
    cells: Sequence[CellCount], task_names: Sequence[str]
) -> tuple[list[str], list[tuple[object, ...]]]:
    """Header and lines of a table of the cells; with the number of labels where some are missing."""
    partial = [
        place for place in range(len(task_names)) if any(cell.labels[place] != cell.rows for cell in cells)
    ]
    header = ["scenario", "split", "rows", *(f"{task} = 1" for task in task_names)]
    header += [f"{task_names[place]} labels" for place in partial]
    lines: list[tuple[object, ...]] = [
        (cell.scenario, cell.split, cell.rows, *cell.positives, *(cell.labels[place] for place in partial))
        for cell in cells
    ]
    return header, lines


def blind_spots(cells: Sequence[CellCount], contract: Contract) -> list[tuple[str, str, str, str]]:
    """Scenario, task, split and reason of what training cannot learn, or what metrics cannot judge."""
    return [
        (cell.scenario, name, cell.split, reason)
        for cell in cells
        if cell.split in SPLITS
        for place, (name, task) in enumerate(contract.tasks.items())
        if task.scenarios is None or cell.scenario in task.scenarios
        for reason in _reasons(cell, place)
    ]


def _reasons(cell: CellCount, place: int) -> Iterator[str]:
    outcome = "learned from other scenarios alone" if cell.split == "train" else "not judged"
    if cell.rows == 0:
        yield f"no rows: {outcome}"
    elif cell.labels[place] == 0:
        yield f"no labels: {outcome}"
    elif cell.positives[place] == 0:
        yield "label 1 never occurs: " + ("not learned" if cell.split == "train" else "AUC not defined")
    elif cell.positives[place] == cell.labels[place]:
        yield "label 0 never occurs: " + ("not learned" if cell.split == "train" else "AUC not defined")
