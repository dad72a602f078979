"""The made log is what its parameters say, and the truth stands apart from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng.contract import ContractError, SixScenarios, load_contract
from feature_eng.contract.six_scenarios import TABLES
from feature_eng.sources.raw import read_raw
from feature_eng.sources.six_scenarios.expected import expectations, expected_auc
from feature_eng.sources.six_scenarios.process import DAY, START, Process
from feature_eng.sources.six_scenarios.tables import raw_tables
from feature_eng.sources.six_scenarios.truth import truth
from hinet_model.objective.metrics import auc as measured_auc

pytestmark = pytest.mark.spark

CONTRACT = Path(__file__).parents[2] / "conf" / "contracts" / "six_scenarios.yml"
WINDOW = 86_400
LARGE = SixScenarios(impressions=40_000, users=3_000, order_delay_hours=12)
SMALL = SixScenarios(impressions=600, users=100, items=60, days=3)


@dataclass(frozen=True)
class Log:
    """A log on this side of Spark."""

    impressions: pd.DataFrame
    clicks: pd.DataFrame
    orders: pd.DataFrame
    searches: pd.DataFrame
    users: pd.DataFrame
    items: pd.DataFrame

    def with_truth(self, known: pd.DataFrame) -> pd.DataFrame:
        """Impressions with labels (``order`` within the window) and the truth."""
        rows = self.impressions.merge(known, on="impression_id", validate="1:1")
        rows = rows.merge(self.clicks[["impression_id", "clicked_at"]], how="left", on="impression_id")
        rows = rows.merge(self.orders[["impression_id", "ordered_at"]], how="left", on="impression_id")
        rows["click"] = rows["clicked_at"].notna()
        rows["order"] = rows["ordered_at"] <= rows["shown_at"] + WINDOW
        return rows


@pytest.fixture(scope="module")
def log(spark: SparkSession) -> Log:
    return Log(**{name: frame.toPandas() for name, frame in raw_tables(spark, LARGE).items()})


@pytest.fixture(scope="module")
def rows(spark: SparkSession, log: Log) -> pd.DataFrame:
    return log.with_truth(truth(spark, LARGE, WINDOW).toPandas())


def test_scenarios_have_their_shares_of_the_rows(log: Log) -> None:
    assert len(log.impressions) == 40_000
    found = log.impressions["scenario_id"].value_counts(normalize=True)
    for scenario, share in enumerate(LARGE.shares, start=1):
        # 4,000 requests, those of a one-scenario user together: as good as 1,500 independent ones.
        assert found[scenario] == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 1_500))


def test_clicks_and_orders_come_as_often_as_the_truth_says(rows: pd.DataFrame) -> None:
    for _, of_scenario in rows.groupby("scenario_id"):
        for label, prob in (("click", "click_prob"), ("order", "order_prob")):
            probs = of_scenario[prob]
            deviation = math.sqrt((probs * (1 - probs)).sum())
            assert abs(of_scenario[label].sum() - probs.sum()) < 4 * deviation


def test_rates_are_the_parameters_but_for_one_draw_of_restaurants(rows: pd.DataFrame) -> None:
    in_window = LARGE.order_in_window(WINDOW)
    for scenario, expected in enumerate(expectations(LARGE), start=1):
        of_scenario = rows[rows["scenario_id"] == scenario]
        click_rate = of_scenario["click_prob"].mean()
        assert click_rate == pytest.approx(expected.click_rate, rel=0.2)
        order_rate = of_scenario["order_prob"].mean() / click_rate
        assert order_rate == pytest.approx(expected.order_rate * in_window, rel=0.2)


def test_the_oracle_has_the_auc_that_the_parameters_say(rows: pd.DataFrame) -> None:
    for scenario, expected in enumerate(expectations(LARGE), start=1):
        of_scenario = rows[rows["scenario_id"] == scenario]
        for label, prob, auc in (
            ("click", "click_prob", expected.click_auc),
            ("order", "order_prob", expected.order_auc),
        ):
            probs, labels = of_scenario[prob].to_numpy(), of_scenario[label].to_numpy()
            # One draw of 20 cuisines, of 40 requests at least and their restaurants.
            assert expected_auc(probs) == pytest.approx(auc, abs=0.03)
            deviation = 0.5 / math.sqrt(labels.sum())
            assert measured_auc(labels.astype(float), probs) == pytest.approx(
                expected_auc(probs), abs=4 * deviation
            )


def test_pairs_of_a_users_requests_meet_in_one_scenario_as_overlap_says(spark: SparkSession) -> None:
    for overlap in (0.0, 0.6, 1.0):
        parameters = LARGE.model_copy(update={"user_overlap": overlap, "impressions": 200_000})
        requests = Process(spark, parameters).requests().select("user", "scenario").toPandas()
        of_user = requests.groupby("user")["scenario"]
        counts = of_user.value_counts().unstack(fill_value=0).to_numpy()
        num = counts.sum(axis=1)
        counts, num = counts[num > 1], num[num > 1]
        together = (counts * (counts - 1)).sum(axis=1) / (num * (num - 1))
        by_chance = sum(share**2 for share in parameters.shares)
        expected = overlap * by_chance + (1 - overlap)
        assert together.mean() == pytest.approx(
            expected, abs=4 * together.std() / math.sqrt(len(num)) + 1e-12
        )


def test_restaurants_are_shared_as_overlap_says(log: Log, spark: SparkSession) -> None:
    shared = LARGE.num_shared_items
    assert shared == 500
    for scenario, (first, count) in enumerate(LARGE.own_items, start=1):
        items = log.impressions.loc[log.impressions["scenario_id"] == scenario, "item_id"] - 1
        is_own = items >= shared
        assert items[is_own].between(first, first + count - 1).all()
        expected = count / (count + shared)
        deviation = math.sqrt(expected * (1 - expected) / len(items))
        # Whole restaurants on each day: half a one of 80 either way.
        assert is_own.mean() == pytest.approx(expected, abs=4 * deviation + 0.002)
    apart = LARGE.model_copy(update={"item_overlap": 0.0})
    seen = Process(spark, apart).impressions().groupBy("item").agg(F.countDistinct("scenario").alias("in"))
    assert seen.agg(F.max("in")).first()[0] == 1  # type: ignore[index]


def test_early_users_are_active_and_new_ones_come_every_day(log: Log) -> None:
    requests = log.impressions.drop_duplicates("request_id").merge(log.users, on="user_id", how="left")
    day = (requests["shown_at"] - START) // DAY
    assert day.value_counts().between(285, 286).all()
    joined = (requests["joined_at"] - START) // DAY
    assert (joined <= day).all()
    present = [
        math.ceil(LARGE.users * (1 - LARGE.new_users_per_day * (LARGE.days - 1 - d))) for d in range(14)
    ]
    expected = [1 - (present[d - 1] / present[d]) ** (1 / LARGE.user_skew) for d in range(1, 14)]
    share = (joined == day)[day > 0].mean()
    assert share == pytest.approx(np.mean(expected), abs=4 * math.sqrt(np.mean(expected) / len(requests)))
    assert log.users["joined_at"].value_counts().sort_index().tolist() == [2220, *[60] * 13]


def test_new_restaurants_open_every_day_and_none_is_shown_before(log: Log) -> None:
    shown = log.impressions.merge(log.items[["item_id", "opened_at"]], on="item_id", how="left")
    assert (shown["opened_at"] <= shown["shown_at"]).all()
    opened = (log.items["opened_at"] - START) // DAY
    assert sorted(opened.unique()) == list(range(14))
    assert (opened > 0).mean() == pytest.approx(13 * LARGE.new_items_per_day, abs=0.01)
    cold = ((shown["shown_at"] - START) // DAY == (shown["opened_at"] - START) // DAY) & (
        shown["shown_at"] >= START + DAY
    )
    assert cold.any()


def test_delays_are_exponential_and_late_orders_miss_the_window(log: Log, rows: pd.DataFrame) -> None:
    clicks = rows[rows["click"]]
    waited = clicks["clicked_at"] - clicks["shown_at"]
    mean = 1 / math.expm1(1 / LARGE.click_delay_seconds)  # of an exponential rounded down
    assert waited.mean() == pytest.approx(mean, abs=4 * 15 / math.sqrt(len(clicks)))
    orders = rows[rows["ordered_at"].notna()]
    assert orders["clicked_at"].notna().all()
    hours = (orders["ordered_at"] - orders["clicked_at"]) / 3600
    assert hours.mean() == pytest.approx(12, abs=4 * 12 / math.sqrt(len(orders)))
    in_window = LARGE.order_in_window(WINDOW)
    assert in_window == pytest.approx(1 - math.exp(-2), abs=1e-3)
    deviation = math.sqrt(in_window * (1 - in_window) / len(orders))
    assert orders["order"].mean() == pytest.approx(in_window, abs=4 * deviation)
    assert len(log.orders) == len(orders)


def test_amounts_have_the_price_as_their_mean_and_revenue_follows(log: Log, rows: pd.DataFrame) -> None:
    orders = log.orders.merge(log.impressions[["impression_id", "price"]], on="impression_id")
    basket = orders["amount"] / orders["price"]
    assert basket.mean() == pytest.approx(1, abs=4 * basket.std() / math.sqrt(len(basket)))
    assert np.log(basket).std() == pytest.approx(LARGE.basket_spread, rel=0.1)
    assert np.allclose(rows["expected_revenue"], rows["order_prob"] * rows["price"])
    assert np.log(log.items["price"]).std() == pytest.approx(LARGE.price_spread, rel=0.1)


def test_the_position_changes_a_click_by_its_logarithm_and_nothing_else(rows: pd.DataFrame) -> None:
    utility = rows["click_utility"] - LARGE.position_weight * np.log(rows["position"])
    assert np.allclose(rows["click_prob"], 1 / (1 + np.exp(-utility / LARGE.noise)))
    by_position = rows.groupby("position")["click_utility"].mean()
    assert by_position.std() < 0.1


def test_dear_restaurants_are_clicked_as_often_and_ordered_from_less(rows: pd.DataFrame) -> None:
    dear = rows["price"] > rows["price"].median()
    poor = rows["budget"] <= 2
    given_click = rows["order_prob"] / rows["click_prob"]
    assert given_click[poor & dear].mean() < given_click[poor & ~dear].mean() - 0.05
    assert given_click[poor & dear].mean() < given_click[~poor & dear].mean() - 0.02


def test_tastes_of_scenarios_are_as_similar_as_planted_and_drift_as_said(spark: SparkSession) -> None:
    parameters = SixScenarios(user_explained=0.0, drift=0.1, users=2_000)
    process = Process(spark, parameters)
    users = spark.range(parameters.users).withColumnRenamed("id", "user")
    scenarios = users.select(
        "user", F.explode(F.sequence(F.lit(0), F.lit(5))).alias("scenario"), F.lit(0).alias("day")
    )
    later = users.select("user", F.lit(0).alias("scenario"), F.lit(9).alias("day"))
    tastes = scenarios.union(later).select("user", "scenario", "day", process.user_taste().alias("taste"))
    found = tastes.toPandas().sort_values(["day", "scenario", "user"])
    stacked = np.stack(
        [np.concatenate(group.to_list()) for _, group in found.groupby(["day", "scenario"])["taste"]]
    )
    correlation = np.corrcoef(stacked)
    # 16,000 pairs of numbers: a deviation of 0.008.
    assert np.abs(correlation[:6, :6] - parameters.similarity).max() < 0.04
    assert correlation[0, 6] == pytest.approx(math.cos(0.9), abs=0.04)
    assert stacked.std(axis=1) == pytest.approx(1, abs=0.05)
    appeals = process.items_by_day().where("day in (0, 9)").toPandas().sort_values(["day", "item"])
    first, last = (np.concatenate(group.to_list()) for _, group in appeals.groupby("day")["click_appeal"])
    assert np.corrcoef(first, last)[0, 1] == pytest.approx(math.cos(0.9), abs=0.04)


def test_attractions_agree_and_conflict_as_planted(spark: SparkSession) -> None:
    parameters = SixScenarios(impressions=10_000)
    parts = Process(spark, parameters).impressions().select("scenario", "attraction", "order_attraction")
    for scenario, of_scenario in parts.toPandas().groupby("scenario"):
        found = np.corrcoef(of_scenario["attraction"], of_scenario["order_attraction"])[0, 1]
        assert found == pytest.approx(parameters.agreements[scenario], abs=0.2)


def test_searches_come_before_their_lists_and_others_have_no_query(log: Log) -> None:
    requests = log.impressions.drop_duplicates("request_id").merge(
        log.searches, on=["request_id", "user_id"], how="left", suffixes=("", "_searched")
    )
    assert requests["query"].equals(requests["query_searched"])
    share = requests["query"].notna().mean()
    assert share == pytest.approx(LARGE.query_share, abs=4 * math.sqrt(0.21 / len(requests)))
    found = requests[requests["query"].notna()]
    assert (found["searched_at"] < found["shown_at"]).all()


def digests(spark: SparkSession, parameters: SixScenarios, partitions: int | None = None) -> dict[str, Any]:
    """Of each table's rows, in whatever order they come."""
    tables = raw_tables(spark, parameters, partitions)
    tables["truth"] = truth(spark, parameters, WINDOW, partitions)
    each = [
        frame.agg(F.sum(F.xxhash64(*frame.columns).cast("decimal(38, 0)")).alias("digest")).select(
            F.lit(name).alias("table"), "digest"
        )
        for name, frame in tables.items()
    ]
    found = {row["table"]: row["digest"] for row in reduce(DataFrame.union, each).collect()}
    assert set(found) == {*TABLES, "truth"}
    assert None not in found.values()
    return found


def test_rows_are_equal_for_any_number_of_partitions_and_an_equal_seed(spark: SparkSession) -> None:
    one = digests(spark, SMALL, 1)
    assert digests(spark, SMALL, 3) == one
    assert digests(spark, SMALL, 8) == one
    other = digests(spark, SMALL.model_copy(update={"seed": 1}), 1)
    assert all(other[name] != digest for name, digest in one.items())


def test_parts_of_the_truth_are_those_of_the_whole(spark: SparkSession) -> None:
    whole = truth(spark, SMALL, WINDOW)
    alone = whole.select("impression_id", F.col("click_utility").alias("alone"))
    assert whole.join(alone, on="impression_id", how="inner").where("alone != click_utility").count() == 0


@pytest.mark.parametrize(("scenarios", "groups"), [(2, 1), (100, 7)])
def test_two_to_a_hundred_scenarios(spark: SparkSession, scenarios: int, groups: int) -> None:
    parameters = SixScenarios(
        scenarios=scenarios, groups=groups, impressions=20_000, items=250, days=2, largest_to_smallest=5
    )
    found = raw_tables(spark, parameters)["impressions"].select("scenario_id").distinct().collect()
    assert sorted(row["scenario_id"] for row in found) == list(range(1, scenarios + 1))


def test_the_reader_gives_raw_tables_and_no_truth(spark: SparkSession) -> None:
    contract = load_contract(CONTRACT, ["source.six_scenarios.impressions=200"])
    raw = read_raw(spark, contract)
    assert tuple(raw) == TABLES
    columns = {name for frame in raw.values() for name in frame.columns}
    known = set(truth(spark, SMALL, WINDOW).columns) - {"impression_id"}
    assert known
    assert not known & columns
    with pytest.raises(ContractError, match="expected no --source"):
        read_raw(spark, contract, "somewhere")
