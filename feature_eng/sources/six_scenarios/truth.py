"""The truth of the made log: what nobody knows of an impression. For judging alone: nothing that trains imports it."""

from __future__ import annotations

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng.contract import Contract, SixScenarios
from feature_eng.sources.six_scenarios.process import Process


def truth(
    spark: SparkSession, parameters: SixScenarios, window_seconds: float, partitions: int | None = None
) -> DataFrame:
    """What nobody knows of each impression.

    Args:
        spark: Session to make rows with.
        parameters: Of the log.
        window_seconds: Attribution window of orders, from the impression on.
        partitions: Of the requests.

    Returns:
        ``impression_id``, ``click_prob``, ``order_prob`` (click, and order within the window), ``expected_revenue``
        (of orders within the window), ``click_utility`` (as if at the first position) and ``order_utility``.
    """
    process = Process(spark, parameters, partitions)
    in_window = parameters.order_in_window(window_seconds)
    order_prob = F.col("click_prob") * F.col("order_given_click_prob") * in_window
    return process.impressions().select(
        F.col("impression_id"),
        F.col("click_prob"),
        order_prob.alias("order_prob"),
        (order_prob * process.price(F.col("item"))).alias("expected_revenue"),
        F.col("click_utility"),
        F.col("order_utility"),
    )


def true_probs(spark: SparkSession, contract: Contract) -> DataFrame | None:
    """The true probability of each of a contract's labels; ``None`` where data are not made, or mean something else.

    Returns:
        ``impression_id`` and ``truth__<task>`` of each task.
    """
    if contract.source.reader != "six_scenarios":
        return None
    columns = {}
    windows = {}
    for name, task in contract.tasks.items():
        if task.table not in ("clicks", "orders") or task.within is None or task.sum is not None:
            return None
        columns[name] = {"clicks": "click_prob", "orders": "order_prob"}[task.table]
        windows[task.table] = float(task.within)
    known = truth(spark, contract.source.six_scenarios or SixScenarios(), windows.get("orders", 0.0))
    return known.select(
        "impression_id", *(F.col(column).alias(f"truth__{name}") for name, column in columns.items())
    )
