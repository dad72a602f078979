"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock
from pyspark.sql import SparkSession

ROOT = Path(__file__).resolve().parent.parent

STORE_SECRET = "planted+of/the-store=="
"""The object store's key, such as nothing else that a test writes would hold."""

# How long an example takes is no property of the code: the first one may load a library, the machine may be busy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that the processes of a run come to an end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What is imported by now stays: to look for garbage among it again and again takes a tenth of a test's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a fresh sqlite store. Creating one takes seconds: tests share it under names of their own."""
    from hinet_model.lifecycle import registry

    folder: Path = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    registry.connect(uri)
    return uri


# Tables of tests are tiny: compiling a plan, or planning it again after each shuffle, takes longer than all else, and
# so does a Python process for each of four parts. There are four places to run tasks, for as many training workers.
# Jobs that tests start as processes run as users run them.
_TINY_TABLES = {
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.default.parallelism": "2",
    "spark.sql.leafNodeDefaultParallelism": "2",
    "spark.databricks.delta.snapshotPartitions": "1",
}


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """One Spark session with Delta for all tests: starting one takes seconds."""
    from foundation.session import build_session

    session = build_session("tests", {"spark.master": "local[4]", **_TINY_TABLES})
    yield session
    session.stop()


@pytest.fixture(scope="module")
def object_store() -> Iterator[str]:
    """A bucket of an S3 server on loopback, by URI; the environment says how to reach it while tests use it."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    reached_by = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": STORE_SECRET,
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in reached_by.items():
            patch.setenv(name, value)
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="warehouse")
        yield "s3://warehouse"
    server.stop()


@pytest.fixture(scope="session")
def movielens_warehouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Warehouse with MovieLens-100K, whole, as the job builds it; one for all processes of a test run."""
    folder: Path = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    warehouse, built = folder / "movielens-warehouse", folder / "movielens-warehouse.built"
    with FileLock(folder / "movielens-warehouse.lock"):
        if not built.exists():
            contract = ROOT / "conf" / "contracts" / "movielens.yml"
            command = [sys.executable, "jobs/build_features.py", "--contract", str(contract)]
            done = subprocess.run(
                [*command, "--warehouse", str(warehouse)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-4000:]
            built.touch()
    return warehouse
