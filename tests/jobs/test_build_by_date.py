"""Days built one by one give the tables of one full build, whatever comes late and wherever a build is killed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from daily_log import DAYS, contract_at, on, write_log
from deltalake import DeltaTable
from job_files import load_job
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng import by_date, delta, training_table
from feature_eng.contract import ContractError, to_contract
from feature_eng.dates import ON_DATE
from foundation.turns import TurnError

pytestmark = [pytest.mark.spark, pytest.mark.slow]

TABLES = ("events", "events_orders", "events_carts", "rejects", "examples", "training")


class KilledError(Exception):
    """What stands for the end of a process."""


@pytest.fixture(scope="module")
def job() -> ModuleType:
    return load_job("build_features")


@contextmanager
def read_all_the_time(warehouse: Path) -> Iterator[set[tuple[str, int, int]]]:
    """Tables read by their paths without end, from when they are there; table, version and rows of each reading."""
    seen: set[tuple[str, int, int]] = set()
    faults: list[Exception] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.05) and not faults:
            for table in (name for name in TABLES if delta.exists(warehouse / "days" / name)):
                try:
                    found = DeltaTable(str(warehouse / "days" / table))
                    rows = sum(pq.ParquetFile(file).read().num_rows for file in found.file_uris())
                    seen.add((table, found.version(), rows))
                except Exception as fault:
                    faults.append(fault)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        yield seen
    finally:
        done.set()
        reader.join()
    assert not faults


def files_of(table: Path) -> set[str]:
    """Parquet files that lie in a table's folder, whatever its log says of them."""
    return {file.name for file in table.rglob("*.parquet") if "_delta_log" not in file.parts}


def rows_of(spark: SparkSession, warehouse: Path, table: str) -> list[str]:
    """All rows of a table as text, in order."""
    rows = delta.read(spark, warehouse / "days" / table).drop(ON_DATE)
    return sorted(str(row) for row in rows.select(sorted(rows.columns)).collect())


Build = Callable[..., Any]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("raw")


@pytest.fixture(scope="module")
def build(job: ModuleType, spark: SparkSession, raw: Path) -> Build:
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
    raw: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build(tmp_path, 6, f":{on(6)}")
    first = delta.partitions(tmp_path / "days" / "examples", 0, ON_DATE)
    write, writes = by_date.write, iter(range(100))
    lay_out = training_table.laid_out
    training = tmp_path / "days" / "training"

    def killed_in_the_second(*given: Any) -> int:
        if next(writes) == 1:
            raise KilledError("killed")
        return write(*given)

    def killed(*_: Any, **__: Any) -> Any:
        raise KilledError("killed")

    def killed_in_one_file(encoded: DataFrame, *given: Any) -> DataFrame:
        last = encoded.agg(F.max("row_id")).collect()[0][0]
        dies = F.raise_error(F.lit("killed")).cast("bigint")
        row_id = F.when(F.col("row_id") == last, dies).otherwise(F.col("row_id"))
        return lay_out(encoded, *given).withColumn("row_id", row_id)

    with read_all_the_time(tmp_path) as seen:
        # Orders are late by two days at most.
        build(tmp_path, 8, f"{on(5)}:{on(8)}")
        before = (delta.newest_version(training), rows_of(spark, tmp_path, "training"))
        files = files_of(training)
        for where, name, by in (
            (by_date, "write", killed_in_the_second),
            (job, "write_examples", killed),
            # Files of the new version are there, and no commit names them.
            (training_table, "laid_out", killed_in_one_file),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(where, name, by)
                with pytest.raises(Exception, match="killed"):
                    build(tmp_path, 9, f"{on(7)}:{on(9)}")
        assert files_of(training) > files
        assert (delta.newest_version(training), rows_of(spark, tmp_path, "training")) == before
        build_beside_another(job, monkeypatch, raw, tmp_path, f"{on(7)}:{on(9)}")
    assert {table for table, _, _ in seen} == set(TABLES)
    for table, version, rows in seen:
        assert rows == delta.num_rows(spark, tmp_path / "days" / table, version), (table, version)
    assert {version for table, version, _ in seen if table == "training"} <= {0, 1, 2}
    last = delta.snapshot(spark, training)
    for table in TABLES:
        assert rows_of(spark, tmp_path, table) == rows_of(spark, whole, table), table
    assert last.rows("train") > 20
    assert last.cells == delta.snapshot(spark, whole / "days" / "training").cells
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
    names = ["events", "events_orders", "events_carts", "rejects"]
    with pytest.raises(
        ContractError, match=r"^--dates: .*events was built by another contract or other seeds"
    ):
        by_date.goes_on(str(tmp_path / "days"), names, to_contract(other))
    assert by_date.goes_on(str(tmp_path / "days"), names, contract_at(9, tmp_path))


def build_beside_another(
    job: ModuleType, monkeypatch: pytest.MonkeyPatch, raw: Path, warehouse: Path, dates: str
) -> None:
    """Build the last day as a user does, while another such build is tried: it is refused by name."""
    contract = contract_at(DAYS - 1, raw).model_dump(mode="json", by_alias=True)
    file = warehouse / "contract.yml"
    file.write_text(yaml.safe_dump(contract, sort_keys=False))
    arguments = ["build_features.py", "--contract", file, "--warehouse", warehouse, "--dates", dates]
    add_up, refusals = job.add_up, []

    def beside_another(*given: Any) -> Any:
        with pytest.raises(TurnError, match=r"days: another build of this contract is under way") as refused:
            load_job("build_features").main()
        refusals.append(refused)
        return add_up(*given)

    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, arguments)))
        patch.setattr(job, "add_up", beside_another)
        job.main()
    assert len(refusals) == 1


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
