"""The Spark session: what the user set stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark import SparkContext
from pyspark.sql import SparkSession

from foundation import session
from foundation.given_conf import given_conf
from foundation.settings import UserError


def test_the_session_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    defaults = tmp_path / "spark-defaults.conf"
    defaults.write_text("# ours\nspark.jars.packages org.example:thing:1.0\nspark.ui.enabled=true\n")
    monkeypatch.setattr(SparkContext, "_active_spark_context", None)
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", "--master local[3] --conf spark.ui.enabled=no pyspark-shell")
    given = given_conf()
    assert given["spark.master"] == "local[3]"
    assert given["spark.ui.enabled"] == "no"
    wanted = session.wanted_conf(given, {"spark.app.name": "mine", "spark.ui.enabled": "false"})
    assert wanted["spark.jars.packages"] == f"org.example:thing:1.0,{session.DELTA_PACKAGE}"
    assert wanted["spark.app.name"] == "mine"
    assert not {"spark.ui.enabled", "spark.master"} & set(wanted)
    large = session.wanted_conf({}, {}, (), lambda: 2**30)
    assert int(large["spark.driver.memory"].removesuffix("g")) >= 2
    assert int(large["spark.sql.shuffle.partitions"]) >= 32
    assert "TieredStopAtLevel" not in large["spark.driver.extraJavaOptions"]
    small = session.wanted_conf({}, {}, (), lambda: 1000)
    assert small == session.wanted_conf({}, {})
    assert small["spark.driver.memory"] == "2g"
    assert "spark.driver.memory" not in session.wanted_conf(
        {"spark.driver.memory": "5g"}, {}, (), lambda: 2**30
    )
    assert session.wanted_conf({"spark.master": "yarn"}, {}, (), lambda: 1 // 0), "nobody looks for a cluster"
    on_cluster = session.wanted_conf({"spark.master": "yarn"}, {})
    assert not {"spark.sql.shuffle.partitions", "spark.driver.host"} & set(on_cluster)
    assert on_cluster["spark.sql.codegen.hugeMethodLimit"] == "8000"
    assert on_cluster["spark.sql.inMemoryColumnarStorage.compressed"] == "false"
    assert on_cluster["spark.python.sql.dataFrameDebugging.enabled"] == "false"


_QUIET = """
import signal
from pyspark import SparkContext
from foundation.job import configure_logging
from foundation.session import job_session
from foundation.settings import UserError
configure_logging()
with job_session("quiet") as spark:
    print(spark.range(3).count())
print(SparkContext._active_spark_context)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
try:
    with job_session("quiet") as spark:
        # Of a task in Python the JVM tells the driver over a connection of its own.
        print(spark.sparkContext.parallelize(range(2), 1).count())
        SparkContext._gateway.proc.kill()
        spark.range(3).collect()
except UserError as error:
    print(error)
"""


@pytest.mark.spark
def test_what_java_and_ivy_write_goes_to_a_file_and_a_java_that_is_killed_is_one_message(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _QUIET], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    log = Path("local") / "logs" / "spark-quiet.log"
    gone = f"Spark is gone: killed, or out of memory; its log: {log}"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"3\nNone\ninterrupted\n2\n{gone}\n", "")
    assert "delta-spark" in (tmp_path / log).read_text()


@pytest.mark.spark
def test_a_spark_that_does_not_start_is_one_message_with_the_end_of_its_log(tmp_path: Path) -> None:
    program = (
        "from foundation.session import build_session\nfrom foundation.settings import UserError\n"
        "try:\n    build_session('broken')\nexcept UserError as error:\n    print(error)"
    )
    environment = {**os.environ, "PYSPARK_SUBMIT_ARGS": "--driver-memory much pyspark-shell"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Spark did not start" in done.stdout
    assert "heap size" in done.stdout
    assert done.stderr == ""


@pytest.mark.spark
def test_a_session_that_ran_before_is_not_ended_with_the_job(spark: SparkSession) -> None:
    with session.job_session("job") as its:
        assert its is spark
    assert session.is_alive(spark)


@pytest.mark.spark
def test_a_spark_without_delta_is_refused_except_where_the_runtime_has_its_own(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_DELTA_EXTENSION", "io.delta.Nowhere")
    with pytest.raises(UserError, match="Spark runs without Delta"):
        session.build_session("bare")
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "17.3")
    assert session.build_session("databricks") is spark
