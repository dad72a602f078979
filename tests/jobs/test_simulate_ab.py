"""The simulated A/B test on the process's own truth: lists stay whole, and what it finds is what the truth says."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from job_files import load_job
from job_runs import ROOT
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from feature_eng.contract import Contract, SixScenarios, load_contract
from feature_eng.sources.six_scenarios.process import Process
from feature_eng.sources.six_scenarios.truth import truth
from foundation.settings import UserError
from hinet_model.studies.online import METRICS, Choices, run

pytestmark = pytest.mark.spark

MADE = SixScenarios(impressions=12_000, users=800, items=200, days=3)
WINDOW = 86_400.0


@pytest.fixture(scope="module")
def job() -> ModuleType:
    return load_job("simulate_ab")


@pytest.fixture(scope="module")
def contract() -> Contract:
    return load_contract(ROOT / "conf" / "contracts" / "six_scenarios.yml")


@pytest.fixture(scope="module")
def shown(spark: SparkSession) -> pd.DataFrame:
    """Every impression with the truth, and what two models would say: where it was shown, and nearly the truth."""
    process = Process(spark, MADE, 2)
    rows = process.impressions().select(
        "impression_id", "request_id", "position", "scenario", (F.col("user") + 1).alias("user_id"),
        process.price(F.col("item")).alias("price"),
    )  # fmt: skip
    found = rows.join(truth(spark, MADE, WINDOW, 2), "impression_id").toPandas()
    noise = np.exp(np.random.default_rng(0).normal(size=len(found)))
    for task in ("click", "order"):
        found[f"{task}__prob_0"] = 1.0 / found["position"]
        found[f"{task}__prob_1"] = np.minimum(found[f"{task}_prob"] * noise, 1.0)
    return found


def choices() -> Choices:
    return Choices(MADE.noise, MADE.position_weight, MADE.order_in_window(WINDOW), MADE.basket_spread)


def test_lists_that_are_shown_as_they_were_have_the_clicks_and_orders_of_the_truth(
    job: ModuleType, contract: Contract, shown: pd.DataFrame
) -> None:
    of_scenario = shown[shown["scenario"] == 1]
    lists, scores = job.lists_of(of_scenario, contract, MADE.list_length, {"click": 1.0})
    found = {one.metric: one for one in run(lists, scores[0], -scores[0], MADE.list_length, choices(), 0)}
    # The other arm turns every list round, so that this one's expectation is known from the uplift.
    click = of_scenario["click_utility"] - MADE.position_weight * np.log(11 - of_scenario["position"])
    turned = 1 / (1 + np.exp(-click / MADE.noise))
    assert found["CTR"].expected == pytest.approx(turned.sum() / of_scenario["click_prob"].sum() - 1)
    given_click = of_scenario["order_prob"] / of_scenario["click_prob"]
    revenue = (turned * given_click * of_scenario["price"]).sum() / of_scenario["expected_revenue"].sum()
    assert found["order revenue per user"].expected == pytest.approx(revenue - 1)


def test_the_test_agrees_with_direct_expectation_within_its_interval(
    job: ModuleType, contract: Contract, shown: pd.DataFrame
) -> None:
    score = {"click": 0.3, "order": 1.0, "price": 0.5}
    held, gains = [], []
    for scenario in range(2):
        lists, scores = job.lists_of(shown[shown["scenario"] == scenario], contract, MADE.list_length, score)
        for seed in range(20):
            for one in run(lists, scores[0], scores[1], 5, choices(), seed):
                held.append(one.low <= one.expected <= one.high)
                gains.append(one.expected)
    assert len(held) == 2 * 20 * len(METRICS)
    assert np.mean(held) > 0.9
    assert min(gains) > 0.1  # a model that knows nearly the truth against none


def test_a_list_with_a_candidate_in_another_split_is_left_out(spark: SparkSession, job: ModuleType) -> None:
    splits = [
        (2, "test", "a"),
        (3, "test", "a"),
        (4, "test", "a"),
        (5, "train", "a"),
        (6, "test", "b"),
        (7, "test", "b"),
    ]
    rows = spark.createDataFrame(splits, "impression_id long, split string, scenario string")
    found = job.whole_lists(rows, ["a"], 2).collect()
    assert sorted((row["request_id"], row["impression_id"]) for row in found) == [(1, 2), (1, 3)]


def test_data_without_a_known_truth_are_refused(job: ModuleType, contract: Contract) -> None:
    movielens = load_contract(ROOT / "conf" / "contracts" / "movielens.yml")
    given = job.arguments().parse_args(["--config", "x"])
    with pytest.raises(UserError, match="no known truth"):
        job.check(movielens, SixScenarios(), given)
    given.score = {"clicks": 1.0}
    with pytest.raises(UserError, match="--score: no clicks; expected some of click, order, price"):
        job.check(contract, SixScenarios(), given)
