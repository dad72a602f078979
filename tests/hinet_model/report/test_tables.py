"""The tables show what is defined, and a dash for what is not."""

from __future__ import annotations

from evaluations import cell, evaluation

from hinet_model.lifecycle.evaluation import CellResult
from hinet_model.lifecycle.promotion import decide
from hinet_model.report.tables import cells_table, decision_table, judgements_table

CELLS = [CellResult("young", "click", 12345, 678, 0.81234, 0.5), CellResult("old", "click", 3, 0, None, None)]


def test_every_cell_has_a_line_with_counts_and_metrics() -> None:
    lines = cells_table(CELLS).splitlines()
    assert lines[0].split() == ["scenario", "task", "rows", "positives", "AUC", "log-loss"]
    assert lines[2].split() == ["young", "click", "12,345", "678", "0.8123", "0.5000"]
    assert lines[3].split() == ["old", "click", "3", "0", "-", "-"]


def test_a_champion_adds_its_auc_and_the_change() -> None:
    judged = evaluation(
        [cell("young/click", 0.81234, 0.82), cell("old/click", None, rows=3, positives=0)], champion="1"
    )
    lines = judgements_table(judged).splitlines()
    assert lines[0].split()[-4:] == ["champion", "change", "95", "%"]
    assert lines[2].split()[:6] == ["young", "click", "10,000", "4,000", "500", "0.8123"]
    assert lines[2].split()[-3:] == ["0.8200", "-0.0077", "-"]
    assert lines[3].split()[-3:] == ["-", "-", "-"]


def test_a_decision_shows_cells_pools_and_who_is_too_small() -> None:
    decision = decide(evaluation([cell("a/click", 0.7), cell("b/click", 0.8, positives=12, training_rows=0)]))
    lines = decision_table(decision).splitlines()
    assert lines[2].split() == ["a/click", "passed", "10,000", "4,000", "0.7000", "-", "-", "-"]
    assert any(line.startswith("b/click + a/click") for line in lines)
    assert lines[-2:] == ["too small to be judged by themselves: b/click", "without training rows: b"]
