"""A model card answers what a version is, from what the run knew."""

from __future__ import annotations

from dataclasses import asdict

from model_folders import SNAPSHOT, encoder_state

from hinet_model.objective.metrics import CellMetrics
from hinet_model.report.card import model_card


def entry(epoch: int, mean_auc: float | None, aucs: list[float | None]) -> dict[str, object]:
    cells = [
        CellMetrics(place // 2, place % 2, rows=10, positives=2, auc=auc, log_loss=0.5, pcoc=1.0)
        for place, auc in enumerate(aucs)
    ]
    return {"epoch": epoch, "mean_auc": mean_auc, "cells": [asdict(cell) for cell in cells]}


def test_the_card_shows_the_best_validation_by_cell_and_the_data() -> None:
    state = encoder_state()
    aucs = [0.7, 0.6, 0.8, None][: 2 * len(state.scenario_names)]
    aucs += [0.5] * (2 * len(state.scenario_names) - len(aucs))
    history = [entry(0, None, [None] * len(aucs)), entry(1, 0.7, aucs), entry(2, 0.6, [0.1] * len(aucs))]
    card = model_card("hinet", None, SNAPSHOT, state, history)
    assert f"table `{SNAPSHOT.table}` at version 4" in card
    assert "Validation after epoch 2, mean AUC 0.7000." in card
    assert f"| {state.scenario_names[0]} | {SNAPSHOT.scenario_rows['train'][0]} | 0.7000 | 0.6000 |" in card
    assert "| 0.8000 | not defined |" in card
    assert "is refused" in card
    for heading in ("Purpose", "Data", "Cells", "Limits", "Use"):
        assert f"**{heading}.**" in card


def test_a_stand_in_for_unknown_scenarios_is_named() -> None:
    assert "is scored as `old`" in model_card("hinet", "old", SNAPSHOT, encoder_state(), [])


def test_a_model_that_was_never_validated_says_so() -> None:
    assert "**Cells.** Not validated." in model_card("hinet", None, SNAPSHOT, encoder_state(), [])
