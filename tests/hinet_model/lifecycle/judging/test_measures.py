"""Metrics per cell equal scikit-learn's, and their intervals hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_judge import judge_in_memory, ranking_of
from sklearn import metrics as sklearn_metrics

from hinet_model.lifecycle.judging.curves import curves
from hinet_model.lifecycle.judging.lists import list_quality
from hinet_model.lifecycle.judging.measures import (
    METRICS,
    CellSums,
    Measure,
    delong_covariance,
    differences,
    mean_samples,
    measures,
)
from hinet_model.lifecycle.judging.sums import Shape, resample_weights

EXACT = 1e-12


def rows(kind: str, number: int = 700, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of two contestants in two cells."""
    draw = np.random.default_rng(seed)
    logit = draw.normal(-0.8, 1, number)
    found = {
        "cell": draw.integers(0, 2, number),
        "user": draw.integers(0, 60, number) * 7919,
        "listed": draw.integers(0, 4, number),
        "positive": (draw.random(number) < 1 / (1 + np.exp(-logit))).astype(np.int64),
        "weight": np.ones(number),
        "a": np.clip(1 / (1 + np.exp(-logit - draw.normal(0, 1, number))), 0.001, 0.999),
        "b": np.clip(1 / (1 + np.exp(-logit - draw.normal(0, 2, number))), 0.001, 0.999),
    }
    if kind == "tied":
        found |= {name: np.round(found[name] * 8 + 0.5) / 10 for name in ("a", "b")}
    if kind == "constant":
        found |= {name: np.full(number, 0.25) for name in ("a", "b")}
    if kind == "weighted":
        found["weight"] = draw.choice([0.5, 1.0, 7.25], number)
    return found


def judged(found: dict[str, np.ndarray], shape: Shape, **options: int) -> dict[int, CellSums]:
    scores = [found["a"], found["b"]][: shape.contestants]
    return judge_in_memory(
        found["cell"], found["user"], found["positive"], scores, shape,
        weight=found["weight"], listed=found["listed"], **options,
    )  # fmt: skip


@pytest.mark.parametrize("block_rows", [1, 40, 10**6])
@pytest.mark.parametrize("kind", ["random", "tied", "constant", "weighted"])
def test_metrics_are_scikit_learns(kind: str, block_rows: int) -> None:
    found, shape = rows(kind), Shape(2, replicates=2)
    for cell, sums in judged(found, shape, block_rows=block_rows).items():
        chosen = found["cell"] == cell
        label, weight = found["positive"][chosen], found["weight"][chosen]
        for c, name in enumerate(("a", "b")):
            score = found[name][chosen]
            ours = {metric: measure.value for metric, measure in measures(sums, shape, c).items()}
            named = {"sample_weight": weight}
            assert ours["auc"] == pytest.approx(
                sklearn_metrics.roc_auc_score(label, score, **named), abs=EXACT
            )
            expected = sklearn_metrics.average_precision_score(label, score, **named)
            assert ours["pr_auc"] == pytest.approx(expected, abs=EXACT)
            log_loss = sklearn_metrics.log_loss(label, score, **named)
            assert ours["log_loss"] == pytest.approx(log_loss, abs=EXACT)
            base = np.average(label, weights=weight)
            entropy = sklearn_metrics.log_loss(label, np.full(len(label), base), **named)
            assert ours["normalised_entropy"] == pytest.approx(log_loss / entropy, abs=EXACT)
            assert ours["pcoc"] == pytest.approx(np.average(score, weights=weight) / base, abs=EXACT)


def test_the_gauc_is_the_mean_of_users_aucs_weighted_by_rows() -> None:
    found, shape = rows("tied"), Shape(1, replicates=2)
    cell = found["cell"] == 1
    total, weight = 0.0, 0
    for user in np.unique(found["user"]):
        chosen = cell & (found["user"] == user)
        if len(set(found["positive"][chosen])) == 2:
            area = sklearn_metrics.roc_auc_score(found["positive"][chosen], found["a"][chosen])
            total, weight = total + area * chosen.sum(), weight + chosen.sum()
    assert weight > 100
    gauc = measures(judged(found, shape)[1], shape, 0)["gauc"]
    assert gauc.value == pytest.approx(total / weight, abs=EXACT)
    assert gauc.method == "bootstrap by user"


def test_the_ece_is_over_bins_of_equal_weight_that_part_no_ties() -> None:
    score = np.array([0.1, 0.1, 0.1, 0.1, 0.6, 0.8])
    label = np.array([0, 0, 1, 1, 1, 0])
    shape = Shape(1, bins=3, replicates=2)
    (sums,) = judge_in_memory(np.zeros(6, int), np.arange(6), label, [score], shape).values()
    # The four equal scores stand in the middle of two thirds: the second bin. Then 0.6 and 0.8 in the third.
    expected = (abs(0.4 - 2) + abs(1.4 - 1)) / 6
    assert measures(sums, shape, 0)["ece"].value == pytest.approx(expected, abs=EXACT)
    curve = curves(sums, shape, 0, ranking_of(score, label, np.ones(6), shape, 10))
    assert curve["reliability"] == [[pytest.approx(0.1), 0.5, 4], [pytest.approx(0.7), 0.5, 2]]
    assert curve["roc"][0] == [0, 0]
    assert curve["roc"][-1] == [1, 1]
    assert sum(step[1] for step in curve["scores"]) == sum(step[2] for step in curve["scores"]) == 3


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_one_class_leaves_metrics_undefined_with_counts_never_zero_or_nan(label: int, weight: float) -> None:
    shape = Shape(2, lists_at=10)
    score = np.linspace(0.1, 0.9, 7)
    (sums,) = judge_in_memory(
        np.zeros(7, int), np.arange(7), np.full(7, label), [score, score], shape, weight=np.full(7, weight)
    ).values()
    found = {**measures(sums, shape, 0), **{f"d/{k}": v for k, v in differences(sums, shape, 0, 1).items()}}
    undefined = {name for name, measure in found.items() if measure.value is None}
    one_class = {"auc", "gauc", "normalised_entropy"} | (
        {"pr_auc", "pcoc", "ndcg", "mrr"} if not label else set()
    )
    assert undefined == one_class | {f"d/{name}" for name in one_class} | {"d/auc_by_user"}
    assert found["auc"].why == f"one class only (7 rows, {7 * label} positives)"
    assert found["log_loss"].value is not None
    assert not any(
        np.isnan([v for v in (m.value, m.low, m.high) if v is not None]).any() for m in found.values()
    )


def test_a_cell_without_rows_says_so() -> None:
    shape = Shape(2)
    found = measures(CellSums.empty(shape), shape, 0)
    assert set(found) == set(METRICS) - {"ndcg", "mrr"}
    assert set(found.values()) == {Measure(None, why="no rows")}


def test_ndcg_and_mrr_are_means_over_lists_and_ties_are_fair() -> None:
    found, shape = rows("tied"), Shape(1, lists_at=5, replicates=2)
    cell = found["cell"] == 0
    ndcgs, ranks = [], []
    for user in np.unique(found["user"]):
        for one in range(4):
            chosen = cell & (found["user"] == user) & (found["listed"] == one)
            label, score = found["positive"][chosen], found["a"][chosen]
            if not label.any():
                continue
            # scikit-learn refuses a list of one row: its order is right whatever the score.
            ndcgs.append(sklearn_metrics.ndcg_score([label], [score], k=5) if len(label) > 1 else 1.0)
            best = score[label == 1].max()
            tied, hits = (score == best).sum(), ((score == best) & (label == 1)).sum()
            ranks.append(1 / ((score > best).sum() + (tied + 1) / (hits + 1)))
    assert len(ndcgs) > 50
    got = measures(judged(found, shape)[0], shape, 0)
    assert got["ndcg"].value == pytest.approx(np.mean(ndcgs), abs=EXACT)
    assert got["mrr"].value == pytest.approx(np.mean(ranks), abs=EXACT)


def test_a_list_without_a_positive_has_no_quality() -> None:
    positive, list_of = np.array([False, True, False, False]), np.array([0, 0, 0, 1])
    ndcg, reciprocal = list_quality(np.array([0.9, 0.5, 0.5, 0.1]), positive, list_of, 2)
    half_way = 0.5 / np.log2(3)
    assert ndcg == pytest.approx([half_way, 0.0])
    assert reciprocal == pytest.approx([1 / 2.5, 0.0])


def test_delong_is_its_definition_pair_by_pair() -> None:
    found, shape = rows("tied", 90), Shape(2, replicates=2)
    for cell, sums in judged(found, shape, block_rows=7).items():
        chosen = found["cell"] == cell
        positive = found["positive"][chosen] == 1
        components = []
        for name in ("a", "b"):
            score = found[name][chosen]
            apart = score[positive][:, None] - score[~positive][None, :]
            wins = (np.sign(apart) + 1) / 2
            components.append((wins.mean(axis=1), wins.mean(axis=0)))
        of_positives = np.cov([one[0] for one in components]) / positive.sum()
        of_negatives = np.cov([one[1] for one in components]) / (~positive).sum()
        np.testing.assert_allclose(delong_covariance(sums, shape), of_positives + of_negatives, atol=EXACT)
        change = differences(sums, shape, 0, 1)["auc"]
        assert change.method == "delong"
        wanted = of_positives + of_negatives
        assert change.se == pytest.approx(np.sqrt(wanted[0, 0] + wanted[1, 1] - 2 * wanted[0, 1]), abs=EXACT)


def test_delong_and_the_bootstrap_agree_where_rows_are_independent() -> None:
    found, shape = rows("random", 4000), Shape(2, replicates=1000)
    found["user"] = np.random.default_rng(5).integers(-(2**62), 2**62, 4000)
    change = differences(judged(found, shape)[0], shape, 0, 1)
    assert change["auc_by_user"].value == change["auc"].value
    assert change["auc_by_user"].se == pytest.approx(change["auc"].se, rel=0.1)


def test_equal_weights_change_no_metric_and_no_delong_interval() -> None:
    found, shape = rows("random"), Shape(2, replicates=50)
    plain = measures(judged(found, shape)[0], shape, 0)
    found["weight"] = np.full(len(found["weight"]), 3.0)
    weighted = measures(judged(found, shape)[0], shape, 0)
    for name, measure in plain.items():
        if measure.value is not None and name not in ("ndcg", "mrr"):
            got = (weighted[name].value, weighted[name].low, weighted[name].high)
            assert got == pytest.approx((measure.value, measure.low, measure.high), abs=1e-10), name


def test_means_over_cells_leave_out_what_is_not_defined() -> None:
    shape = Shape(1, replicates=4)
    label = np.array([0, 1, 0, 1, 1, 1])
    sums = judge_in_memory(
        np.array([0, 0, 0, 0, 1, 1]), np.arange(6), label, [np.linspace(0.2, 0.8, 6)], shape
    )
    means = dict(zip(METRICS, mean_samples([sums[0], sums[1]], 0)[:, 0], strict=True))
    own = [measures(one, shape, 0) for one in sums.values()]
    assert means["auc"] == own[0]["auc"].value
    assert means["log_loss"] == pytest.approx((own[0]["log_loss"].value + own[1]["log_loss"].value) / 2)


def test_resample_weights_are_poisson_and_belong_to_the_user() -> None:
    users = np.arange(4000) * 104729
    weights = resample_weights(users, 50)
    assert (weights[:, 0] == 1).all()
    assert weights[:, 1:].mean() == pytest.approx(1, abs=0.01)
    assert weights[:, 1:].var() == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(weights[:, 1], weights[:, 2])[0, 1]) < 0.06
    np.testing.assert_array_equal(resample_weights(users[::-1][:7], 50), weights[::-1][:7])


@pytest.mark.slow
def test_intervals_hold_the_truth_95_times_in_100() -> None:
    def draw_rows(draw: np.random.Generator, users: int) -> tuple[np.ndarray, ...]:
        user = np.repeat(np.arange(users), draw.poisson(3, users) + 1)
        logit = draw.normal(-0.8, 1, len(user))
        label = (draw.random(len(user)) < 1 / (1 + np.exp(-logit))).astype(np.int64)
        scores = [1 / (1 + np.exp(-logit - draw.normal(0, sd, len(user)))) for sd in (1.0, 1.2)]
        return draw.integers(-(2**62), 2**62, users)[user], label, scores[0], scores[1]

    def both(
        user: np.ndarray, label: np.ndarray, a: np.ndarray, b: np.ndarray, shape: Shape
    ) -> dict[str, Measure]:
        (sums,) = judge_in_memory(np.zeros(len(user), int), user, label, [a, b], shape).values()
        changes = {f"change in {name}": one for name, one in differences(sums, shape, 0, 1).items()}
        return {**measures(sums, shape, 0), **changes}

    truth = both(*draw_rows(np.random.default_rng(0), 300_000), Shape(2, replicates=2))
    draw, simulations = np.random.default_rng(1), 1000
    held = dict.fromkeys(truth, 0)
    for _ in range(simulations):
        for name, one in both(*draw_rows(draw, 500), Shape(2, replicates=60)).items():
            held[name] += one.low <= truth[name].value <= one.high
    # The ECE of a sample is above that of the population, whatever its interval: noise in the bins adds up.
    shares = {name: times / simulations for name, times in held.items() if name != "ece"}
    assert all(abs(share - 0.95) <= 0.015 for share in shares.values()), shares
