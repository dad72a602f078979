"""Where Java's output goes while Spark starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pyspark import SparkContext

from foundation.java_log import java_writes_to


def test_java_s_output_goes_to_the_log_or_elsewhere_where_that_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SparkContext, "_gateway", None)
    (tmp_path / "taken").touch()
    for wanted in (tmp_path / "logs" / "spark.log", tmp_path / "taken" / "spark.log"):
        with java_writes_to(wanted) as log:
            os.write(2, b"said by Java")
        assert log.read_bytes() == b"said by Java"
        assert (log == wanted) == ("taken" not in str(wanted))
