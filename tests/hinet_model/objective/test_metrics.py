"""Metrics: exact, and undefined where they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from hinet_model.objective.metrics import auc, evaluate_cells, gauc, log_loss, mean_defined, pcoc

rows = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=60)


@given(rows)
@settings(max_examples=200)
def test_auc_equals_scikit_learn_with_ties(pairs: list[tuple[bool, int]]) -> None:
    labels = np.array([label for label, _ in pairs], dtype=np.float32)
    scores = np.array([score / 7 for _, score in pairs], dtype=np.float32)
    if labels.min() == labels.max():
        assert auc(labels, scores) is None
    else:
        assert auc(labels, scores) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)


def test_auc_of_many_rows_equals_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 50_000).astype(np.float32)
    scores = random.random(50_000).astype(np.float32).round(3)
    assert auc(labels, scores) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)


def test_auc_of_one_class_or_no_rows_is_not_defined() -> None:
    assert auc(np.ones(3), np.arange(3.0)) is None
    assert auc(np.zeros(3), np.arange(3.0)) is None
    assert auc(np.zeros(0), np.zeros(0)) is None


def test_a_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        auc(np.array([0.0, 1.0]), np.array([0.5, np.nan]))


def test_log_loss_equals_scikit_learn_and_survives_scores_of_zero_and_one() -> None:
    labels, probs = np.array([0.0, 1.0, 1.0]), np.array([0.2, 0.7, 0.4])
    assert log_loss(labels, probs) == pytest.approx(sklearn_metrics.log_loss(labels, probs))
    assert np.isfinite(log_loss(np.array([1.0, 0.0]), np.array([0.0, 1.0], dtype=np.float32)))
    assert log_loss(np.zeros(0), np.zeros(0)) is None


def test_pcoc_is_predicted_over_observed() -> None:
    assert pcoc(np.array([1.0, 0.0, 0.0]), np.array([0.5, 0.5, 1.0])) == 2.0
    assert pcoc(np.zeros(3), np.full(3, 0.5)) is None


def test_gauc_weighs_users_by_rows_and_leaves_out_those_with_one_class() -> None:
    users = np.array([7, 7, 3, 3, 3, 9])
    labels = np.array([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    scores = np.array([0.9, 0.1, 0.5, 0.6, 0.4, 0.9])
    assert gauc(labels, scores, users) == (pytest.approx((2 * 1.0 + 3 * 0.5) / 5), 5)
    assert gauc(np.ones(2), np.arange(2.0), np.array([1, 2])) == (None, 0)
    assert gauc(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64)) == (None, 0)


def test_cells_are_counted_by_scenario_and_task_and_an_empty_one_is_not_defined() -> None:
    labels = np.array([[1, 0], [0, 0], [1, 1]], dtype=np.float32)
    probs = np.array([[0.9, 0.1], [0.2, 0.1], [0.5, 0.5]], dtype=np.float32)
    cells = evaluate_cells(
        labels, probs, np.array([0, 0, 2]), num_scenarios=3, user_index=np.array([1, 1, 2])
    )
    assert [(cell.scenario_index, cell.task) for cell in cells] == [
        (i, j) for i in range(3) for j in range(2)
    ]
    assert [cell.rows for cell in cells] == [2, 2, 0, 0, 1, 1]
    assert [cell.positives for cell in cells] == [1, 0, 0, 0, 1, 1]
    assert [cell.auc for cell in cells] == [1.0, None, None, None, None, None]
    assert cells[0].gauc == 1.0
    assert cells[2].log_loss is None
    assert mean_defined(cell.auc for cell in cells) == 1.0
    assert mean_defined([None]) is None


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        evaluate_cells(np.zeros((3, 2)), np.zeros((3, 1)), np.zeros(3, dtype=np.int64))
