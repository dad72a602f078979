"""Spark sums up what one process sums up: the same figures, however rows are spread over blocks, tasks and files."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy_judge import judge_in_memory, ranking_of
from pyspark.errors import PythonException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from hinet_model.lifecycle.judging import aggregation, counting
from hinet_model.lifecycle.judging.aggregation import aggregate
from hinet_model.lifecycle.judging.counting import Columns
from hinet_model.lifecycle.judging.measures import differences, measures
from hinet_model.lifecycle.judging.sums import Shape
from hinet_model.serving.on_spark import user_message

pytestmark = pytest.mark.spark

COLUMNS = Columns(
    strata=("scenario_index", "slice"),
    labels=("label__click", "label__like"),
    scores=(("click a", "click b"), ("like a", "like b")),
    user="user",
    weight="weight",
    listed="request",
)
SHAPE = Shape(2, lists_at=3, replicates=20)


def scored_rows(number: int = 3000, seed: int = 0) -> pd.DataFrame:
    """Scored rows of three scenarios, one of which has two rows; a slice with nulls, labels with nulls, tied scores."""
    draw = np.random.default_rng(seed)
    logit = draw.normal(-1, 1, number)
    rows = pd.DataFrame(
        {
            "scenario_index": np.where(np.arange(number) < 2, 2, draw.integers(0, 2, number)),
            # Values of strata are distinct: the slice's go on from the scenarios'.
            "slice": pd.array(draw.choice([3, 4], number), dtype="Int64"),
            "user": [None if user == 7 else f"user {user}" for user in draw.integers(0, 90, number)],
            "request": draw.integers(0, 4, number),
            "weight": draw.choice([0.5, 1.0, 3.0], number),
        }
    )
    rows.loc[draw.random(number) < 0.1, "slice"] = pd.NA
    for task in ("click", "like"):
        label = pd.array((draw.random(number) < 1 / (1 + np.exp(-logit))).astype(int), dtype="Int64")
        label[draw.random(number) < 0.05] = pd.NA
        rows[f"label__{task}"] = label
        rows[f"{task} a"] = np.round(1 / (1 + np.exp(-logit - draw.normal(0, 1, number))), 2)
        rows[f"{task} b"] = 1 / (1 + np.exp(-logit - draw.normal(0, 1, number)))
    rows.loc[0, ["click a", "click b"]] = [0.0, 1.0]
    return rows


def to_frame(spark: SparkSession, rows: pd.DataFrame) -> DataFrame:
    return spark.createDataFrame(rows.astype(object).where(rows.notna(), None), schema=(
        "scenario_index int, slice int, user string, request long, weight double, "
        "label__click int, `click a` double, `click b` double, label__like int, `like a` double, `like b` double"
    ))  # fmt: skip


def hashed(spark: SparkSession, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with user and list as Spark hashes them."""
    frame = to_frame(spark, rows).select(F.xxhash64("user").alias("u"), F.xxhash64("request").alias("l"))
    found = frame.toPandas()
    return rows.assign(user=found["u"].to_numpy(), request=found["l"].to_numpy())


@pytest.mark.parametrize(("block_rows", "entries_a_task"), [(10**6, 10**6), (50, 2500)])
def test_spark_gives_the_figures_of_one_process(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, block_rows: int, entries_a_task: int
) -> None:
    # Five tasks are then enough for partial sums to go through lanes.
    monkeypatch.setattr(aggregation, "_LANES", 2)
    rows = scored_rows()
    totals = aggregate(
        to_frame(spark, rows).repartition(3),
        COLUMNS,
        SHAPE,
        block_rows=block_rows,
        entries_a_task=entries_a_task,
    )
    parts = []
    for stratum in COLUMNS.strata:
        for task, name in enumerate(("click", "like")):
            kept = hashed(spark, rows)[rows[stratum].notna() & rows[f"label__{name}"].notna()]
            parts.append(
                pd.DataFrame(
                    {
                        "cell": COLUMNS.cell(1, task) - COLUMNS.cell(1, 0) + kept[stratum].astype(int) * 2,
                        "user": kept["user"],
                        "listed": kept["request"],
                        "positive": kept[f"label__{name}"].astype(int),
                        "weight": kept["weight"],
                        "a": kept[f"{name} a"],
                        "b": kept[f"{name} b"],
                    }
                )
            )
    entries = {name: column.to_numpy() for name, column in pd.concat(parts).items()}
    expected = judge_in_memory(
        entries["cell"], entries["user"], entries["positive"], [entries["a"], entries["b"]], SHAPE,
        weight=entries["weight"], listed=entries["listed"],
    )  # fmt: skip
    assert set(totals.cells) == set(expected) == set(range(10))
    for cell, sums in expected.items():
        found = totals.cells[cell]
        for of_found, of_expected in (
            (measures(found, SHAPE, 0), measures(sums, SHAPE, 0)),
            (measures(found, SHAPE, 1), measures(sums, SHAPE, 1)),
            (differences(found, SHAPE, 0, 1), differences(sums, SHAPE, 0, 1)),
        ):
            assert of_found.keys() == of_expected.keys()
            for metric, measure in of_expected.items():
                got = of_found[metric]
                assert (got.method, got.why) == (measure.method, measure.why)
                for name in ("value", "low", "high", "se"):
                    wanted = getattr(measure, name)
                    assert getattr(got, name) == (
                        None if wanted is None else pytest.approx(wanted, abs=1e-12)
                    ), metric
        chosen = entries["cell"] == cell
        ranking = ranking_of(
            entries["b"][chosen], entries["positive"][chosen] == 1, entries["weight"][chosen], SHAPE, 10**6
        )
        np.testing.assert_allclose(totals.rankings[cell, 1].steps, ranking.steps)
    counted = [totals.cells[cell].count(SHAPE, "rows") for cell in (4, 5)]
    assert max(counted) <= 2


def test_no_rows_are_no_cells(spark: SparkSession) -> None:
    assert aggregate(to_frame(spark, scored_rows(10)).where("false"), COLUMNS, SHAPE).cells == {}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("score_0_1", float("nan"), "a score for label__click is nan; expected a probability"),
        ("score_0_0", 1.5, "a score for label__click is 1.5; expected a probability"),
        ("label_0", 3, "label__click is 3 in a row; expected 0, 1 or null"),
        ("weight", 0.0, "a row weighs 0; expected more than 0"),
        ("weight", None, "a row weighs nan; expected more than 0"),
    ],
)
def test_what_cannot_be_judged_is_named(column: str, value: float | None, message: str) -> None:
    row = {
        "stratum_0": 0,
        "user": 1,
        "listed": 0,
        "weight": 1.0,
        "label_0": 1.0,
        "score_0_0": 0.5,
        "score_0_1": 0.5,
    }
    rows = pa.RecordBatch.from_pylist([row, {**row, column: value}])
    with pytest.raises(counting.JudgingError, match=message):
        list(counting._ToEntries(("label__click",), 1, 2)(iter([rows])))


def test_a_score_that_is_no_probability_ends_the_job_with_one_line(spark: SparkSession) -> None:
    wrong = to_frame(spark, scored_rows(50)).withColumn("like a", F.lit(float("nan")))
    with pytest.raises(PythonException) as caught:
        aggregate(wrong, COLUMNS, SHAPE)
    assert (user_message(caught.value) or "").startswith(
        "a score for label__like is nan; expected a probability"
    )
