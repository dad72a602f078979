"""The job that builds features, end to end on a small log of another shape than MovieLens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_files import load_job
from pyspark.sql import SparkSession

from feature_eng import delta, drift
from feature_eng.contract import Contract, ContractError, to_contract
from feature_eng.drift import DriftError
from feature_eng.encoder.state import EncoderState

ROOT = Path(__file__).parents[2]
JOB = ROOT / "jobs" / "build_features.py"


@pytest.fixture(scope="module")
def job() -> ModuleType:
    return load_job("build_features")


def shop_contract() -> Contract:
    return to_contract(
        {
            "name": "shop",
            "source": {
                "reader": "tables",
                "tables": {
                    "impressions": {
                        "path": "impressions.csv", "format": "csv",
                        "types": {"shopper": "integer", "product": "integer", "at": "integer", "clicked": "integer"},
                    },
                    "orders": {"path": "orders.json", "format": "json"},
                },
            },
            "columns": {"key": ["shopper", "product", "at"], "user": "shopper", "item": "product", "time": "at"},
            "scenario": {"column": "page", "values": {"home": {"in": ["home"]}, "search": {"in": ["search"]}}},
            "tasks": {
                "click": {"column": "clicked", "equals": 1},
                "order": {"table": "orders", "join_on": ["shopper", "product"], "within": "1h"},
            },
            "features": {
                "shopper": {"kind": "categorical", "column": "shopper"},
                "product": {"kind": "categorical", "column": "product"},
                "tags": {"kind": "multi_valued", "column": "tags", "separator": ";", "slots": 2},
                "recent": {"kind": "history", "of": "item", "last": 3},
                "shopper_count": {"kind": "count"},
                "click_rate": {"kind": "rate", "task": "click"},
            },
            "split": {"method": "time"},
        }
    )  # fmt: skip


def write_log(folder: Path) -> None:
    """200 impressions, one a minute; every tenth is ordered; two rows are no events."""
    lines = ["shopper,product,at,page,clicked,tags"]
    for row in range(200):
        page = "home" if row % 3 else "search"
        lines.append(f"{row % 7},{row % 11},{row * 60},{page},{row % 2},a;;b{row % 4}")
    lines.append("1,1,12000,basket,0,a")
    lines.append("0,0,0,search,0,a")
    (folder / "impressions.csv").write_text("\n".join(lines))
    orders = [{"shopper": row % 7, "product": row % 11, "at": row * 60 + 30} for row in range(0, 200, 10)]
    # The data go on until every impression's window has closed.
    orders.append({"shopper": 99, "product": 99, "at": 199 * 60 + 3600})
    (folder / "orders.json").write_text("\n".join(json.dumps(order) for order in orders))


@pytest.mark.spark
@pytest.mark.slow
def test_a_log_becomes_a_training_table(
    job: ModuleType, spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path)
    contract = shop_contract()
    snapshot = job.build(spark, contract, str(tmp_path), tmp_path / "warehouse")
    said = capsys.readouterr().out
    root = tmp_path / "warehouse" / "shop"
    assert {path.name for path in root.iterdir()} >= {"events", "rejects", "examples", "training", "encoder"}
    assert [snapshot.rows(split) for split in ("train", "validation", "test")] == [160, 20, 20]
    rows = [line.split() for line in said.splitlines()]
    assert ["impressions", "202", "200", "2"] in rows
    assert "unknown scenario in page" in said
    assert "duplicate key" in said
    assert f"snapshot  table {snapshot.table} version {snapshot.version}" in said
    assert ["home", "train", "106", "53", "10"] in [row[:5] for row in rows]
    assert rows[said.splitlines().index("labels of other tables") + 2] == ["order", "orders", "21", "20"]
    state = EncoderState.load(snapshot.encoder_path)
    assert (state.digest, snapshot.contract_fingerprint) == (snapshot.encoder_digest, contract.fingerprint)
    table = pq.ParquetFile(snapshot.files_of("test")[0].path).read()
    assert table.num_rows == 20
    assert not any(column.null_count for column in table.columns)
    assert np.unique(table.column("shopper").to_numpy()).tolist() == [1, 2, 3, 4, 5, 6, 7]

    drifted = to_contract({**contract.model_dump(mode="json", by_alias=True), "drift": {"rows": 1.5}})
    lines = (tmp_path / "impressions.csv").read_text().splitlines()
    # Of search every second row.
    kept = [
        line for line in lines[1:] if line.split(",")[3] != "search" or int(line.split(",")[2]) % 120 == 0
    ]
    (tmp_path / "impressions.csv").write_text("\n".join([lines[0], *kept]))
    with pytest.raises(DriftError, match=r"^drift\.rows: search was 67 in the build before and is \d+"):
        job.build(spark, drifted, str(tmp_path), tmp_path / "warehouse")
    assert delta.newest_version(root / "training") == snapshot.version
    snapshot.check_files("train")
    assert {one.name for one in drift.stored(spark, str(root / "drift"), 1) if one.is_beyond} == {"search"}


@pytest.mark.spark
@pytest.mark.slow
def test_a_build_as_of_a_time_with_weights_and_a_sample_says_what_training_must_know(
    job: ModuleType, spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path)
    mapping = shop_contract().model_dump(mode="json", by_alias=True)
    mapping["tasks"]["order"]["scenarios"] = ["home"]
    sampling = {"keep_negatives": 0.5, "by_scenario": {"home": 0.2}, "task": "click"}
    contract = to_contract({**mapping, "weight": "shopper", "sampling": sampling})
    as_of = job.second_of("1970-01-01T03:00:00", contract)
    assert as_of == 10_800
    snapshot = job.build(spark, contract, str(tmp_path), tmp_path / "warehouse", as_of=as_of)
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    # Rows of home with an hour to go, and those of search that had been shown: every third row is of search.
    immature = {cell.scenario: cell.rows for cell in snapshot.cells if cell.split == "immature"}
    late = [row for row in range(200) if row * 60 > as_of - 3600 * (row % 3 > 0)]
    assert immature == {
        name: sum((row % 3 > 0) == (name == "home") for row in late) for name in ("home", "search")
    }
    assert sum(cell.rows for cell in snapshot.cells) == 200
    table = pa.concat_tables(pq.ParquetFile(file.path).read() for file in snapshot.files_of("train"))
    is_home = table["scenario_index"].to_numpy() == 0
    label, order = (table[f"label__{task}"].to_numpy() for task in ("click", "order"))
    assert set(order[is_home]) == {0.0, 1.0}
    assert set(order[~is_home]) == {-1.0}
    weight = table["row_weight"].to_numpy()
    factor = np.where(label == 1, 1, np.where(is_home, 5, 2))
    assert set(weight / factor) <= set(range(7))
    assert snapshot.trained_weights() == pytest.approx((weight[is_home].sum(), weight[~is_home].sum()))
    whole = {"home": 0, "search": 0}
    for cell in snapshot.cells:
        whole[cell.scenario] += cell.weight if cell.split in ("train", "unsampled") else 0
    assert snapshot.whole_weights() == tuple(whole.values())
    assert whole["home"] > weight[is_home & (label == 1)].sum() > 0
    assert ["search", "order", "train"] not in [row[:3] for row in said]
    assert ["click", "labels"] in [row[-4:-2] for row in said if row[:2] == ["scenario", "split"]]


def test_as_of_is_the_end_of_a_day_or_a_time_and_needs_one_in_the_contract(job: ModuleType) -> None:
    contract = shop_contract()
    assert job.second_of(None, contract) is None
    assert job.second_of("1970-01-02", contract) == 2 * 86_400 - 1
    assert job.second_of("1970-01-02T01:00:00+01:00", contract) == 86_400
    with pytest.raises(ContractError, match=r"^--as-of: 'soon' is not a date; expected 2022-04-08"):
        job.second_of("soon", contract)
    mapping = {
        **contract.model_dump(mode="json", by_alias=True),
        "behaviour": False,
        "split": {"method": "random"},
    }
    mapping["tasks"].pop("order")
    mapping["columns"].pop("time")
    with pytest.raises(ContractError, match=r"^--as-of: the contract names no columns\.time"):
        job.second_of("1970-01-02", to_contract(mapping))


@pytest.mark.parametrize("rows", ["0", "-4", "many"])
def test_a_row_group_has_a_row_at_least(
    job: ModuleType, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        job.arguments().parse_args(["--contract", "shop.yml", f"--rows-per-group={rows}"])
    assert ended.value.code == 2
    assert (
        f"argument --rows-per-group: '{rows}': expected a whole number, 1 or more" in capsys.readouterr().err
    )


def test_help_shows_examples(job: ModuleType) -> None:
    text = job.arguments().format_help()
    assert "spark-submit" in text
    assert "--set KEY=VALUE" in text


def test_a_misspelt_setting_ends_the_job_before_spark_starts(tmp_path: Path) -> None:
    contract = ROOT / "conf" / "contracts" / "movielens.yml"
    done = subprocess.run(
        [sys.executable, str(JOB), "--contract", str(contract), "--set", "split.methd=time",
         "--warehouse", str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "did you mean 'split.method'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
