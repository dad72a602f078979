"""Cell statistics: parts add up to the whole, exactly where they are exact, and within their own bound elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hinet_model.objective.cell_statistics import MAX_SCORES, CellStatistics, SplitStatistics, merged
from hinet_model.objective.metrics import auc, evaluate_cells

Array = np.ndarray


def cell(labels: Array, probs: Array, max_scores: int = MAX_SCORES, parts: int = 1) -> CellStatistics:
    """The statistics of rows that came in parts to several workers."""
    found = []
    for place in range(parts):
        found.append([CellStatistics(max_scores)])
        found[-1][0].add(labels[place::parts], probs[place::parts])
    return merged(found)[0]


def scores(rows: int, seed: int, mean: float = 0.0, spread: float = 1.0) -> tuple[Array, Array]:
    """Labels, and probabilities that know something of them."""
    random = np.random.default_rng(seed)
    labels = (random.random(rows) < 0.3).astype(np.float32)
    logit = random.normal(size=rows) * spread + labels * spread + mean
    return labels, (1 / (1 + np.exp(-logit))).astype(np.float32)


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 1e-30, 0.2, 0.2000001, 0.7, 1.0])), max_size=40),
    st.integers(1, 4),
)
@settings(max_examples=150)
def test_metrics_are_those_of_all_rows_at_once(rows: list[tuple[bool, float]], parts: int) -> None:
    labels = np.array([label for label, _ in rows], dtype=np.float32)
    probs = np.array([prob for _, prob in rows], dtype=np.float32)
    found = cell(labels, probs, parts=parts).metrics(0, 0)
    (expected,) = evaluate_cells(
        labels[:, None], probs[:, None], np.zeros(len(rows), np.int64), num_scenarios=1
    )
    assert (found.rows, found.positives, found.auc) == (expected.rows, expected.positives, expected.auc)
    assert found.auc_error == 0.0
    assert found.log_loss == (None if expected.log_loss is None else pytest.approx(expected.log_loss))
    assert found.pcoc == (None if expected.pcoc is None else pytest.approx(expected.pcoc))


@pytest.mark.parametrize(
    ("mean", "spread"), [(0.0, 1.0), (-6.0, 0.5), (-3.0, 1e-3), (3.0, 8.0), (-60.0, 20.0), (0.0, 1e-7)]
)
def test_a_histogram_is_as_near_as_it_says_wherever_the_scores_lie(mean: float, spread: float) -> None:
    labels, probs = scores(40_000, seed=1, mean=mean, spread=spread)
    exact = auc(labels, probs)
    assert exact is not None
    for max_scores in (256, 4096):
        found = cell(labels, probs, max_scores).metrics(0, 0)
        assert found.auc is not None
        assert abs(found.auc - exact) <= found.auc_error + 1e-12
        used = len(np.unique(probs))
        if used <= max_scores:
            assert (found.auc, found.auc_error) == (exact, 0.0)
        elif used > 2 * max_scores and spread < 8:
            # Half the share of pairs that meet in one of more than max_scores / 2 bins.
            assert 0 < found.auc_error < 4 / max_scores


def test_bins_do_not_depend_on_how_the_rows_are_spread_over_workers_and_batches() -> None:
    labels, probs = scores(20_000, seed=2)
    whole = cell(labels, probs, max_scores=1000)
    assert whole.resolution is not None
    assert 500 < len(whole.keys) <= 1000
    for parts in (2, 3, 8):
        found = cell(labels, probs, max_scores=1000, parts=parts)
        assert found.resolution == whole.resolution
        np.testing.assert_array_equal(found.keys, whole.keys)
        np.testing.assert_array_equal(found.counts, whole.counts)
    few, many = CellStatistics(1000), CellStatistics(1000)
    few.add(labels[:10], probs[:10])
    for start in range(10, 20_000, 777):
        many.add(labels[start : start + 777], probs[start : start + 777])
    for first, second in ((few, many), (many, few)):
        (found,) = merged([[first], [second]])
        np.testing.assert_array_equal(found.keys, whole.keys)
        np.testing.assert_array_equal(found.counts, whole.counts)


def test_a_cell_of_many_rows_has_more_than_two_to_the_sixteen_bins_and_a_tiny_error() -> None:
    labels, probs = scores(600_000, seed=3)
    statistics = cell(labels, probs, parts=2)
    assert 1 << 16 < len(statistics.keys) <= MAX_SCORES == 1 << 17
    found, exact = statistics.metrics(0, 0), auc(labels, probs)
    assert found.auc is not None
    assert exact is not None
    assert abs(found.auc - exact) <= found.auc_error < 1e-5


def test_a_split_is_judged_by_scenario_and_task_and_an_empty_cell_is_not_defined() -> None:
    random = np.random.default_rng(4)
    scenario_index = random.choice([0, 2], 3000)
    labels = random.integers(0, 2, (3000, 2)).astype(np.float32)
    probs = random.random((3000, 2)).astype(np.float32)
    statistics = SplitStatistics(3, 2)
    for start in range(0, 3000, 256):
        rows = slice(start, start + 256)
        statistics.add(scenario_index[rows], labels[rows], probs[rows])
    found = [
        one.metrics(scenario, task)
        for scenario in range(3)
        for task, one in enumerate(statistics.of_scenario(scenario))
    ]
    expected = evaluate_cells(labels, probs, scenario_index, 3)
    assert [(one.rows, one.positives, one.auc) for one in found] == [
        (one.rows, one.positives, one.auc) for one in expected
    ]
    assert (found[2].auc, found[2].log_loss, found[2].pcoc) == (None, None, None)


def test_a_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        CellStatistics().add(np.array([1.0]), np.array([np.nan]))
