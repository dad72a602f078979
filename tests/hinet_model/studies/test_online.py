"""Simulated A/B tests: the draws agree with the truth as often as their intervals say, and no ranking is favoured."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from hinet_model.studies.online import Choices, Lists, fused, run

CHOICES = Choices(noise=1.0, position_weight=0.5, in_window=0.98, basket_spread=0.3)


def made_lists(lists: int = 3_000, users: int = 600, candidates: int = 10) -> Lists:
    random = np.random.default_rng(5)
    return Lists(
        user=random.integers(0, users, lists),
        click_utility=random.normal(-1.0, 1.0, (lists, candidates)),
        order_utility=random.normal(-0.5, 1.0, (lists, candidates)),
        price=np.exp(random.normal(3.0, 0.4, (lists, candidates))),
    )


def test_the_intervals_hold_the_direct_expectation_as_often_as_they_say() -> None:
    lists = made_lists()
    random = np.random.default_rng(0)
    control, treatment = random.normal(size=lists.price.shape), lists.click_utility
    held = []
    for seed in range(60):
        for found in run(lists, control, treatment, 5, CHOICES, seed):
            held.append(found.low <= found.expected <= found.high)
    assert 0.91 <= np.mean(held) <= 0.99  # 240 of them, four to a seed


def test_the_expectation_is_the_sum_over_what_is_shown() -> None:
    utility = np.array([[0.0, 2.0], [1.0, -1.0]] * 8)
    lists = Lists(np.arange(16), utility, np.zeros((16, 2)), np.array([[1.0, 3.0]] * 16))
    choices = dataclasses.replace(CHOICES, noise=2.0, in_window=0.5)
    first, second = np.array([[1.0, 0.0]] * 16), np.array([[0.0, 1.0]] * 16)
    ctr, ctcvr, orders, revenue = run(lists, first, second, 1, choices, 0)

    def click(utility: float) -> float:
        return 1 / (1 + math.exp(-utility / 2))

    expected = (click(2) + click(-1)) / (click(0) + click(1)) - 1
    assert ctr.expected == pytest.approx(expected)
    assert ctcvr.expected == pytest.approx(expected)
    assert orders.expected == pytest.approx(expected)
    assert revenue.expected == pytest.approx(3 * (1 + expected) - 1)


def test_one_ranking_against_itself_gains_nothing_and_no_size_would_find_it() -> None:
    lists = made_lists()
    for found in run(lists, lists.price, lists.price, 5, CHOICES, 1):
        assert found.expected == 0
        assert found.users_per_arm == math.inf
        assert found.low < 0 < found.high


def test_a_test_of_the_size_that_is_called_for_finds_the_uplift_as_often_as_said() -> None:
    lists = dataclasses.replace(made_lists(lists=6_000), user=np.arange(6_000))
    better = lists.click_utility + np.random.default_rng(2).normal(size=lists.price.shape) * 2.5
    worse = np.random.default_rng(3).normal(size=lists.price.shape)
    size = int(run(lists, worse, better, 5, CHOICES, 0)[0].users_per_arm)
    assert 100 < 2 * size < 6_000
    random = np.random.default_rng(4)
    found = []
    for seed in range(120):
        chosen = random.choice(6_000, 2 * size, replace=False)
        part = Lists(chosen, lists.click_utility[chosen], lists.order_utility[chosen], lists.price[chosen])
        found.append(run(part, worse[chosen], better[chosen], 5, CHOICES, seed)[0].low > 0)
    assert 0.68 <= np.mean(found) <= 0.92


def test_the_score_is_a_product_of_powers() -> None:
    probs = {"click": np.array([[0.5]]), "order": np.array([[0.1]])}
    score = fused(probs, np.array([[20.0]]), {"click": 0.5, "order": 1.0, "price": 2.0})
    assert math.exp(score[0, 0]) == pytest.approx(0.5**0.5 * 0.1 * 20.0**2)
