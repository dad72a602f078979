"""The table of cells shows what is defined, and a dash for what is not."""

from __future__ import annotations

from hinet_model.lifecycle.promotion import CellResult
from hinet_model.report.tables import cells_table

CELLS = [CellResult("young", "click", 12345, 678, 0.81234, 0.5), CellResult("old", "click", 3, 0, None, None)]


def test_every_cell_has_a_line_with_counts_and_metrics() -> None:
    lines = cells_table(CELLS).splitlines()
    assert lines[0].split() == ["scenario", "task", "rows", "positives", "AUC", "log-loss"]
    assert lines[2].split() == ["young", "click", "12,345", "678", "0.8123", "0.5000"]
    assert lines[3].split() == ["old", "click", "3", "0", "-", "-"]


def test_a_champion_adds_its_auc_and_the_change() -> None:
    champion = [CellResult("young", "click", 12345, 678, 0.82, 0.5)]
    lines = cells_table(CELLS, champion).splitlines()
    assert lines[2].split()[-2:] == ["0.8200", "-0.0077"]
    assert lines[3].split()[-2:] == ["-", "-"]
