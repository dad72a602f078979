"""Scans and shuffles of each stage of a build, read from its plan: what a large build's time is made of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from benchmarks.features_log import DAY, DAYS, START, contract_of, write_log
from feature_eng import row_order
from feature_eng.behaviour import with_behaviour
from feature_eng.contract import Contract, to_contract
from feature_eng.encoder import spark as encoder
from feature_eng.encoder.fit import fit
from feature_eng.events import Events, to_events
from feature_eng.events.keys import Keys, read_keys
from feature_eng.examples import times_of, to_examples
from feature_eng.split import with_split

pytestmark = pytest.mark.spark

END = START + 2 * DAYS * DAY
UNUSED = {"trace", "agent", "screen", "latency"}
"""Raw columns of the log that its contract does not name."""


@pytest.fixture
def no_broadcasts(spark: SparkSession) -> Iterator[None]:
    """Joins as of tables that are too large to be broadcast, but for those that the code itself asks for."""
    spark.conf.set("spark.sql.autoBroadcastJoinThreshold", "-1")
    yield
    spark.conf.unset("spark.sql.autoBroadcastJoinThreshold")


def plan_of(rows: DataFrame) -> str:
    return str(rows._jdf.queryExecution().executedPlan().toString())


def scans_and_shuffles(rows: DataFrame) -> tuple[int, int]:
    """How often files are read, and rows shuffled."""
    plan = plan_of(rows)
    return plan.count("FileScan "), len(re.findall(r"(?<!Broadcast)Exchange (?!SinglePartition)", plan))


def stored(rows: DataFrame, folder: Path) -> DataFrame:
    rows.write.parquet(str(folder))
    return rows.sparkSession.read.parquet(str(folder))


@pytest.mark.usefixtures("no_broadcasts")
def test_each_stage_scans_and_shuffles_as_often_as_is_written_down(
    spark: SparkSession, tmp_path: Path
) -> None:
    write_log(tmp_path, 300)
    contract: Contract = contract_of(tmp_path)
    raw = {name: spark.read.parquet(str(tmp_path / name)) for name in ("impressions", "orders")}
    made = to_events(raw, contract)
    assert scans_and_shuffles(made.impressions) == (1, 1)  # by key
    assert scans_and_shuffles(made.related["orders"]) == (1, 0)
    shuffled = plan_of(made.impressions).partition("Exchange")[0]
    assert not any(f"{name}#" in shuffled for name in UNUSED)
    assert read_keys(raw["impressions"], contract, times=False) == Keys(300, 0, False, ((0, 299),))
    unique = to_events(raw, contract, has_repeats=False).impressions
    assert scans_and_shuffles(unique) == (1, 0)
    assert not any(f"{name}#" in plan_of(unique) for name in UNUSED)
    assert sorted(unique.collect()) == sorted(made.impressions.collect())

    events = Events(
        stored(made.impressions, tmp_path / "events"),
        {"orders": stored(made.related["orders"], tmp_path / "events_orders")},
        made.rejects,
    )
    labelled = to_examples(events, contract, None, END)
    # Both tables by the label's columns, what matched by key, and the impressions by key.
    assert scans_and_shuffles(labelled) == (3, 4)
    times = times_of(events.impressions, contract, None, END)
    assert scans_and_shuffles(times) == (1, 0)
    examples = encoder.with_row_id(with_behaviour(with_split(labelled, contract, times), contract), contract)
    assert scans_and_shuffles(examples) == (3, 6)  # by item and by user
    orders = {"kind": "count", "table": "orders", "within": "7d"}
    sections = contract.model_dump(mode="json", by_alias=True)
    told = to_contract({**sections, "features": {**sections["features"], "orders": orders}})
    # Rows of another table are read once more, and go through the very shuffle of the rows that they tell.
    ordered = with_behaviour(with_split(labelled, contract, times), told, related=events.related)
    assert scans_and_shuffles(ordered) == (4, 6)

    examples = stored(examples, tmp_path / "examples")
    encoded = encoder.encode(examples, fit(examples, contract))
    assert scans_and_shuffles(encoded) == (1, 0)
    buckets = row_order.buckets_of(encoded, 0)
    files = dict.fromkeys(buckets, 3)
    assert scans_and_shuffles(row_order.laid_out(encoded, buckets, files, 0)) == (1, 1)  # to files
