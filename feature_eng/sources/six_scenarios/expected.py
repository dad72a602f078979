"""What the parameters say of each scenario, apart from any log: rates, the best possible AUC, and the intercepts.

Computed in numpy from vectors drawn anew, by the equations and not by the code that makes the log.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from feature_eng.contract.six_scenarios import SixScenarios

Array = npt.NDArray[np.float64]

NUM_CUISINES = 20
BUDGETS = 5
_DRAWS = 1 << 16


@dataclass(frozen=True)
class Expectation:
    """One scenario as the parameters have it.

    Attributes:
        click_intercept: ``a_m`` of the click utility.
        order_intercept: ``b_m`` of the order utility.
        click_rate: Clicks per impression.
        order_rate: Orders per click.
        click_auc: AUC of the true P(click).
        order_auc: AUC of the true P(click and order).
    """

    click_intercept: float
    order_intercept: float
    click_rate: float
    order_rate: float
    click_auc: float
    order_auc: float


@lru_cache(maxsize=8)
def expectations(parameters: SixScenarios) -> tuple[Expectation, ...]:
    """Every scenario's expectation, to within 1 % of a rate and 0.003 of an AUC."""
    population = _Population(parameters)
    wanted = zip(
        parameters.agreements,
        parameters.between(parameters.click_rate),
        parameters.between(parameters.order_rate),
        strict=True,
    )
    return tuple(population.scenario(*one) for one in wanted)


def expected_auc(probs: Array) -> float:
    """AUC to expect of scores that are the true probabilities, of rows with these probabilities.

    The chance that a positive outscores a negative, over all pairs of rows; equal scores count half.
    """
    _, group = np.unique(probs, return_inverse=True)
    positives = np.bincount(group, weights=probs)
    negatives = np.bincount(group, weights=1 - probs)
    below = np.cumsum(negatives) - negatives
    pairs = positives.sum() * negatives.sum()
    return float((positives * (below + negatives / 2)).sum() / pairs)


class _Population:
    """Impressions of users and restaurants that are drawn anew for each."""

    def __init__(self, parameters: SixScenarios) -> None:
        self.parameters = p = parameters
        rng = np.random.default_rng(0)
        width = (_DRAWS, p.taste_dim)
        scale = math.sqrt(p.taste_dim)
        user, cuisine, own = (rng.standard_normal(width) for _ in range(3))
        item = math.sqrt(p.item_explained) * cuisine + math.sqrt(1 - p.item_explained) * own
        taste = (user * item).sum(axis=1) / scale
        other_taste = (user * rng.standard_normal(width)).sum(axis=1) / scale
        self.attraction = p.taste * taste + p.appeal * rng.standard_normal(_DRAWS)
        self.other_attraction = p.taste * other_taste + p.appeal * rng.standard_normal(_DRAWS)
        searched = np.where(
            (rng.random(_DRAWS) < 1 / NUM_CUISINES)[:, None], cuisine, rng.standard_normal(width)
        )
        need = (searched * item).sum(axis=1) / scale * (rng.random(_DRAWS) < p.query_share)
        position = rng.integers(1, p.list_length + 1, _DRAWS)
        self.click_rest = (
            p.propensity * rng.standard_normal(_DRAWS)
            + p.query_need * need
            - p.position_weight * np.log(position)
        )
        budget = rng.integers(1, BUDGETS + 1, _DRAWS)
        self.order_rest = -p.price_weight * (1 - (budget - 3) / math.sqrt(8)) * rng.standard_normal(_DRAWS)

    @cached_property
    def _click_utility(self) -> Array:
        utility: Array = self.attraction + self.click_rest
        return utility

    def scenario(self, agreement: float, click_rate: float, order_rate: float) -> Expectation:
        order_utility = (
            agreement * self.attraction
            + math.sqrt(1 - agreement**2) * self.other_attraction
            + self.order_rest
        )
        noise = self.parameters.noise
        click_intercept = _intercept(self._click_utility, noise, click_rate, np.ones(_DRAWS))
        clicks = _sigmoid((click_intercept + self._click_utility) / noise)
        order_intercept = _intercept(order_utility, noise, order_rate, clicks)
        orders = clicks * _sigmoid((order_intercept + order_utility) / noise)
        return Expectation(
            click_intercept,
            order_intercept,
            float(clicks.mean()),
            float(orders.sum() / clicks.sum()),
            expected_auc(clicks),
            expected_auc(orders),
        )


def _intercept(utility: Array, noise: float, rate: float, weights: Array) -> float:
    """The number to add to a utility so that the weighted mean of the choices is the rate."""
    reach = 40 * noise
    low, high = float(-utility.max() - reach), float(-utility.min() + reach)
    for _ in range(60):
        middle = (low + high) / 2
        mean = float((weights * _sigmoid((middle + utility) / noise)).sum() / weights.sum())
        low, high = (middle, high) if mean < rate else (low, middle)
    return (low + high) / 2


def _sigmoid(values: Array) -> Array:
    half: Array = 0.5 * (1 + np.tanh(values / 2))
    return half
