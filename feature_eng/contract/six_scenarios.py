"""The section ``source.six_scenarios`` of a contract: parameters of the made log (docs/six_scenarios.md)."""

from __future__ import annotations

import itertools
import math
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from foundation.settings import ConfigError, Settings

TABLES = ("impressions", "clicks", "orders", "searches", "users", "items")
"""Tables that the reader gives; the truth is none of them."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0, lt=1.0)]
Scale = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]


class SixScenarios(Settings):
    """Parameters of the process that makes the log; the equations are in docs/six_scenarios.md.

    Args:
        seed: An equal seed gives an equal log.
        scenarios: How many; the contract's ``scenario.values`` must cover 1 to this.
        impressions: Rows, rounded up to whole lists.
        days: Days that they are spread over.
        users: Users who have joined by the last day.
        items: Restaurants that have opened by the last day.
        list_length: Restaurants that a request shows.
        largest_to_smallest: Rows of the largest scenario for one of the smallest.
        share_curve: How the sizes fall in between; 1 is geometric, more keeps the first ones large.
        user_overlap: Share of users who are met in every scenario; the others are met in one.
        item_overlap: Share of restaurants that are listed in every scenario; the others in one.
        user_skew: 1 makes all users equally active, more favours early ones.
        item_skew: The same of restaurants.
        new_users_per_day: Share of all users that joins on each day after the first.
        new_items_per_day: Share of all restaurants that opens on each day after the first.
        taste_dim: Width of taste vectors.
        user_explained: Share of a user's taste that age and city tell.
        item_explained: Share of a restaurant's vector that its cuisine tells.
        shared_taste: Share of taste common to all scenarios, in the first and in the last one.
        group_taste: Share of the rest that a group of scenarios has in common.
        groups: Groups of scenarios.
        drift: Radians a day by which what attributes do not tell turns.
        taste: Weight of taste in an attraction.
        appeal: Weight of a restaurant's appeal in it.
        propensity: Spread between users' inclinations to click.
        query_need: Weight of a searched cuisine.
        query_share: Share of requests that follow a search.
        position_weight: Falls with the logarithm of the position.
        click_rate: Expected clicks per impression, in the first and in the last scenario.
        order_rate: Expected orders per click, in the first and in the last scenario.
        agreement: Correlation of click and order attractions in odd scenarios.
        conflict: 0: the same in even ones; 1: the opposite.
        noise: Scale of the shock that nobody can know.
        median_price: Of a restaurant, in units of money.
        price_spread: Standard deviation of the logarithm of prices.
        price_weight: Weight of the price in the order utility.
        basket_spread: Standard deviation of the logarithm of an order's amount over the price.
        click_delay_seconds: Mean time from impression to click.
        order_delay_hours: Mean time from click to order.
    """

    seed: Annotated[int, Field(ge=0)] = 0
    scenarios: Annotated[int, Field(ge=2, le=100)] = 6
    impressions: Count = 300_000
    days: Annotated[int, Field(ge=1, le=366)] = 14
    users: Count = 10_000
    items: Count = 1_000
    list_length: Annotated[int, Field(ge=1, le=1_000)] = 10
    largest_to_smallest: Annotated[float, Field(ge=1.0)] = 40.0
    share_curve: Annotated[float, Field(gt=0.0)] = 1.6
    user_overlap: Share = 0.6
    item_overlap: Share = 0.5
    user_skew: Annotated[float, Field(ge=1.0)] = 1.5
    item_skew: Annotated[float, Field(ge=1.0)] = 2.0
    new_users_per_day: Share = 0.02
    new_items_per_day: Share = 0.01
    taste_dim: Annotated[int, Field(ge=1, le=64)] = 8
    user_explained: Share = 0.6
    item_explained: Share = 0.6
    shared_taste: tuple[Share, Share] = (0.2, 0.5)
    group_taste: Share = 0.6
    groups: Count = 3
    drift: Scale = 0.03
    taste: Scale = 1.0
    appeal: Scale = 0.7
    propensity: Scale = 0.4
    query_need: Scale = 0.8
    query_share: Share = 0.3
    position_weight: Scale = 0.5
    click_rate: tuple[Rate, Rate] = (0.2, 0.3)
    order_rate: tuple[Rate, Rate] = (0.3, 0.4)
    agreement: Share = 0.8
    conflict: Share = 0.75
    noise: Annotated[float, Field(gt=0.0)] = 1.0
    median_price: Annotated[float, Field(gt=0.0)] = 20.0
    price_spread: Annotated[float, Field(gt=0.0)] = 0.4
    price_weight: Scale = 0.6
    basket_spread: Scale = 0.3
    click_delay_seconds: Annotated[float, Field(gt=0.0)] = 15.0
    order_delay_hours: Annotated[float, Field(gt=0.0)] = 6.0

    @model_validator(mode="after")
    def _parts_fit_together(self) -> SixScenarios:
        faults = []
        for name in ("users", "items"):
            grown = getattr(self, f"new_{name}_per_day") * (self.days - 1)
            if grown >= 1.0:
                faults.append(
                    f"new_{name}_per_day: {self.days - 1} days of it leave none for the first day; expected less "
                    f"than {1 / (self.days - 1):.4f}"
                )
        own = self.items - self.num_shared_items
        if self.num_shared_items == 0 and own < self.scenarios:
            faults.append(
                f"items: {self.items} leave a scenario of {self.scenarios} without any; expected at least "
                f"{self.scenarios}, or item_overlap above 0"
            )
        if self.groups > self.scenarios:
            faults.append(f"groups: {self.groups} is more than the {self.scenarios} scenarios")
        if self.num_requests < self.days:
            faults.append(
                f"impressions: {self.impressions} are {self.num_requests} lists; expected at least one for each of "
                f"{self.days} days"
            )
        if faults:
            raise ConfigError(faults)
        return self

    @property
    def num_requests(self) -> int:
        """Lists that were shown."""
        return math.ceil(self.impressions / self.list_length)

    @property
    def num_shared_items(self) -> int:
        """Restaurants that every scenario lists; they have the smallest ids."""
        return round(self.item_overlap * self.items)

    @property
    def own_items(self) -> tuple[tuple[int, int], ...]:
        """First index and number of each scenario's own restaurants."""
        bounds = [
            self.num_shared_items + (self.items - self.num_shared_items) * m // self.scenarios
            for m in range(self.scenarios + 1)
        ]
        return tuple((low, high - low) for low, high in itertools.pairwise(bounds))

    @property
    def shares(self) -> tuple[float, ...]:
        """Each scenario's share of the rows, largest first."""
        steps = np.arange(self.scenarios) / (self.scenarios - 1)
        sizes = np.exp(-math.log(self.largest_to_smallest) * steps**self.share_curve)
        return tuple(float(share) for share in sizes / sizes.sum())

    @property
    def mixture(self) -> tuple[tuple[float, float, float], ...]:
        """Each scenario's weights of the shared, the group's and its own taste; their squares sum to one."""
        shared = self.between(self.shared_taste)
        return tuple(
            (
                math.sqrt(share),
                math.sqrt((1 - share) * self.group_taste),
                math.sqrt((1 - share) * (1 - self.group_taste)),
            )
            for share in shared
        )

    @property
    def similarity(self) -> npt.NDArray[np.float64]:
        """Planted similarity: correlation of a user's tastes between two scenarios.

        Shape:
            ``(M, M)``, symmetric, ones on the diagonal.
        """
        shared, group, _ = (np.array(column) for column in zip(*self.mixture, strict=True))
        of_group = np.arange(self.scenarios) % self.groups
        related = of_group[:, None] == of_group[None, :]
        similarity: npt.NDArray[np.float64] = np.outer(shared, shared) + np.outer(group, group) * related
        np.fill_diagonal(similarity, 1.0)
        return similarity

    @property
    def agreements(self) -> tuple[float, ...]:
        """Each scenario's correlation of click and order attractions."""
        return tuple(self.agreement * (1 - 2 * self.conflict * (m % 2)) for m in range(self.scenarios))

    def between(self, ends: tuple[float, float]) -> tuple[float, ...]:
        """One value per scenario, evenly from the first to the last."""
        return tuple(float(value) for value in np.linspace(*ends, self.scenarios))

    def order_in_window(self, seconds: float) -> float:
        """Chance that an order comes within so many seconds of its impression: two waits, one after the other."""
        click, order = 1 / self.click_delay_seconds, 1 / (3600 * self.order_delay_hours)
        if math.isclose(click, order, rel_tol=1e-6):
            return 1 - (1 + click * seconds) * math.exp(-click * seconds)
        late = (click * math.exp(-order * seconds) - order * math.exp(-click * seconds)) / (click - order)
        return 1 - late
