"""The made log's raw tables, as a platform would keep them."""

from __future__ import annotations

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng.contract.six_scenarios import SixScenarios
from feature_eng.sources.six_scenarios.draws import Draws
from feature_eng.sources.six_scenarios.process import DAY, START, Process


def raw_tables(
    spark: SparkSession, parameters: SixScenarios, partitions: int | None = None
) -> dict[str, DataFrame]:
    """Every raw table by name; the truth is none of them.

    Impressions carry their users' and restaurants' attributes. They are made once and kept (in memory, or else on
    disk) until the session ends, because making them costs more than keeping them.
    """
    process = Process(spark, parameters, partitions)
    choices = _with_outcomes(process).persist(StorageLevel.MEMORY_AND_DISK)
    ids = [F.col("impression_id"), *_ids()]
    clicked = choices.where(F.col("clicked_at").isNotNull())
    requests = process.requests()
    sought = Draws(parameters.seed).exponential(120.0, "search delay", F.col("request_id"))
    return {
        "impressions": choices.select(
            F.col("impression_id"),
            F.col("request_id"),
            *_ids(),
            (F.col("scenario") + 1).alias("scenario_id"),
            F.col("shown_at"),
            F.col("position"),
            _code("c", F.col("query")).alias("query"),
            *_user_attributes(process),
            *_item_attributes(process),
        ),
        "clicks": clicked.select(ids[0], "request_id", *ids[1:], "clicked_at"),
        "orders": clicked.where(F.col("ordered_at").isNotNull()).select(*ids, "ordered_at", "amount"),
        "searches": requests.where(F.col("query").isNotNull()).select(
            F.col("request_id"),
            (F.col("user") + 1).alias("user_id"),
            _code("c", F.col("query")).alias("query"),
            (F.col("shown_at") - 1 - F.floor(sought)).alias("searched_at"),
        ),
        "users": spark.range(0, parameters.users, 1, partitions)
        .withColumnRenamed("id", "user")
        .select(
            (F.col("user") + 1).alias("user_id"),
            *_user_attributes(process),
            (START + DAY * process.joined_day(F.col("user"))).alias("joined_at"),
        ),
        "items": spark.range(0, parameters.items, 1, partitions)
        .withColumnRenamed("id", "item")
        .select(
            (F.col("item") + 1).alias("item_id"),
            *_item_attributes(process),
            (START + DAY * process.opened_day(F.col("item"))).alias("opened_at"),
        ),
    }


def _with_outcomes(process: Process) -> DataFrame:
    """Impressions with ``clicked_at``, ``ordered_at`` and ``amount``, null where there is none."""
    p, draw, impression = process.parameters, Draws(process.parameters.seed), F.col("impression_id")
    clicks = draw.uniform("click", impression) < F.col("click_prob")
    orders = clicks & (draw.uniform("order", impression) < F.col("order_given_click_prob"))
    click_delay = F.floor(draw.exponential(p.click_delay_seconds, "click delay", impression))
    order_delay = F.floor(draw.exponential(3600 * p.order_delay_hours, "order delay", impression))
    basket = F.exp(p.basket_spread * draw.normal("basket", impression) - p.basket_spread**2 / 2)
    clicked_at = F.col("shown_at") + click_delay
    return process.impressions().select(
        "impression_id",
        "request_id",
        "user",
        "item",
        "scenario",
        "shown_at",
        "position",
        "query",
        F.when(clicks, clicked_at).alias("clicked_at"),
        F.when(orders, clicked_at + order_delay).alias("ordered_at"),
        F.when(orders, F.round(process.price(F.col("item")) * basket, 2)).alias("amount"),
    )


def _ids() -> list[Column]:
    return [(F.col("user") + 1).alias("user_id"), (F.col("item") + 1).alias("item_id")]


def _user_attributes(process: Process) -> list[Column]:
    user = F.col("user")
    return [
        _code("a", process.age_group(user)).alias("age_group"),
        _code("t", process.city_tier(user)).alias("city_tier"),
        process.budget(user).alias("budget"),
    ]


def _item_attributes(process: Process) -> list[Column]:
    item = F.col("item")
    return [
        _code("c", process.cuisine(item)).alias("cuisine"),
        process.price(item).alias("price"),
        process.stars(item).alias("stars"),
    ]


def _code(letter: str, number: Column) -> Column:
    """``c07`` for 6; null stays null."""
    return F.concat(F.lit(letter), F.lpad((number + 1).cast("string"), 2, "0"))
