"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a fresh sqlite store. Creating one takes seconds: tests share it under names of their own."""
    from hinet_model import registry

    folder: Path = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    registry.connect(uri)
    return uri


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """One Spark session with Delta for all tests: starting one takes seconds."""
    from feature_eng.session import build_session

    session = build_session("tests", {"spark.master": "local[2]"})
    yield session
    session.stop()
