"""Scoring on Spark carries the columns that a model reads, whatever they are called, and no others."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession

from feature_eng.contract import stored_name
from hinet_model.serving.on_spark import ModelShipment, score_side_by_side

SHIPMENT = ModelShipment("archive", "model 1", ("home",), ("click",), ("age.group", "price (net)"), 1)


@pytest.mark.spark
def test_what_the_model_reads_is_carried_and_nothing_else(spark: SparkSession) -> None:
    names = ["row", stored_name("age.group"), stored_name("price (net)"), "unused"]
    rows = spark.range(1).toDF("id").selectExpr(*(f"id AS `{name}`" for name in names))
    for scored in (SHIPMENT.score(rows, ["row"]), score_side_by_side(rows, [SHIPMENT], ["row"])):
        plan = scored._jdf.queryExecution().analyzed().toString()
        assert "MapInArrow" in plan
        read = plan.split("MapInArrow", 1)[1].splitlines()[1]
        assert [name for name in names if f"{name}#" in read] == names[:3]
