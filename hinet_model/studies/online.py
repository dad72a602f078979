"""Online: a simulated A/B test of two rankings, where it is known how likely every click and order is.

Shape letters in this file:
    L  lists   C  candidates of a list   K  of these, shown
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.special

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

CONFIDENCE, POWER = 0.95, 0.8
METRICS: Mapping[str, tuple[str, str]] = {
    "CTR": ("clicks", "impressions"),
    "CTCVR": ("orders", "impressions"),
    "orders per user": ("orders", "users"),
    "order revenue per user": ("revenue", "users"),
}
"""Name -> what is counted, and per what."""


@dataclass(frozen=True)
class Choices:
    """How people choose (docs/six_scenarios.md, "What they do").

    Args:
        noise: Scale of the shock that nobody can know.
        position_weight: Falls with the logarithm of the position.
        in_window: Chance that an order falls into the attribution window.
        basket_spread: Standard deviation of the logarithm of an order's amount over the price.
    """

    noise: float
    position_weight: float
    in_window: float
    basket_spread: float


@dataclass(frozen=True)
class Lists:
    """Whole lists of candidates of one scenario.

    Args:
        user: Who asked. ``(L,)``
        click_utility: As if at the first position. ``(L, C)``
        order_utility: Of those who clicked. ``(L, C)``
        price: In units of money. ``(L, C)``
    """

    user: Ints
    click_utility: Array
    order_utility: Array
    price: Array


@dataclass(frozen=True)
class Uplift:
    """One metric of the test.

    Args:
        metric: Its name.
        control: Its value among the users who got the control.
        treatment: Its value among the others.
        uplift: Treatment over control, less one, as the test found it.
        low: Lower end of its 95 % interval (delta method on the logarithm, by user).
        high: Upper end.
        expected: What the truth says: all users in both arms, expectations in place of draws.
        users_per_arm: What a test needs to find ``expected`` at 5 % with a power of 80 %; infinite without uplift.
    """

    metric: str
    control: float
    treatment: float
    uplift: float
    low: float
    high: float
    expected: float
    users_per_arm: float


def fused(probs: Mapping[str, Array], price: Array, powers: Mapping[str, float]) -> Array:
    """The score that lists are ranked by: a product of powers of the tasks' probabilities and of the price."""
    parts = {**probs, "price": price}
    logarithms = (power * np.log(np.maximum(parts[name], 1e-12)) for name, power in powers.items())
    return np.asarray(sum(logarithms), dtype=np.float64)


def run(
    lists: Lists, control: Array, treatment: Array, shown: int, choices: Choices, seed: int
) -> list[Uplift]:
    """Give each user one of two rankings by lot, draw what they do, and compare.

    Args:
        lists: Of one scenario.
        control: Scores ``(L, C)``; the ``shown`` highest are shown, highest first.
        treatment: The same of the other model.
        shown: Candidates that are shown, K.
        choices: How people choose.
        seed: Of the lot and of the draws.
    """
    random = np.random.default_rng(seed)
    users, owner = np.unique(lists.user, return_inverse=True)
    in_treatment = random.permutation(len(users)) % 2 == 1
    expected = [_expected(lists, scores, shown, choices) for scores in (control, treatment)]
    drawn = [_drawn(lists, scores, shown, choices, random) for scores in (control, treatment)]
    return [
        _uplift(name, over, per, [_by_user(one, owner, len(users)) for one in drawn], expected, in_treatment)
        for name, (over, per) in METRICS.items()
    ]


def _shown(lists: Lists, scores: Array, shown: int, choices: Choices) -> tuple[Array, Array, Array]:
    """P(click), P(order in the window | click) and the price of what is shown. ``(L, K)`` each"""
    places = np.argsort(-scores, axis=1, kind="stable")[:, :shown]
    click, order, price = (
        np.take_along_axis(values, places, axis=1)
        for values in (lists.click_utility, lists.order_utility, lists.price)
    )
    at_position = click - choices.position_weight * np.log(np.arange(1, places.shape[1] + 1))
    return _sigmoid(at_position / choices.noise), choices.in_window * _sigmoid(order / choices.noise), price


def _expected(lists: Lists, scores: Array, shown: int, choices: Choices) -> dict[str, float]:
    click, order, price = _shown(lists, scores, shown, choices)
    both = click * order
    return {
        "impressions": float(click.size),
        "clicks": float(click.sum()),
        "orders": float(both.sum()),
        "revenue": float((both * price).sum()),
        "users": 1.0,
    }


def _drawn(
    lists: Lists, scores: Array, shown: int, choices: Choices, random: np.random.Generator
) -> dict[str, Array]:
    """What comes of each list. ``(L,)`` each"""
    click, order, price = _shown(lists, scores, shown, choices)
    clicks = random.random(click.shape) < click
    orders = clicks & (random.random(click.shape) < order)
    spread = choices.basket_spread
    basket = np.exp(spread * random.normal(size=click.shape) - spread**2 / 2)
    return {
        "impressions": np.full(len(click), float(click.shape[1])),
        "clicks": clicks.sum(axis=1).astype(np.float64),
        "orders": orders.sum(axis=1).astype(np.float64),
        "revenue": (orders * price * basket).sum(axis=1),
    }


def _by_user(drawn: Mapping[str, Array], owner: Ints, num_users: int) -> dict[str, Array]:
    sums: dict[str, Array] = {
        name: np.bincount(owner, weights=values, minlength=num_users).astype(np.float64)
        for name, values in drawn.items()
    }
    return {**sums, "users": np.ones(num_users)}


def _uplift(
    name: str, over: str, per: str, drawn: list[dict[str, Array]], expected: list[dict[str, float]], treated: Mask
) -> Uplift:  # fmt: skip
    values, spreads, counts = [], [], []
    for of_arm, chosen in zip(drawn, (~treated, treated), strict=True):
        top, bottom = of_arm[over][chosen], of_arm[per][chosen]
        value = float(top.sum() / bottom.sum())
        # What a user adds to the logarithm of the ratio, in users.
        spreads.append(
            float(np.std((top / value - bottom) / bottom.mean(), ddof=1)) if value > 0 else math.inf
        )
        values.append(value)
        counts.append(int(chosen.sum()))
    first, second = (one[over] / one[per] for one in expected)
    error = math.sqrt(sum(spread**2 / count for spread, count in zip(spreads, counts, strict=True)))
    reach = float(scipy.special.ndtri((1 + CONFIDENCE) / 2))
    ratio, true_step = values[1] / values[0] if values[0] > 0 else math.nan, math.log(second / first)
    needed = (reach + float(scipy.special.ndtri(POWER))) ** 2 * sum(spread**2 for spread in spreads)
    return Uplift(
        metric=name,
        control=values[0],
        treatment=values[1],
        uplift=ratio - 1,
        low=ratio * math.exp(-reach * error) - 1 if math.isfinite(error) else -1.0,
        high=ratio * math.exp(reach * error) - 1 if math.isfinite(error) else math.inf,
        expected=second / first - 1,
        users_per_arm=needed / true_step**2 if true_step else math.inf,
    )


def _sigmoid(values: Array) -> Array:
    return np.asarray(scipy.special.expit(values), dtype=np.float64)
