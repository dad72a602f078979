"""Frozen rows: the examples that a version of a training table was made of, raw, with all splits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng import delta
from feature_eng.contract import Contract
from feature_eng.events import column
from feature_eng.origin import origin_of
from feature_eng.snapshot import CONTRACT_FINGERPRINT, SnapshotError


def frozen_examples(
    spark: SparkSession, table: str, version: int, table_id: str | None
) -> tuple[DataFrame, dict[str, str]]:
    """The examples that a version of a training table was made of; and how to find its test rows again.

    Raises:
        SnapshotError: They are gone, or another table stands in this one's place.
    """
    properties = delta.properties(table, version)
    if properties["id"] != table_id:
        raise SnapshotError(f"{table}: is another table than the one that the model was trained on")
    origin = origin_of(table, properties)
    described = {
        "table": origin.examples,
        "version": str(origin.version),
        "split": "test",
        "contract_fingerprint": properties[CONTRACT_FINGERPRINT],
        "training_table": table,
        "training_version": str(version),
        "training_table_id": properties["id"],
    }
    return delta.read_earlier(spark, origin.examples, origin.version), described


def training_rows(examples: DataFrame) -> dict[str, int]:
    """Rows of the training split, by scenario."""
    counted = examples.where(F.col("split") == "train").groupBy("scenario").count().collect()
    return {row["scenario"]: row["count"] for row in counted}


def with_new_user(rows: DataFrame, examples: DataFrame, user: str, name: str) -> DataFrame:
    """Add a column: whether the row's user has no row in the training split."""
    known = examples.where(F.col("split") == "train").select(F.col(f"`{user}`").alias("known__")).distinct()
    rows = rows.join(known, on=F.col(f"`{user}`").eqNullSafe(F.col("known__")), how="left")
    return rows.withColumn(name, F.col("known__").isNull()).drop("known__")


def first_second(rows: DataFrame, contract: Contract) -> int | None:
    """Second of the first row; ``None`` where rows have no times."""
    if contract.columns.time is None:
        return None
    first = rows.agg(F.min(column(contract.columns.time)).alias("at")).collect()[0]["at"]
    return None if first is None else int(first)


def learned_from(rows: DataFrame, examples: Sequence[DataFrame], contract: Contract) -> int:
    """How many rows were learned from by a model that was trained on some of these examples."""
    if not examples:
        return 0
    keys = [column(name) for name in contract.key]
    learned = [
        one.where(F.col("split").isin("train", "validation")).select(*keys).distinct() for one in examples
    ]
    among = reduce(DataFrame.unionByName, learned)
    found = rows.select(*keys).join(among, on=list(contract.stored_key), how="left_semi")
    return int(found.count())
