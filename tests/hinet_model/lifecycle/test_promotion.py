"""The gate refuses whatever gets worse in any cell, and whatever it cannot judge."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hinet_model.lifecycle.promotion import CellResult, GateRules, decide

RULES = GateRules(min_auc=0.6, tolerance=0.002, min_class_rows=10)


def cells(*aucs: float | None) -> list[CellResult]:
    return [CellResult(f"s{i}", "click", 1000, 400, auc, 0.6) for i, auc in enumerate(aucs)]


def test_a_first_version_needs_the_floor_alone() -> None:
    decision = decide(cells(0.6, 0.7), None, RULES)
    assert decision.promote
    assert "first version" in decision.reasons[0]


def test_a_first_version_below_the_floor_is_refused_by_cell() -> None:
    decision = decide(cells(0.59, 0.7), None, RULES)
    assert not decision.promote
    assert decision.reasons == ("s0/click: AUC 0.5900 is below the floor of 0.6",)


def test_one_worse_cell_refuses_however_much_the_others_gain() -> None:
    decision = decide(cells(0.9, 0.9, 0.697), cells(0.7, 0.7, 0.7), RULES)
    assert not decision.promote
    assert len(decision.reasons) == 1
    assert decision.reasons[0].startswith("s2/click")


def test_a_loss_within_the_tolerance_passes() -> None:
    assert decide(cells(0.7, 0.6985), cells(0.7, 0.7), RULES).promote


def test_every_fault_is_reported_at_once() -> None:
    decision = decide(cells(0.5, 0.5), cells(0.7, 0.7), RULES)
    assert len(decision.reasons) == 4


def test_other_test_rows_are_refused() -> None:
    champion = [replace(cell, rows=999) for cell in cells(0.5, 0.5)]
    decision = decide(cells(0.9, 0.9), champion, RULES)
    assert not decision.promote
    assert "not the same test rows" in decision.reasons[0]


def test_a_cell_the_challenger_lacks_is_refused() -> None:
    decision = decide(cells(0.9), cells(0.7, 0.7), RULES)
    assert not decision.promote
    assert "s1/click" in decision.reasons[0]


def test_a_new_cell_is_held_to_the_floor() -> None:
    assert decide(cells(0.9, 0.9), cells(0.7), RULES).promote
    assert not decide(cells(0.9, 0.55), cells(0.7), RULES).promote


@pytest.mark.parametrize("auc", [None, float("nan")])
def test_an_undefined_auc_is_refused(auc: float | None) -> None:
    decision = decide(cells(0.9, auc), None, RULES)
    assert decision.reasons == ("s1/click: AUC is not defined",)


@pytest.mark.parametrize("positives", [3, 997])
def test_a_tiny_cell_is_named_and_not_judged(positives: int) -> None:
    small = replace(cells(0.1)[0], positives=positives)
    decision = decide([*cells(0.9)[:0], small, replace(cells(0.9)[0], scenario="big")], None, RULES)
    assert decision.promote
    assert decision.unjudged == ("s0/click",)


def test_nothing_to_judge_is_refused() -> None:
    assert not decide([], None, RULES).promote
    assert not decide([replace(cells(0.9)[0], positives=0)], None, RULES).promote


def test_cells_survive_json() -> None:
    cell = cells(0.7)[0]
    assert CellResult.from_json(cell.to_json()) == cell
