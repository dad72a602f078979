"""Quantiles are exact, and do not depend on how rows lie."""

from __future__ import annotations

import random

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from feature_eng.quantiles import quantiles

pytestmark = pytest.mark.spark


def test_each_is_the_least_value_that_enough_values_do_not_exceed(spark: SparkSession) -> None:
    draw = random.Random(1)
    values = [(draw.choice([None, draw.gauss(0, 5), 1.5]), draw.randrange(40)) for _ in range(500)]
    frame = spark.createDataFrame(values, "x double, n int")
    shares = [0.0, 0.1, 0.5, 0.9, 1.0]
    wanted = {
        "x": (F.col("x"), shares),
        "n": (F.col("n").cast("double"), shares),
        "none": (F.lit(None).cast("double"), shares),
    }

    def slow(column: int) -> list[float]:
        ordered = sorted(row[column] for row in values if row[column] is not None)
        return [next(v for v in ordered if sum(o <= v for o in ordered) >= s * len(ordered)) for s in shares]

    expected = {"x": slow(0), "n": slow(1), "none": []}
    for partitions in (1, 7):
        assert quantiles(frame.repartition(partitions), wanted) == expected
    assert quantiles(frame, {}) == {}
