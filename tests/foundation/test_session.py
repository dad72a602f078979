"""The Spark session: what the user set stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark import SparkContext

from foundation import session


def test_the_session_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    defaults = tmp_path / "spark-defaults.conf"
    defaults.write_text("# ours\nspark.jars.packages org.example:thing:1.0\nspark.ui.enabled=true\n")
    monkeypatch.setattr(SparkContext, "_active_spark_context", None)
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", "--master local[3] --conf spark.ui.enabled=no pyspark-shell")
    given = session._given_conf()
    assert given["spark.master"] == "local[3]"
    assert given["spark.ui.enabled"] == "no"
    wanted = session.wanted_conf(given, {"spark.app.name": "mine", "spark.ui.enabled": "false"})
    assert wanted["spark.jars.packages"] == f"org.example:thing:1.0,{session.DELTA_PACKAGE}"
    assert wanted["spark.app.name"] == "mine"
    assert not {"spark.ui.enabled", "spark.master"} & set(wanted)
    on_cluster = session.wanted_conf({"spark.master": "yarn"}, {})
    assert not {"spark.sql.shuffle.partitions", "spark.driver.host"} & set(on_cluster)
