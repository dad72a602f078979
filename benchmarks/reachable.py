"""What can be known of six scenarios: AUC by how much of the truth is known, up to what train rows can tell of users.

``python -m benchmarks.reachable`` draws a log anew by the equations of docs/six_scenarios.md, without drift, and scores
its last rows with more and more of the truth. The last line but one is an ideal learner: it knows all but what users
are like beside their attributes, and has of that what the rows of training tell (the posterior, by Laplace's method).
No model that learns from those rows knows users better; what it does not know of restaurants it loses beside that.

Shape letters in this file:
    R  rows of the log   U  users   I  restaurants   T  days   K  tastes   D  width of a taste   M  scenarios
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from feature_eng.contract.six_scenarios import SixScenarios
from feature_eng.sources.six_scenarios.expected import BUDGETS, NUM_CUISINES, expectations
from feature_eng.sources.six_scenarios.process import NUM_AGE_GROUPS, NUM_CITY_TIERS
from foundation.job import say

Array = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]

_STEPS = 4
"""Newton steps of a posterior; its mode moves by less than 0.01 after three."""


@dataclass(frozen=True)
class Log:
    """Rows in order of time, and what their utilities are made of.

    Attributes:
        user: ``(R,)``, like all that is not said otherwise.
        scenario: 0-based.
        outcome: Whether there was a click, and an order. ``(2, R)``
        always: Intercept and position, in the click and in the order utility, as all below. ``(2, R)``
        need: What was searched for.
        appeal: Of the restaurant.
        price: Times budget.
        told: Taste that attributes tell.
        vector: What the rest of a user's taste is multiplied with. ``(2, R, D)``
        own: The rest of the tastes of every user, standard normal. ``(U, K, D)``
        propensity: Of every user, standard normal. ``(U,)``
    """

    parameters: SixScenarios
    user: Whole
    scenario: Whole
    outcome: npt.NDArray[np.bool_]
    always: Array
    need: Array
    appeal: Array
    price: Array
    told: Array
    vector: Array
    own: Array
    propensity: Array

    def utility(self) -> Array:
        """Both utilities, with all that is true. ``(2, R)``"""
        p = self.parameters
        mixture, which = np.array(p.mixture)[self.scenario], _tastes(p)[self.scenario]
        own = np.zeros_like(self.always)
        for part in range(3):
            taste = self.own[self.user, which[:, part]]
            own += mixture[:, part] * (taste * self.vector).sum(axis=2)
        own[0] += p.propensity * self.propensity[self.user]
        return self.always + self.need + self.appeal + self.price + self.told + own


def draw(p: SixScenarios, seed: int) -> Log:
    """A log by the parameters, drift left out."""
    rng = np.random.default_rng(seed)
    wide, tastes = p.taste_dim, 1 + p.groups + p.scenarios
    request = np.arange(p.num_requests)
    day = request * p.days // p.num_requests
    # Who, where, and what.
    user = np.floor(
        np.ceil(p.users * (1 - p.new_users_per_day * (p.days - 1 - day)))
        * rng.random(p.num_requests) ** p.user_skew
    ).astype(np.int64)
    everywhere, home = rng.random(p.users) < p.user_overlap, rng.random(p.users)
    place = np.where(everywhere[user], rng.random(p.num_requests), home[user])
    scenario = np.searchsorted(np.cumsum(p.shares)[:-1], place, side="right")
    query = np.where(
        rng.random(p.num_requests) < p.query_share, rng.integers(0, NUM_CUISINES, p.num_requests), -1
    )
    day, user, scenario, query = (np.repeat(one, p.list_length) for one in (day, user, scenario, query))
    position = np.tile(np.arange(1, p.list_length + 1), p.num_requests)
    item = _items(p, rng, scenario, day)
    # What they are like.
    age, city = rng.integers(0, NUM_AGE_GROUPS, p.users), rng.integers(0, NUM_CITY_TIERS, p.users)
    budget, cuisine = rng.integers(1, BUDGETS + 1, p.users), rng.integers(0, NUM_CUISINES, p.items)
    of_age, of_city = (rng.standard_normal((n, tastes, wide)) for n in (NUM_AGE_GROUPS, NUM_CITY_TIERS))
    attributes = math.sqrt(p.user_explained / 2) * (of_age[age] + of_city[city])
    own, propensity = rng.standard_normal((p.users, tastes, wide)), rng.standard_normal(p.users)
    of_cuisine = rng.standard_normal((2, NUM_CUISINES, wide))
    vectors = math.sqrt(p.item_explained) * of_cuisine[:, cuisine]
    vectors = vectors + math.sqrt(1 - p.item_explained) * rng.standard_normal((2, p.items, wide))
    appeals = rng.standard_normal((2, p.items, tastes))
    level = rng.standard_normal(p.items)
    # What that makes of each row.
    mixture, which = np.array(p.mixture)[scenario], _tastes(p)[scenario]
    expected = expectations(p)
    told = np.zeros((2, len(user)))
    appeal = np.zeros((2, len(user)))
    for part in range(3):
        weight, taste = mixture[:, part], which[:, part]
        told += weight * (attributes[user, taste] * vectors[:, item]).sum(axis=2) / math.sqrt(wide)
        appeal += p.appeal * weight * appeals[:, item, taste]
    agreement = np.array(p.agreements)[scenario]

    def both(one: Array) -> Array:
        """Of the click utility and, mixed with the other one, of the order utility; rows last."""
        return np.stack([one[0], agreement * one[0] + np.sqrt(1 - agreement**2) * one[1]])

    vector = both(vectors[:, item].transpose(0, 2, 1)).transpose(0, 2, 1)
    need = np.where(query >= 0, (of_cuisine[0, query] * vectors[0, item]).sum(axis=1), 0) / math.sqrt(wide)
    intercepts = np.array([[one.click_intercept, one.order_intercept] for one in expected]).T[:, scenario]
    intercepts[0] -= p.position_weight * np.log(position)
    log = Log(
        parameters=p,
        user=user,
        scenario=scenario,
        outcome=np.zeros((2, len(user)), bool),
        always=intercepts,
        need=np.stack([p.query_need * need, np.zeros(len(user))]),
        appeal=both(appeal),
        price=np.stack(
            [np.zeros(len(user)), -p.price_weight * (1 - (budget[user] - 3) / math.sqrt(8)) * level[item]]
        ),
        told=p.taste * both(told),
        vector=p.taste * math.sqrt((1 - p.user_explained) / wide) * vector,
        own=own,
        propensity=propensity,
    )
    click, order = rng.random((2, len(user))) < _chance(log.utility())
    log.outcome[:] = click, click & order
    return log


def _items(p: SixScenarios, rng: np.random.Generator, scenario: Whole, day: Whole) -> Whole:
    """Restaurants that rows show: of those that are open, shared ones and the scenario's own."""
    first, own = np.array(p.own_items).T[:, scenario]
    is_open = 1 - p.new_items_per_day * (p.days - 1 - day)
    shared, own = np.ceil(p.num_shared_items * is_open), np.ceil(own * is_open)
    rank = rng.random(len(day)) ** p.item_skew
    is_shared = rng.random(len(day)) * (shared + own) < shared
    return np.where(is_shared, np.floor(shared * rank), first + np.floor(own * rank)).astype(np.int64)


def _tastes(p: SixScenarios) -> Whole:
    """The three tastes that each scenario mixes. ``(M, 3)``"""
    scenario = np.arange(p.scenarios)
    return np.stack([0 * scenario, 1 + scenario % p.groups, 1 + p.groups + scenario], axis=1)


def _chance(utility: Array) -> Array:
    return 1 / (1 + np.exp(-utility))


def learned(log: Log, train: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """What train rows tell of each row's user, all else known.

    Returns:
        Mean and variance of what the user's own taste and propensity add to both utilities. ``(2, R)`` each
    """
    p = log.parameters
    mean, variance = np.zeros((2, 2, len(log.user)))
    rows_of = np.split(
        np.argsort(log.user, kind="stable"), np.cumsum(np.bincount(log.user, minlength=p.users))[:-1]
    )
    known = log.always + log.need + log.appeal + log.price + log.told
    mixture, which = np.array(p.mixture), _tastes(p)
    for rows in rows_of:
        # A number for every axis of every taste, and the propensity, which clicks alone have.
        design = np.zeros((2, len(rows), log.own[0].size + 1))
        axes = np.arange(p.taste_dim)
        for part in range(3):
            places = which[log.scenario[rows], part, None] * p.taste_dim + axes
            values = mixture[log.scenario[rows], part, None] * log.vector[:, rows]
            for task in range(2):
                np.add.at(design[task], (np.arange(len(rows))[:, None], places), values[task])
        design[0, :, -1] = p.propensity
        seen = train[rows]
        ordered = seen & log.outcome[0, rows]  # whether an order follows is known of the clicked
        told = np.concatenate([design[0, seen], design[1, ordered]])
        offset = np.concatenate([known[0, rows[seen]], known[1, rows[ordered]]])
        outcome = np.concatenate([log.outcome[0, rows[seen]], log.outcome[1, rows[ordered]]])
        mode = np.zeros(design.shape[2])
        curvature = np.eye(len(mode))
        for _ in range(_STEPS if len(told) else 0):
            chance = _chance(offset + told @ mode)
            curvature = np.eye(len(mode)) + (told * (chance * (1 - chance))[:, None]).T @ told
            mode += np.linalg.solve(curvature, told.T @ (outcome - chance) - mode)
        mean[:, rows] = design @ mode
        spread = np.linalg.solve(curvature, design.reshape(-1, len(mode)).T).T
        variance[:, rows] = (design * spread.reshape(design.shape)).sum(axis=2)
    return mean, variance


def levels(log: Log, train: npt.NDArray[np.bool_]) -> Iterator[tuple[str, Array]]:
    """Chances of a click and of an order after it, ``(2, R)``, by what is known."""
    known = log.always
    yield "scenario and position", _chance(known)
    for name, part in (
        ("+ what was searched for", log.need),
        ("+ how each restaurant is liked", log.appeal),
        ("+ price and budget", log.price),
        ("+ taste by age and city, in each scenario", log.told),
    ):
        known = known + part
        yield name, _chance(known)
    mean, variance = learned(log, train)
    # A logistic choice at a normal utility: MacKay (1992).
    yield "+ of users what their rows tell", _chance((known + mean) / np.sqrt(1 + math.pi * variance / 8))
    yield "the oracle", _chance(log.utility())


def auc_of_cells(log: Log, chances: Array, test: npt.NDArray[np.bool_]) -> list[float]:
    """AUC of each scenario's clicks and orders on test rows."""
    click, order = chances[0], chances[0] * chances[1]
    return [
        float(roc_auc_score(outcome[rows], scores[rows]))
        for scenario in range(log.parameters.scenarios)
        for rows in [test & (log.scenario == scenario)]
        for outcome, scores in zip(log.outcome, (click, order), strict=True)
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--impressions", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    log = draw(SixScenarios(impressions=given.impressions), given.seed)
    place = np.arange(len(log.user)) / len(log.user)
    train, test = place < 0.6, place >= 0.7
    for name, chances in levels(log, train):
        cells = auc_of_cells(log, chances, test)
        say(f"{name:45s} {np.mean(cells):.4f}   {' '.join(f'{cell:.3f}' for cell in cells)}")


if __name__ == "__main__":
    main()
