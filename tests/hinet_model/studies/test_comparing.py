"""Comparing variants: AUCs and their intervals are those of other libraries, and noise is called noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from hinet_model.studies.comparing import (
    Estimate,
    Standing,
    TestRows,
    difference,
    estimate,
    every_cell,
    holm,
    rank_correlation,
    verdict,
)


def made_rows(users: int = 3_000, per_user: int = 1, seed: int = 0) -> tuple[TestRows, np.ndarray]:
    """Two scenarios, two tasks, and a signal; some labels are missing."""
    random = np.random.default_rng(seed)
    count = users * per_user
    signal = np.repeat(random.normal(size=users), per_user)
    labels = (signal[:, None] + random.normal(size=(count, 2)) > [0.0, 0.8]).astype(float)
    labels[random.random((count, 2)) < 0.05] = -1
    rows = TestRows(random.integers(0, 2, count), np.repeat(np.arange(users), per_user), labels)
    return rows, signal


def test_auc_of_each_cell_is_scikit_learns() -> None:
    rows, signal = made_rows()
    scores = np.stack([signal, np.round(signal, 1)], axis=1)  # ties in the second task
    standing = Standing.of(rows, [scores], 2)
    for scenario in range(2):
        for task in range(2):
            chosen = (rows.scenario == scenario) & (rows.labels[:, task] >= 0)
            expected = roc_auc_score(rows.labels[chosen, task], scores[chosen, task])
            assert standing.auc[0, scenario, task] == pytest.approx(expected, abs=1e-12)


def test_the_interval_over_rows_is_what_other_rows_would_have_given() -> None:
    errors, halves = [], []
    for seed in range(200):
        rows, signal = made_rows(users=400, per_user=3, seed=seed)
        noisy = signal + np.random.default_rng(seed + 1_000).normal(size=len(signal))
        found = estimate(
            rows, standing := Standing.of(rows, [np.stack([noisy, signal], axis=1)], 2), every_cell(standing)
        )
        errors.append(found.value)
        halves.append(found.se_rows)
    assert np.std(errors) == pytest.approx(np.mean(halves), rel=0.15)


def test_a_difference_is_paired_by_seed_and_by_row() -> None:
    rows, signal = made_rows()
    random = np.random.default_rng(3)
    base = [np.stack([signal + random.normal(size=len(signal))] * 2, axis=1) for _ in range(3)]
    # Better by the same little on every row: far more certain than either of the two by itself.
    better = [scores + 0.1 * signal[:, None] for scores in base]
    one, other = Standing.of(rows, better, 2), Standing.of(rows, base, 2)
    found = difference(rows, one, other, every_cell(one))
    assert found.value == pytest.approx(float((one.auc - other.auc).mean()))
    assert found.value > 0
    assert found.se_rows < 0.3 * estimate(rows, one, every_cell(one)).se_rows
    assert found.p_value < 1e-3


def test_equal_models_tie_and_never_come_out_ahead_by_chance_alone() -> None:
    rows, signal = made_rows()
    verdicts = []
    for seed in range(40):
        random = np.random.default_rng(seed)

        def scores(random: np.random.Generator = random) -> list[np.ndarray]:
            return [signal[:, None] + random.normal(size=(len(signal), 2)) for _ in range(3)]

        one, other = Standing.of(rows, scores(), 2), Standing.of(rows, scores(), 2)
        found = difference(rows, one, other, every_cell(one))
        verdicts.append(verdict(found.value, found.p_value))
    assert verdicts.count("tie") >= 36  # 5 % of 40 is 2


def test_seeds_and_rows_are_told_apart() -> None:
    found = Estimate(value=0.01, se_seeds=0.002, se_rows=0.004, seeds=3)
    assert found.half_seeds == pytest.approx(4.3027 * 0.002, rel=1e-4)
    assert found.half_rows == pytest.approx(1.96 * 0.004, rel=1e-3)
    alone = Estimate(0.01, math.nan, 0.004, 1)
    assert math.isnan(alone.half_seeds)
    assert alone.p_value == pytest.approx(2 * scipy.stats.norm.sf(2.5))


def test_holm_is_the_textbooks() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    found = holm([0.01, math.nan, 0.5])
    assert found[0] == pytest.approx(0.02)
    assert math.isnan(found[1])


def test_rank_correlation_looks_at_other_scenarios_alone() -> None:
    planted = np.array(
        [[1.0, 0.2, 0.5, 0.7], [0.2, 1.0, 0.3, 0.4], [0.5, 0.3, 1.0, 0.1], [0.7, 0.4, 0.1, 1.0]]
    )
    assert rank_correlation(planted * (1 - np.eye(4)), planted) == pytest.approx(1.0)
    assert rank_correlation(-planted, planted) == pytest.approx(-1.0)
    assert math.isnan(rank_correlation(planted[:2, :2], planted[:2, :2]))
