"""Settings of a training run: the shipped files are right, and wrong values are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.settings import ConfigError, load_settings
from hinet_model.settings import RunSettings

FILES = sorted((Path(__file__).parents[2] / "conf" / "train").rglob("*.yml"))


def test_there_are_shipped_configurations() -> None:
    assert len(FILES) >= 2


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_shipped_configuration_is_valid_and_can_be_overridden(path: Path) -> None:
    settings = load_settings(RunSettings, path, ["training.epochs=3", "training.workers=1"])
    assert settings.training.epochs == 3
    assert settings.training.workers == 1


def test_everything_has_a_default() -> None:
    settings = load_settings(RunSettings, None)
    assert settings.loss.scheme == "proportion"
    assert settings.training.workers == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=1", "did you mean 'training.epochs'"),
        ("training.workers=3", "workers (3) must divide lanes (8)"),
        ("training.batch_size=4", "batch_size (4) must be at least lanes (8)"),
        ("model.dropout=1.0", "model.dropout"),
        ("model.sub_expert_dims=[]", "model.sub_expert_dims"),
        ("model.sub_experts=0", "model.sub_experts"),
        ("loss.scheme=propotion", "loss.scheme"),
        ("optimiser.betas=[0.9, 1.0]", "optimiser.betas"),
        ("mlflow.registered_model=../x", "mlflow.registered_model: '../x' is not usable as a name"),
        (
            "data.warehouse=hdfs://host/x",
            "data.warehouse: hdfs://host/x: stores of scheme 'hdfs' are not",
        ),
        ("checkpoint.folder=s3:/bucket/x", "checkpoint.folder: s3:/bucket/x: lacks its bucket"),
        ("checkpoint.scratch=s3://bucket/x", "on an object store; expected a path on this machine"),
        ("watchdog.heartbeat_seconds=500", "heartbeat_seconds must be below stall_seconds"),
    ],
)
def test_a_wrong_value_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(RunSettings, None, [override])
    assert message in str(error.value)


def test_decay_that_the_table_optimiser_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match="table_weight_decay needs table: adam or adagrad"):
        load_settings(RunSettings, None, ["optimiser.table=dense_adam", "optimiser.table_weight_decay=0.1"])


@pytest.mark.parametrize(
    ("overrides", "table", "local_folder"),
    [
        ([], "local/warehouse/movielens/training", "local/checkpoints"),
        (
            ["data.warehouse=s3a://b/wh", "data.table=t/training", "checkpoint.folder=s3://b/c"],
            None,
            "local/runs",
        ),
        (
            ["checkpoint.folder=s3://b/c", "checkpoint.scratch=tmp/x"],
            "local/warehouse/movielens/training",
            "tmp/x",
        ),
    ],
)
def test_places_are_where_the_settings_say(
    overrides: list[str], table: str | None, local_folder: str
) -> None:
    settings = load_settings(RunSettings, None, overrides)
    here = Path.cwd()
    assert settings.data.location == ("s3://b/wh/t/training" if table is None else str(here / table))
    assert settings.checkpoint.local_folder == here / local_folder
