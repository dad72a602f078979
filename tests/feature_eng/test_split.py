"""Splits: by time, by hash of the key, by user."""

from __future__ import annotations

from collections import Counter

import pytest
from pyspark.sql import DataFrame, SparkSession
from small_logs import small_contract

from feature_eng.contract import stored_name, to_instant
from feature_eng.split import with_split

pytestmark = pytest.mark.spark

SCHEMA = "row long, who long, what long, at long, position long"


def split_of(examples: DataFrame, method: str, fractions: tuple[float, ...], seed: int = 0) -> dict[int, str]:
    contract = small_contract(
        columns={"key": ["row"], "user": "who", "item": "what", "time": "at", "position": "position"},
        split={"method": method, "fractions": fractions, "seed": seed},
    )
    rows = with_split(examples, contract).collect()
    assert len(rows) == len({row["row"] for row in rows}) == examples.count()
    return {row["row"]: row["split"] for row in rows}


def test_one_cut_off_in_time_holds_for_all_and_parts_no_equal_times(spark: SparkSession) -> None:
    times = [5, 1, 1, 2, 3, 3, 3, 3, 4, 9]
    examples = spark.createDataFrame([(n, n % 2, 0, at, n) for n, at in enumerate(times)], SCHEMA)
    splits = split_of(examples, "time", (0.5, 0.2, 0.3))
    assert {times[n]: name for n, name in splits.items()} == {
        1: "train", 2: "train", 3: "train", 4: "test", 5: "test", 9: "test",
    }  # fmt: skip
    assert len({(times[n], name) for n, name in splits.items()}) == 6
    assert Counter(split_of(examples, "time", (0.3, 0.4, 0.3)).values()) == {
        "train": 3,
        "validation": 4,
        "test": 3,
    }
    assert set(split_of(examples, "time", (0.5, 0.5, 0.0)).values()) == {"train", "validation"}


def test_a_random_split_depends_on_key_and_seed_alone(spark: SparkSession) -> None:
    rows = [(n, n % 7, n % 5, n, n) for n in range(2000)]
    whole = split_of(spark.createDataFrame(rows, SCHEMA), "random", (0.8, 0.1, 0.1))
    part = split_of(spark.createDataFrame(rows[::-3], SCHEMA).repartition(3), "random", (0.8, 0.1, 0.1))
    assert part == {key: whole[key] for key in part}
    counts = Counter(whole.values())
    assert abs(counts["train"] - 1600) < 60
    assert abs(counts["test"] - 200) < 50
    other = split_of(spark.createDataFrame(rows, SCHEMA), "random", (0.8, 0.1, 0.1), seed=1)
    assert 300 < sum(other[key] != whole[key] for key in whole) < 1000


def test_a_column_may_say_the_split_and_what_it_says_else_is_in_none(spark: SparkSession) -> None:
    said = ["train", "test", "validation", "dev", "Train", "", None]
    examples = spark.createDataFrame(list(enumerate(said)), "row long, `the part` string")
    contract = small_contract(columns={"key": ["row"]}, split={"method": "column", "column": "the part"})
    named = examples.withColumnRenamed("the part", stored_name("the part"))
    rows = with_split(named, contract).collect()
    assert {row["row"]: row["split"] for row in rows} == {
        0: "train", 1: "test", 2: "validation", 3: "outside", 4: "outside", 5: "outside", 6: "outside",
    }  # fmt: skip


def test_the_user_split_follows_first_appearances_of_item_then_user(spark: SparkSession) -> None:
    file_order = [(1, 10), (2, 20), (2, 10), (3, 20), (1, 30), (3, 30), (1, 20), (4, 20), (2, 30), (4, 40)]
    rows = [(n, who, what, 0, n) for n, (who, what) in enumerate(file_order)]
    by_item = sorted(rows, key=lambda row: [what for _, what in file_order].index(row[2]))
    users = [row[1] for row in by_item]
    ordered = sorted(by_item, key=lambda row: users.index(row[1]))
    names = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    expected = {row[0]: name for row, name in zip(ordered, names, strict=True)}
    splits = split_of(
        spark.createDataFrame(rows[::-1], SCHEMA).repartition(3), "user_disjoint", (0.6, 0.2, 0.2)
    )
    assert splits == expected
    users_of = {
        name: {rows[n][1] for n, split in splits.items() if split == name} for name in ("train", "test")
    }
    assert not users_of["train"] & users_of["test"]


DATES = {
    "method": "dates",
    "train": ["2022-04-08", "2022-04-21"],
    "validation": ["2022-04-22", "2022-04-28"],
    "test": ["2022-04-29", None],
}


def by_dates(spark: SparkSession, times: list[int], **split: object) -> dict[int, str]:
    contract = small_contract(
        columns={"key": ["row"], "user": "who", "item": "what", "time": "at"}, split={**DATES, **split}
    )
    rows = [(n, 0, 0, at, n) for n, at in enumerate(times)]
    return {
        row["at"]: row["split"] for row in with_split(spark.createDataFrame(rows, SCHEMA), contract).collect()
    }


def test_dates_are_whole_days_of_their_zone_both_included(spark: SparkSession) -> None:
    edges = [to_instant(day, "Asia/Shanghai") for day in ("2022-04-08", "2022-04-22", "2022-04-29")]
    assert edges[0] == 1_649_347_200
    times = [at for edge in edges for at in (edge - 1, edge)]
    assert by_dates(spark, times, zone="Asia/Shanghai") == dict(
        zip(times, ["outside", "train", "train", "validation", "validation", "test"], strict=True)
    )
    # In UTC the days begin eight hours later.
    assert by_dates(spark, times)[edges[1]] == "train"


def test_a_gap_keeps_rows_out_whose_labels_would_be_known_in_the_next_splits_time(
    spark: SparkSession,
) -> None:
    edge = to_instant("2022-04-22")
    times = [edge - 3601, edge - 3600, edge - 1, edge]
    assert by_dates(spark, times, gap="1h") == dict(
        zip(times, ["train", "gap", "gap", "validation"], strict=True)
    )
    contract = small_contract(split={"method": "time", "fractions": [0.5, 0.5, 0], "gap": 2})
    rows = [(n, 0, 0, n, n) for n in range(8)]
    parted = with_split(spark.createDataFrame(rows, SCHEMA), contract).collect()
    assert [row["split"] for row in sorted(parted)] == ["train"] * 2 + ["gap"] * 2 + ["validation"] * 4


@pytest.mark.parametrize("method", ["time", "dates", "random", "user_disjoint"])
def test_rows_that_are_not_mature_are_in_no_split_and_take_no_share(spark: SparkSession, method: str) -> None:
    rows = [(n, n // 4, n % 4, to_instant("2022-04-10") + n, n) for n in range(40)]
    late = [(n, n // 4, n % 4, to_instant("2022-04-10") + n, n) for n in range(40, 60)]
    split = {"dates": DATES, "random": {"method": "random", "fractions": [0.5, 0.5, 0]}}.get(
        method, {"method": method, "fractions": [0.5, 0.5, 0]}
    )
    contract = small_contract(
        columns={"key": ["row"], "user": "who", "item": "what", "time": "at", "position": "position"},
        split=split,
    )
    plain = with_split(spark.createDataFrame(rows, SCHEMA), contract)
    marked = spark.createDataFrame(
        [(*row, row[0] < 40) for row in rows + late], f"{SCHEMA}, is_mature boolean"
    )
    found = {row["row"]: row["split"] for row in with_split(marked, contract).collect()}
    assert {row: found.pop(row) for row in range(40, 60)} == dict.fromkeys(range(40, 60), "immature")
    assert found == {row["row"]: row["split"] for row in plain.collect()}
