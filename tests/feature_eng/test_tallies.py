"""Days are counted once: what was counted of their files adds up to what all examples give."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from small_logs import small_contract

from feature_eng import delta
from feature_eng.cells import add_up, count_cells
from feature_eng.dates import ON_DATE, condition_of
from feature_eng.tallies import by_day, tallies

CONTRACT = small_contract(weight="worth")


def examples(spark: SparkSession, rows: int) -> DataFrame:
    """Rows of two days, some without a label, some in no split."""
    number = F.col("id")
    return spark.range(rows).select(
        number.alias("row"),
        F.when(number % 3 == 0, "home").otherwise("search").alias("scenario"),
        F.when(number % 5 == 0, "immature").when(number % 2 == 0, "train").otherwise("test").alias("split"),
        F.when(number % 4 > 0, (number % 7 > 2).cast("int")).alias("label__click"),
        (number % 9).cast("double").alias("worth"),
        (number % 9).cast("double").alias("row_weight"),
        F.date_add(F.lit(date(2024, 1, 1)), (number % 2).cast("int")).alias(ON_DATE),
    )


@pytest.mark.spark
def test_only_days_whose_files_are_new_are_counted(spark: SparkSession, tmp_path: Path) -> None:
    root, table = str(tmp_path), tmp_path / "examples"
    delta.write(examples(spark, 90).coalesce(1), table, partition_by=[ON_DATE])
    stored = delta.read(spark, table)
    assert add_up(tallies(stored, CONTRACT, root, 0), CONTRACT) == count_cells(stored, CONTRACT)

    second = [date(2024, 1, 2)]
    more = examples(spark, 120).where(F.col(ON_DATE) == F.lit(second[0]))
    delta.write(more.coalesce(1), table, where=condition_of(second))
    kept = json.loads((tmp_path / "tallies.json").read_text())
    assert len(kept) == 2
    # What was kept is what counts: made wrong here, to be told from what is counted.
    wrong = {key: [{**one, "rows": -1} for one in counted] for key, counted in kept.items()}
    (tmp_path / "tallies.json").write_text(json.dumps(wrong))
    stored = delta.read(spark, table)
    found = by_day(stored, CONTRACT, root, 1)
    assert {one["rows"] for one in found[date(2024, 1, 1)]} == {-1}
    assert sum(one["rows"] for one in found[second[0]]) == 60
    assert len(json.loads((tmp_path / "tallies.json").read_text())) == 2
    (tmp_path / "tallies.json").unlink()
    assert add_up(tallies(stored, CONTRACT, root, 1), CONTRACT) == count_cells(stored, CONTRACT)
    for damaged in ('{"', "[]"):
        (tmp_path / "tallies.json").write_text(damaged)
        assert add_up(tallies(stored, CONTRACT, root, 1), CONTRACT) == count_cells(stored, CONTRACT)
