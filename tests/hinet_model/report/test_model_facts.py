"""A sample of rows is bounded in every scenario, and the same every time."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession

from hinet_model.report.model_facts import ROWS_A_SCENARIO, sampled

pytestmark = pytest.mark.spark


def test_a_large_scenario_is_sampled_and_a_small_one_taken_whole(spark: SparkSession) -> None:
    rows = [("large", number) for number in range(5000)] + [("small", number) for number in range(49)]
    examples = spark.createDataFrame([*rows, ("small", None)], "scenario string, key long")
    counts = {"large": 5000, "small": 50}
    found = [{tuple(row) for row in sampled(examples, ["key"], counts).collect()} for _ in range(2)]
    assert found[0] == found[1]
    of_large = sum(scenario == "large" for scenario, _ in found[0])
    assert len(found[0]) - of_large == 50
    assert 0.8 * ROWS_A_SCENARIO < of_large < 1.2 * ROWS_A_SCENARIO
