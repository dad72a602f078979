"""Sampling of negatives and row weights: which rows train keeps, what they weigh, what else stays as it is."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from small_logs import small_contract

from feature_eng.cells import blind_spots, cells_rows, check_splits, count_cells
from feature_eng.contract import Contract, ContractError
from feature_eng.events import to_events
from feature_eng.sampling import check_shift, with_sampling
from feature_eng.snapshot import CellCount

pytestmark = pytest.mark.spark

TASKS = {"click": {"column": "clicked", "equals": 1}, "order": {"column": "ordered", "equals": 1}}
SCHEMA = "row long, scenario string, split string, label__click int, label__order int, worth double"


def sampled(examples: DataFrame, **sections: Any) -> dict[int, tuple[Any, ...]]:
    rows = with_sampling(examples, small_contract(tasks=TASKS, **sections)).collect()
    return {row["row"]: (row["split"], *([row["row_weight"]] if "row_weight" in row else [])) for row in rows}


def many(spark: SparkSession, num_rows: int = 4000) -> DataFrame:
    """One row in ten is clicked; every tenth row is of test."""
    rows = [
        (
            n,
            "home" if n % 2 else "search",
            "test" if n % 10 == 9 else "train",
            int(n % 100 < 10),
            0,
            float(n % 4),
        )
        for n in range(num_rows)
    ]
    return spark.createDataFrame(rows, SCHEMA)


def test_train_keeps_a_share_of_the_negatives_by_scenario_and_all_else_stays(spark: SparkSession) -> None:
    examples = many(spark)
    sampling = {"keep_negatives": 0.1, "by_scenario": {"search": 0.5}}
    found = sampled(examples, sampling=sampling)
    before = {row["row"]: row for row in examples.collect()}
    kept: Counter[str] = Counter()
    for key, (split, weight) in found.items():
        row = before[key]
        if row["split"] == "test" or row["label__click"]:
            assert (split, weight) == (row["split"], 1.0)
        else:
            assert split in ("train", "unsampled")
            assert weight == (1.0 if split == "unsampled" else 10.0 if row["scenario"] == "home" else 2.0)
            kept[row["scenario"]] += split == "train"
    # Of 1,400 negatives of home and 1,800 of search.
    assert abs(kept["home"] - 140) < 40
    assert abs(kept["search"] - 900) < 80
    # The weighted rows are as many as there were.
    total = sum(weight for split, weight in found.values() if split == "train")
    assert total == pytest.approx(3600, rel=0.1)


def test_a_rows_fate_follows_from_key_and_seed_alone_and_not_from_that_of_the_random_split(
    spark: SparkSession,
) -> None:
    from feature_eng.split import with_split

    examples = many(spark)
    whole = sampled(examples, sampling={"keep_negatives": 0.3})
    part = sampled(examples.where("row % 3 = 0").repartition(3), sampling={"keep_negatives": 0.3})
    assert part == {key: whole[key] for key in part}
    assert sampled(examples, sampling={"keep_negatives": 0.3, "seed": 1}) != whole
    contract = small_contract(
        tasks=TASKS, sampling={"keep_negatives": 0.5}, split={"method": "random", "fractions": [0.5, 0.5, 0]}
    )
    parted = with_split(examples.where("label__click = 0").drop("split"), contract)
    counts = Counter(row["split"] for row in with_sampling(parted, contract).collect())
    assert abs(counts["train"] - counts["unsampled"]) < 150


def test_negatives_are_rows_without_a_1_or_those_of_a_task_and_a_missing_label_is_none(
    spark: SparkSession,
) -> None:
    labels = {
        "none": (None, None),
        "half": (0, None),
        "no": (0, 0),
        "order": (0, 1),
        "click": (1, 0),
        "lost": (None, 1),
    }
    rows = [(n, "home", "train", *pair, 1.0) for n, pair in enumerate(labels.values())]
    examples = spark.createDataFrame(rows, SCHEMA)

    def dropped(**sampling: Any) -> list[str]:
        found = sampled(examples, sampling={"keep_negatives": 1e-9, **sampling})
        return [
            name
            for name, (split, *_) in zip(labels, (found[n] for n in range(len(labels))), strict=True)
            if split == "unsampled"
        ]

    assert dropped() == ["half", "no"]
    assert dropped(task="click") == ["half", "no", "order"]


def test_a_weight_is_taken_as_it_is_and_multiplied_where_negatives_are_sampled(spark: SparkSession) -> None:
    examples = many(spark, 400)
    alone = sampled(examples, weight="worth")
    assert {key: weight for key, (_, weight) in alone.items()} == {key: float(key % 4) for key in range(400)}
    both = sampled(examples, weight="worth", sampling={"keep_negatives": 0.5})
    for key, (split, weight) in both.items():
        is_kept_negative = split == "train" and key % 100 >= 10
        assert weight == float(key % 4) * (2 if is_kept_negative else 1)
    assert set(
        map(
            len,
            sampled(
                examples, sampling={"keep_negatives": 0.5, "task": "click", "correction": "shift"}
            ).values(),
        )
    ) == {1}
    assert set(map(len, sampled(examples).values())) == {1}


def test_a_weight_below_0_or_no_number_is_a_reject(spark: SparkSession) -> None:
    raw = spark.createDataFrame(
        [
            ("0", 0.0),
            ("2.5", 2.5),
            ("minus", -0.1),
            ("null", None),
            ("nan", float("nan")),
            ("inf", float("inf")),
        ],
        "row string, worth double",
    ).selectExpr("row", "1L who", "'a' what", "1L at", "1 page", "1D price", "1 clicked", "worth")
    contract = small_contract(weight="worth")
    events = to_events({"shown": raw}, contract)
    assert sorted(row["reason"] for row in events.rejects.collect()) == [
        "bad weight in worth", "null worth", "null worth", "unparsable worth",
    ]  # fmt: skip
    assert {row["row"]: row["worth"] for row in events.impressions.collect()} == {"0": 0.0, "2.5": 2.5}


def test_a_shift_is_refused_where_another_tasks_1_does_not_presuppose_the_sampled_tasks(
    spark: SparkSession,
) -> None:
    sampling = {"keep_negatives": 0.5, "task": "click", "correction": "shift"}
    contract = small_contract(tasks=TASKS, sampling=sampling)
    rows = [(1, 1), (1, 0), (0, 0), (None, None), (0, None), (1, None)]
    good = [(n, "home", "train", *pair, 1.0) for n, pair in enumerate(rows)]
    check_shift(spark.createDataFrame(good, SCHEMA), contract)
    bad = [*good, (10, "home", "unsampled", 0, 1, 1.0), (11, "home", "train", None, 0, 1.0)]
    with pytest.raises(
        ContractError, match="label 1 of 'order' to presuppose that of 'click', and 2 training rows"
    ):
        check_shift(spark.createDataFrame(bad, SCHEMA), contract)
    check_shift(spark.createDataFrame([(1, "home", "test", 0, 1, 1.0)], SCHEMA), contract)


def counted(
    spark: SparkSession, rows: list[tuple[Any, ...]], **sections: Any
) -> tuple[list[CellCount], Contract]:
    contract = small_contract(
        tasks={**TASKS, "late": {**TASKS["order"], "scenarios": ["search"]}}, **sections
    )
    examples = spark.createDataFrame([(n, *row) for n, row in enumerate(rows)], f"{SCHEMA}, label__late int")
    return count_cells(with_sampling(examples, contract), contract)[0], contract


def test_cells_count_rows_labels_and_weights_and_name_what_cannot_be_learned_or_judged(
    spark: SparkSession,
) -> None:
    rows = [
        ("home", "train", 1, 0, 3.0, None), ("home", "train", 0, None, 1.0, None), ("home", "train", 0, 0, 0.5, None),
        ("home", "validation", 1, None, 1.0, None),
        ("home", "test", 1, 1, 1.0, None), ("home", "test", 0, 0, 1.0, None),
        ("home", "immature", None, None, 1.0, None),
        ("search", "test", 1, 1, 1.0, 1),
    ]  # fmt: skip
    cells, contract = counted(spark, rows, weight="worth")
    assert cells[0] == CellCount("home", "train", 3, (3, 2, 0), (1, 0, 0), weight=4.5, trained_weight=4.5)
    assert [(cell.scenario, cell.split, cell.rows) for cell in cells] == [
        ("home", "train", 3), ("home", "validation", 1), ("home", "test", 2), ("home", "immature", 1),
        ("search", "train", 0), ("search", "validation", 0), ("search", "test", 1),
    ]  # fmt: skip
    check_splits(cells, contract)
    header, lines = cells_rows(cells, contract.task_names)
    assert header == [
        "scenario",
        "split",
        "rows",
        "click = 1",
        "order = 1",
        "late = 1",
        "click labels",
        "order labels",
        "late labels",
    ]
    assert lines[0] == ("home", "train", 3, 1, 0, 0, 3, 2, 0)
    spots = {spot[:3]: spot[3] for spot in blind_spots(cells, contract)}
    assert spots["home", "order", "train"] == "label 1 never occurs: not learned"
    assert spots["home", "click", "validation"] == "label 0 never occurs: AUC not defined"
    assert spots["home", "order", "validation"] == "no labels: not judged"
    assert spots["search", "late", "train"] == "no rows: learned from other scenarios alone"
    assert ("home", "click", "train") not in spots
    # A task has nothing to learn where the contract gives it no labels.
    assert not [spot for spot in spots if spot[:2] == ("home", "late")]


def test_an_empty_split_and_weights_that_are_all_0_stop_with_one_line(spark: SparkSession) -> None:
    rows = [
        ("home", "train", 1, 0, 0.0, None),
        ("home", "gap", 1, 0, 0.0, None),
        ("home", "test", 1, 0, 1.0, None),
    ]
    cells, contract = counted(spark, rows)
    with pytest.raises(
        ContractError,
        match=r"^split: no rows in validation \(rows: train 1.*gap 1.*\); expected other fractions",
    ):
        check_splits(cells, contract)
    check_splits(*counted(spark, rows, split={"method": "random", "fractions": [0.5, 0, 0.5]}))
    cells, contract = counted(
        spark, rows, split={"method": "random", "fractions": [0.5, 0, 0.5]}, weight="worth"
    )
    with pytest.raises(ContractError, match="every training row weighs 0 in 'worth'"):
        check_splits(cells, contract)
