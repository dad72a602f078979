"""The process: requests, whom and what they bring together, and how likely a click and an order are.

Nothing is drawn in order and nothing depends on another row: each value is an expression over the row's ids.
Impressions are joined with restaurants as of the day alone.
"""

from __future__ import annotations

import math

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng.contract.six_scenarios import SixScenarios
from feature_eng.sources.six_scenarios.draws import Draws, chosen, dot
from feature_eng.sources.six_scenarios.expected import BUDGETS, NUM_CUISINES, expectations

START = 1_704_067_200
"""2024-01-01 00:00 UTC, in seconds since the epoch."""
DAY = 86_400
NUM_AGE_GROUPS = 6
NUM_CITY_TIERS = 4


class Process:
    """The made log as tables that are computed when they are asked for.

    Args:
        spark: Session to make rows with.
        parameters: Of the process.
        partitions: Of the requests; Spark's default when ``None``. Rows do not depend on it.
    """

    def __init__(self, spark: SparkSession, parameters: SixScenarios, partitions: int | None = None) -> None:
        self.spark = spark
        self.parameters = parameters
        self._partitions = partitions
        self._draws = Draws(parameters.seed)

    def requests(self) -> DataFrame:
        """One row per request: who, where (``scenario``, 0-based), when, and what was searched for."""
        p, draw = self.parameters, self._draws
        rows = self.spark.range(0, p.num_requests, 1, self._partitions)
        request = F.col("request_id")
        day = F.floor(request * p.days / F.lit(p.num_requests)).cast("int")
        joined = self._grown(F.lit(p.users), p.new_users_per_day, F.col("day"))
        user = F.floor(joined * F.pow(draw.uniform("user", request), F.lit(p.user_skew)))
        is_shared = draw.uniform("user is shared", F.col("user")) < p.user_overlap
        # A user of one scenario draws it once, by who they are; a shared one anew for each request.
        place = F.when(is_shared, draw.uniform("scenario", request)).otherwise(
            draw.uniform("home scenario", F.col("user"))
        )
        searches = draw.uniform("searches", request) < p.query_share
        return (
            rows.withColumnRenamed("id", "request_id")
            .withColumn("day", day)
            .withColumn("user", user)
            .select(
                "request_id",
                "day",
                "user",
                self._scenario_at(place).alias("scenario"),
                (START + F.col("day") * DAY + draw.below(DAY, "second", request)).alias("shown_at"),
                F.when(searches, draw.below(NUM_CUISINES, "query", request)).alias("query"),
            )
        )

    def impressions(self) -> DataFrame:
        """One row per impression, with utilities without intercepts, and probabilities."""
        p, draw = self.parameters, self._draws
        requests = self.requests().select(
            "*",
            self.user_taste().alias("user_taste"),
            self._vector("cuisine", F.col("query")).alias("need"),
            (F.lit(p.propensity) * draw.normal("propensity", F.col("user"))).alias("propensity"),
        )
        lists = requests.withColumn(
            "position", F.explode(F.sequence(F.lit(1), F.lit(p.list_length)))
        ).withColumn("impression_id", F.col("request_id") * p.list_length + F.col("position") - 1)
        shown = lists.withColumn("item", self._item())
        return self._with_choices(shown.join(self.items_by_day(), on=["item", "day"], how="inner"))

    def items_by_day(self) -> DataFrame:
        """One row per restaurant and day: vectors of both attractions, and appeals in every taste."""
        p = self.parameters
        days = self.spark.range(0, p.items, 1, self._partitions).select(
            F.col("id").alias("item"), F.explode(F.sequence(F.lit(0), F.lit(p.days - 1))).alias("day")
        )
        return days.select(
            "item",
            "day",
            *(self._item_vector(kind).alias(f"{kind}_vector") for kind in ("click", "order")),
            *(self._item_appeals(kind).alias(f"{kind}_appeal") for kind in ("click", "order")),
        )

    def price(self, item: Column) -> Column:
        """A restaurant's price, in units of money."""
        p = self.parameters
        return F.round(p.median_price * F.exp(p.price_spread * self._price_level(item)), 2)

    def budget(self, user: Column) -> Column:
        """A user's budget, 1 to 5."""
        return (self._draws.below(BUDGETS, "budget", user) + 1).cast("int")

    def age_group(self, user: Column) -> Column:
        """A user's age group, 0-based."""
        return self._draws.below(NUM_AGE_GROUPS, "age group", user).cast("int")

    def city_tier(self, user: Column) -> Column:
        """Tier of a user's city, 0-based."""
        return self._draws.below(NUM_CITY_TIERS, "city tier", user).cast("int")

    def cuisine(self, item: Column) -> Column:
        """A restaurant's cuisine, 0-based."""
        return self._draws.below(NUM_CUISINES, "cuisine", item).cast("int")

    def stars(self, item: Column) -> Column:
        """A poor measure of a restaurant's appeal on the first day in the taste that all scenarios share."""
        draw = self._draws
        seen = math.sqrt(0.5) * (draw.normal("click appeal", item, F.lit(0)) + draw.normal("stars", item))
        return F.round(F.least(F.greatest(3.5 + 0.6 * seen, F.lit(1.0)), F.lit(5.0)), 1)

    def joined_day(self, user: Column) -> Column:
        """Day on which a user joined; 0 for all who were there at the start."""
        return self._first_day(user, F.lit(self.parameters.users), self.parameters.new_users_per_day)

    def opened_day(self, item: Column) -> Column:
        """Day on which a restaurant opened, in its own catalogue's order."""
        p = self.parameters
        place, count = item, F.lit(p.num_shared_items)
        for first, own in p.own_items:
            is_own = item >= first
            place = F.when(is_own, item - first).otherwise(place)
            count = F.when(is_own, F.lit(own)).otherwise(count)
        return self._first_day(place, count, p.new_items_per_day)

    def _grown(self, count: Column, per_day: float, day: Column) -> Column:
        """How many of ``count`` are there on a day."""
        left = self.parameters.days - 1 - day
        return F.ceil(count * (F.lit(1.0) - F.lit(per_day) * left))

    def _first_day(self, place: Column, count: Column, per_day: float) -> Column:
        days = F.sequence(F.lit(0), F.lit(self.parameters.days - 1))
        return F.element_at(F.filter(days, lambda day: place < self._grown(count, per_day, day)), 1)

    def _scenario_at(self, place: Column) -> Column:
        ends: list[float] = []
        for share in self.parameters.shares:
            ends.append(share + (ends[-1] if ends else 0.0))
        passed = F.filter(F.array(*(F.lit(end) for end in ends[:-1])), lambda end: end <= place)
        return F.size(passed).alias("scenario")

    def _item(self) -> Column:
        """An open restaurant of the scenario's catalogue: shared ones and its own by their numbers."""
        p, draw = self.parameters, self._draws
        impression, scenario, day = F.col("impression_id"), F.col("scenario"), F.col("day")
        first = F.element_at(F.array(*(F.lit(first) for first, _ in p.own_items)), scenario + 1)
        num_own = F.element_at(F.array(*(F.lit(count) for _, count in p.own_items)), scenario + 1)
        shared = self._grown(F.lit(p.num_shared_items), p.new_items_per_day, day)
        own = self._grown(num_own, p.new_items_per_day, day)
        is_shared = draw.uniform("item is shared", impression) * (shared + own) < shared
        rank = F.pow(draw.uniform("item", impression), F.lit(p.item_skew))
        return F.when(is_shared, F.floor(shared * rank)).otherwise(first + F.floor(own * rank))

    def _vector(self, stream: str, *ids: Column) -> Column:
        """A standard normal vector of the taste's width; null if an id is."""
        some = F.sequence(F.lit(0), F.lit(self.parameters.taste_dim - 1))
        vector = F.transform(some, lambda axis: self._draws.normal(stream, *ids, axis))
        for one in ids:
            vector = F.when(one.isNotNull(), vector)
        return vector

    def _turned(self, stream: str, *ids: Column) -> Column:
        """A standard normal that drifts: its correlation between two days is the cosine of the angle turned."""
        angle = F.lit(self.parameters.drift) * F.col("day")
        draw = self._draws
        return F.cos(angle) * draw.normal(stream, *ids) + F.sin(angle) * draw.normal(f"{stream}/later", *ids)

    def _tastes_of_scenario(self) -> list[tuple[Column, Column]]:
        """The three tastes that a row's scenario mixes, by number, and their weights."""
        p = self.parameters
        scenario = F.col("scenario")
        weights = list(zip(*p.mixture, strict=True))
        tastes = (F.lit(0), 1 + scenario % p.groups, 1 + p.groups + scenario)
        return [(taste, chosen(weight, scenario)) for taste, weight in zip(tastes, weights, strict=True)]

    def user_taste(self) -> Column:
        """``w_um(t)`` of a row's ``user``, ``scenario`` and ``day``."""
        p, draw, user = self.parameters, self._draws, F.col("user")
        told, own = math.sqrt(p.user_explained / 2), math.sqrt(1 - p.user_explained)

        def on(axis: Column) -> Column:
            parts = [
                weight
                * (
                    told * draw.normal("age group taste", self.age_group(user), taste, axis)
                    + told * draw.normal("city tier taste", self.city_tier(user), taste, axis)
                    + own * self._turned("user taste", user, taste, axis)
                )
                for taste, weight in self._tastes_of_scenario()
            ]
            return parts[0] + parts[1] + parts[2]

        return F.transform(F.sequence(F.lit(0), F.lit(p.taste_dim - 1)), on)

    def _item_vector(self, kind: str) -> Column:
        """``q_i(t)``, for clicks or for orders."""
        p, draw, item = self.parameters, self._draws, F.col("item")
        told, own = math.sqrt(p.item_explained), math.sqrt(1 - p.item_explained)
        # The cuisine's vector for clicks is what a search for it asks for.
        stream = "cuisine" if kind == "click" else "cuisine in orders"

        def on(axis: Column) -> Column:
            return told * draw.normal(stream, self.cuisine(item), axis) + own * self._turned(
                f"{kind} vector", item, axis
            )

        return F.transform(F.sequence(F.lit(0), F.lit(p.taste_dim - 1)), on)

    def _item_appeals(self, kind: str) -> Column:
        """``y_ik(t)`` of every taste k."""
        tastes = F.sequence(F.lit(0), F.lit(self.parameters.groups + self.parameters.scenarios))
        return F.transform(tastes, lambda taste: self._turned(f"{kind} appeal", F.col("item"), taste))

    def _price_level(self, item: Column) -> Column:
        return self._draws.normal("price", item)

    def _attraction(self, kind: str) -> Column:
        p = self.parameters
        appeal = F.lit(0.0)
        for taste, weight in self._tastes_of_scenario():
            appeal += weight * F.element_at(F.col(f"{kind}_appeal"), taste.cast("int") + 1)
        taste_part = dot(F.col("user_taste"), F.col(f"{kind}_vector")) / math.sqrt(p.taste_dim)
        return p.taste * taste_part + p.appeal * appeal

    def _with_choices(self, shown: DataFrame) -> DataFrame:
        p = self.parameters
        scenario = F.col("scenario")
        expected = expectations(p)
        need = dot(F.col("need"), F.col("click_vector")) / math.sqrt(p.taste_dim)
        agreement = chosen(p.agreements, scenario)
        price = (
            p.price_weight
            * (1 - (self.budget(F.col("user")) - 3) / math.sqrt(8))
            * self._price_level(F.col("item"))
        )
        attracted = shown.withColumns(
            {"attraction": self._attraction("click"), "order_attraction": self._attraction("order")}
        )
        utilities = attracted.withColumns(
            {
                "click_utility": chosen(tuple(one.click_intercept for one in expected), scenario)
                + F.col("attraction")
                + F.col("propensity")
                + p.query_need * F.coalesce(need, F.lit(0.0)),
                "order_attraction": agreement * F.col("attraction")
                + F.sqrt(1 - agreement * agreement) * F.col("order_attraction"),
            }
        ).withColumn(
            "order_utility",
            chosen(tuple(one.order_intercept for one in expected), scenario)
            + F.col("order_attraction")
            - price,
        )
        at_position = F.col("click_utility") - p.position_weight * F.log(F.col("position").cast("double"))
        return utilities.select(
            "impression_id",
            "request_id",
            "user",
            "item",
            "scenario",
            "day",
            "shown_at",
            "position",
            "query",
            "attraction",
            "order_attraction",
            "click_utility",
            "order_utility",
            self._choice(at_position).alias("click_prob"),
            self._choice(F.col("order_utility")).alias("order_given_click_prob"),
        )

    def _choice(self, utility: Column) -> Column:
        return 1 / (1 + F.exp(-utility / self.parameters.noise))
