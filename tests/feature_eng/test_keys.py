"""Keys that other days have taken are found, and days whose keys cannot meet are not read; tables stay as they are."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from small_logs import small_contract

from feature_eng import by_date, delta
from feature_eng.dates import ON_DATE, Dates
from feature_eng.events import keys as keys_of
from feature_eng.events.keys import read_keys, that_meet
from feature_eng.events.tables import write_events

pytestmark = pytest.mark.spark

FIRST, DAY = date(2024, 3, 10), 86_400
START = 1_710_028_800
TWO = small_contract(columns={"key": ["row", "at"], "user": "who", "item": "what", "time": "at"})
LONG = "so long a key that the log has its beginning alone "


def test_days_that_have_taken_keys_are_found_and_others_are_not_read(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract, asked = small_contract(), Dates(FIRST + timedelta(days=2), FIRST + timedelta(days=2))
    for kind, of in (
        ("string", lambda number: f"{LONG}{number:05}"),
        ("decimal(38,0)", lambda number: Decimal(10**30 + number)),
        ("bigint", lambda number: 2**60 + number),
    ):
        table = tmp_path / kind
        # Days 0 to 4 have the keys 0 to 9, 10 to 19 ..., but day 1 has one far beyond too.
        taken = [(of(number), FIRST + timedelta(days=number // 10)) for number in range(50)]
        taken.append((of(1000), FIRST + timedelta(days=1)))
        by_date.write(spark.createDataFrame(taken, f"row {kind}, on_date date"), table, contract, None)

        def met(
            numbers: list[int | None], of: Any = of, kind: str = kind, table: Path = table
        ) -> tuple[list[Any], date, date] | None:
            rows = [(None if number is None else of(number), START) for number in numbers]
            raw = spark.createDataFrame(rows, f"row {kind}, at long")
            found = that_meet(raw, table, asked, read_keys(raw, contract, times=True), contract)
            return found and (sorted(row["row"] for row in found[0].collect()), found[1], found[2])

        assert met([22, 500, None]) is None
        assert met([5, 25, 15]) == ([of(number) for number in range(5, 20)], FIRST, FIRST + timedelta(days=1))
    assert met([20, 25, 29]) is None, "of the very days"
    monkeypatch.setattr(keys_of, "FEW_KEYS", 0)
    assert met([22, 500]) is None
    assert (met([1000, 27, 45]) or [None])[1:] == (FIRST + timedelta(days=1), FIRST + timedelta(days=4))
    for file in table.rglob("*.parquet"):
        file.unlink()
    assert met([2000, 3000]) is None
    assert met([None]) is None


def test_files_are_passed_over_where_all_columns_of_a_key_allow_it(
    spark: SparkSession, tmp_path: Path
) -> None:
    rows = [("a", START), ("z", START), ("m", START + DAY), ("n", START + DAY)]
    stored = spark.createDataFrame(
        [(*row, FIRST + timedelta(days=(row[1] - START) // DAY)) for row in rows],
        "row string, at long, on_date date",
    )
    by_date.write(stored, tmp_path, TWO, None)
    days = [FIRST, FIRST + timedelta(days=1)]
    for least, greatest, wanted in (
        (("a", 0), ("b", START), days[:1]),
        (("a", START), ("y", START + DAY), days),
        (("o", START + 1), ("y", START + DAY), []),
        (("0", 0), ("9", START + DAY), []),
        ((1.5, START), (2.5, START), days[:1]),
    ):
        bounds = {name: (low, high) for name, low, high in zip(("row", "at"), least, greatest, strict=True)}
        assert delta.partitions_within(tmp_path, 0, ON_DATE, bounds) == set(wanted)


def test_rows_of_some_partitions_are_those_that_are_counted(spark: SparkSession, tmp_path: Path) -> None:
    rows = [(row, None if row % 4 == 3 else FIRST + timedelta(days=row % 4)) for row in range(22)]
    frame = spark.createDataFrame(rows, "row long, on_date date")
    for place, told in enumerate(("true", "false")):
        table = tmp_path / str(place)
        spark.conf.set("spark.databricks.delta.stats.collect", told)
        try:
            by_date.write(frame, table, TWO, None)
        finally:
            spark.conf.unset("spark.databricks.delta.stats.collect")
        for days in (set(), {None}, {FIRST}, {FIRST, None}, {FIRST + timedelta(days=9)}):
            assert delta.num_rows(spark, table, 0, {ON_DATE: days}) == sum(day in days for _, day in rows)
        assert delta.num_rows(spark, table, 0) == 22


def test_rejects_stay_as_they_are_where_none_were_and_none_come(spark: SparkSession, tmp_path: Path) -> None:
    raw = tmp_path / "shown.parquet"
    table = {"shown": {"path": str(raw), "format": "parquet"}}
    contract = small_contract(source={"reader": "tables", "tables": table})
    dates = Dates(FIRST + timedelta(days=1), None)

    def rejects(pages: list[int], at: Dates = dates) -> tuple[int, list[str]]:
        shown = [
            {"row": place, "who": 1, "what": 2, "at": START + place * DAY, "page": page, "price": 1.0, "clicked": 0}
            for place, page in enumerate(pages)
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(shown), raw)
        _, versions, _ = write_events(spark, contract, None, str(tmp_path / "small"), at)
        there: DataFrame = delta.read(spark, tmp_path / "small" / "rejects", versions["rejects"])
        return versions["rejects"], sorted(row["reason"] for row in there.collect())

    unknown = "unknown scenario in page"
    assert rejects([9, 1, 1], Dates(None, None)) == (0, [unknown])
    assert rejects([9, 1, 1]) == (0, [unknown]), "of another day"
    assert rejects([9, 1, 8]) == (1, [unknown] * 2)
    assert rejects([9, 1, 1]) == (2, [unknown])
    assert rejects([9, 1, 1]) == (2, [unknown])
