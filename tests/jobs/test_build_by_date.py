"""Days built one by one give the tables of one full build, whatever comes late and wherever a build is killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from daily_log import DAYS, contract_at, on, write_log
from job_files import load_job
from pyspark.sql import SparkSession

from feature_eng import by_date, delta
from feature_eng.contract import ContractError, to_contract
from feature_eng.dates import ON_DATE

pytestmark = [pytest.mark.spark, pytest.mark.slow]

TABLES = ("events", "events_orders", "rejects", "examples")


class KilledError(Exception):
    """What stands for the end of a process."""


@pytest.fixture(scope="module")
def job() -> ModuleType:
    return load_job("build_features")


def rows_of(spark: SparkSession, warehouse: Path, table: str) -> list[str]:
    """All rows of a table as text, in order."""
    rows = delta.read(spark, warehouse / "days" / table).drop(ON_DATE)
    return sorted(str(row) for row in rows.select(sorted(rows.columns)).collect())


Build = Callable[..., Any]


@pytest.fixture(scope="module")
def build(job: ModuleType, spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Build:
    raw = tmp_path_factory.mktemp("raw")

    def built(warehouse: Path, day: int, dates: str | None) -> Any:
        write_log(raw, day)
        contract = contract_at(day, raw)
        asked = None if dates is None else by_date.dates_of(dates, contract)
        return job.build(spark, contract, None, warehouse, dates=asked)

    return built


@pytest.fixture(scope="module")
def whole(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    warehouse = tmp_path_factory.mktemp("whole")
    build(warehouse, DAYS - 1, None)
    return warehouse


def test_days_one_by_one_give_the_tables_of_one_build(
    job: ModuleType,
    build: Build,
    spark: SparkSession,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build(tmp_path, 6, f":{on(6)}")
    first = delta.partitions(tmp_path / "days" / "examples", 0, ON_DATE)
    # Orders are late by two days at most.
    build(tmp_path, 8, f"{on(5)}:{on(8)}")

    write, writes = by_date.write, iter(range(100))

    def killed_in_the_second(*given: Any) -> int:
        if next(writes) == 1:
            raise KilledError
        return write(*given)

    def killed(*_: Any, **__: Any) -> Any:
        raise KilledError

    for where, name, by in (
        (by_date, "write", killed_in_the_second),
        (job, "write_examples", killed),
        (job, "count_cells", killed),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, by)
            with pytest.raises(KilledError):
                build(tmp_path, 9, f"{on(7)}:{on(9)}")
    last = build(tmp_path, 9, f"{on(7)}:{on(9)}")
    for table in TABLES:
        assert rows_of(spark, tmp_path, table) == rows_of(spark, whole, table), table
    assert last.rows("train") > 20
    newest = delta.newest_version(tmp_path / "days" / "examples")
    now = delta.partitions(tmp_path / "days" / "examples", newest, ON_DATE)
    assert {day for day in now if now[day] == first.get(day)} == {on(0), on(1)}
    rejects = delta.read(spark, tmp_path / "days" / "rejects")
    assert sorted(row["reason"] for row in rejects.collect()) == [
        "duplicate key", "null at", "unknown scenario in page",
    ]  # fmt: skip

    other = contract_at(9, tmp_path).model_dump(mode="json", by_alias=True) | {
        "sampling": {"keep_negatives": 0.5, "seed": 1}
    }
    names = ["events", "events_orders", "rejects"]
    with pytest.raises(
        ContractError, match=r"^--dates: .*events was built by another contract or other seeds"
    ):
        by_date.goes_on(str(tmp_path / "days"), names, to_contract(other))
    assert by_date.goes_on(str(tmp_path / "days"), names, contract_at(9, tmp_path))


def test_days_without_rows_and_tables_that_are_not_by_date_are_refused(
    build: Build, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(ContractError, match=r"^--dates: 'shown' holds no rows of 2023-12-31$"):
        build(tmp_path, 9, "2023-12-31")
    with pytest.raises(
        ContractError, match=r"^--dates: .*events is not kept by date; build all .* --dates :$"
    ):
        build(whole, 9, f"{on(9)}")
    assert not (tmp_path / "days" / "events").exists()
