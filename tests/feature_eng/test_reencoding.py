"""A training table of which only some days are written is the one that all examples would give."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from small_logs import small_contract

from feature_eng import delta, training_table
from feature_eng.contract import SPLITS
from feature_eng.dates import ON_DATE, condition_of, is_one_of
from feature_eng.encoder import spark as encoder
from feature_eng.encoder.growth import fit_or_grow
from feature_eng.encoder.state import Bucket, EncoderState, Lookup, Standardise
from feature_eng.reencoding import days_to_encode, moved_values
from feature_eng.snapshot import DATA_VERSION, EXAMPLES_VERSION, SnapshotRef

CONTRACT = small_contract(
    features={
        "what": {"kind": "categorical", "column": "what", "min_count": 2},
        "who": {"kind": "categorical", "column": "who"},
        "tags": {"kind": "multi_valued", "column": "tags", "separator": ";", "slots": 2},
        "price": {"kind": "numeric", "column": "price"},
        "level": {"kind": "bucketed", "column": "price", "num_buckets": 2},
        "recent": {"kind": "history", "of": "what", "last": 2},
    },
    encoder={"from": "previous", "forget_after": 1},
)
SCHEMA = (
    "row_id long, page long, what string, who long, tags string, price double, recent array<string>, "
    f"label__click double, split string, {ON_DATE} date"
)
WHAT = {0: "aab", 1: "cbc", 2: "ddb", 3: "ezz", 4: "az", 5: "b"}
"""What each day shows: b is met once by day 0, and once by day 1."""
TAGS = {0: "x", 1: "x", 2: "y;x", 3: "x;x;new", 4: "", 5: "new"}


def on(day: int) -> date:
    return date(2024, 1, 1 + day)


class Table:
    """Examples by date and the training table made of them, build after build."""

    def __init__(self, spark: SparkSession, root: Path) -> None:
        self.spark, self.root, self.state = spark, root, None
        self.training = root / "training"

    def arrive(self, days: dict[int, str]) -> int:
        """Examples of some days, each in a split, in place of those that were there."""
        rows = [
            (100 * day + row, 1 + row % 2, what, row % 2 if day < 4 else 7, TAGS[day], float(day + row),
             list(WHAT[max(0, day - 1)][:2]), None if day == 4 else float(row % 2), days[day], on(day))
            for day in days for row, what in enumerate(WHAT[day])
        ]  # fmt: skip
        made = self.spark.createDataFrame(rows, SCHEMA)
        where = condition_of([on(day) for day in days]) if delta.exists(self.root / "examples") else None
        return delta.write(made, self.root / "examples", partition_by=[ON_DATE], where=where)

    def build(self, version: int, seed: int = 0) -> tuple[set[int] | None, SnapshotRef]:
        """Which days were written, and the table."""
        examples = delta.read(self.spark, self.root / "examples", version)
        examples = examples.where(F.col("split").isin(list(SPLITS)))
        self.state = fit_or_grow(examples, CONTRACT, str(self.training), str(version))
        place = self.root / "encoder" / self.state.digest
        self.state.save(place)
        layout = training_table.layout(2, seed)
        days = days_to_encode(examples, self.state, str(self.root), version, layout)
        whole = encoder.encode(examples.coalesce(1), self.state).persist()
        snapshot = training_table.write(
            whole if days is None else whole.where(is_one_of(days)),
            self.training, self.state, place, rows_per_group=2, seed=seed,
            properties={EXAMPLES_VERSION: str(version), DATA_VERSION: str(version)}, days=days,
        )  # fmt: skip
        assert rows_of(delta.read(self.spark, self.training)) == rows_of(whole)
        whole.unpersist()
        assert snapshot.encoder_digest == self.state.digest
        return None if days is None else {(day - on(0)).days for day in days}, snapshot


def rows_of(table: DataFrame) -> list[str]:
    return sorted(str(row) for row in table.select(sorted(table.columns)).collect())


@pytest.mark.spark
def test_days_written_one_by_one_are_row_for_row_what_all_examples_give(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table(spark, tmp_path)
    days, first = table.build(table.arrive({0: "train", 1: "validation", 2: "test"}))
    assert days is None
    assert "all days are encoded anew: there was no table" in capsys.readouterr().out
    assert first.columns[0] == ("row_id", "int64")
    assert ON_DATE not in dict(first.columns)

    # Day 1 goes over to train: so b is met twice, and known on day 0 as well.
    days, second = table.build(table.arrive({1: "train", 2: "validation", 3: "test"}))
    assert days == {0, 1, 2, 3}
    assert table.state.vocabularies["what"].to_pylist() == ["a", "b", "c"]
    # Numbers are as the first build learned them, whatever came since.
    assert table.state.operations["price"] == Standardise("price", "none", 1.0, 0.8164965809)
    assert table.state.operations["level"] == Bucket("price", (1.0,))
    assert "3 by their examples, 1 by values" in capsys.readouterr().out

    # What day 2 brings is met on no day before it.
    days, third = table.build(table.arrive({2: "train", 3: "validation", 4: "test"}))
    assert days == {2, 3, 4}
    kept = {file for file in second.files if "2024-01-01" in file.path or "2024-01-02" in file.path}
    assert kept == set(third.files) & set(second.files)
    assert third.version == second.version + 1

    # Day 1 is in no split any more: c, which train has no longer, gives its index to z. Day 2 has c in its histories.
    days, fourth = table.build(table.arrive({1: "outside", 3: "train", 4: "validation", 5: "test"}))
    assert table.state.vocabularies["what"].to_pylist() == ["a", "b", "z", "d"]
    assert days == {1, 2, 3, 4, 5}
    assert "4 by their examples, 1 by values" in capsys.readouterr().out
    assert (fourth.rows("train"), fourth.rows("validation"), fourth.rows("test")) == (9, 2, 1)

    # Nothing has come: nothing is encoded.
    days, fifth = table.build(delta.newest_version(tmp_path / "examples"))
    assert (days, fifth.files, fifth.version) == (set(), fourth.files, fourth.version + 1)
    assert fifth.encoder_digest == fourth.encoder_digest
    layout = training_table.layout(2, 1)
    assert (
        days_to_encode(delta.read(spark, tmp_path / "examples"), table.state, str(tmp_path), 0, layout)
        is None
    )
    assert 'its layout was {"rows_per_group": 2, "seed": 0}' in capsys.readouterr().out


def state(operations: dict[str, Any], **vocabularies: list[str | None]) -> EncoderState:
    keys = {name: pa.array(values, pa.string()) for name, values in vocabularies.items()}
    return EncoderState(CONTRACT, operations, keys, {"what": "string"})


def test_values_have_moved_that_are_new_freed_or_elsewhere() -> None:
    look_up = {"what": Lookup("what", "what")}
    before = state(look_up, what=["a", "b", None, "d"], tags=["x"])
    now = state(look_up, what=["a", None, "c", "e", "b"], tags=["x"])
    moved = moved_values(before, now)
    assert {name: sorted(values.to_pylist()) for name, values in moved.items()} == {
        "what": ["b", "c", "d", "e"]
    }
    assert moved_values(now, now) == {}
    assert moved_values(state(look_up, what=[]), state(look_up, what=[])) == {}
