"""What was set for Spark from outside: by spark-submit, by `PYSPARK_SUBMIT_ARGS`, or by a defaults file."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path


def is_running() -> bool:
    """Whether this process has a Spark."""
    from pyspark import SparkContext

    return SparkContext._active_spark_context is not None


def given_conf() -> dict[str, str]:
    """Settings by name; those of the Spark that runs, if one does."""
    import pyspark
    from pyspark import SparkConf, SparkContext

    if is_running():
        return dict(SparkContext._active_spark_context.getConf().getAll())
    if "PYSPARK_GATEWAY_PORT" in os.environ:  # started by spark-submit, whose JVM knows it all
        SparkContext._ensure_initialized()
        return dict(SparkConf().getAll())
    arguments = list(_submit_arguments(os.environ.get("PYSPARK_SUBMIT_ARGS", "")))
    home = os.environ.get("SPARK_HOME", str(Path(pyspark.__file__).parent))
    folder = Path(os.environ.get("SPARK_CONF_DIR", Path(home) / "conf"))
    files = [value for key, value in arguments if key == "--properties-file"]
    given = _properties(Path(files[-1]) if files else folder / "spark-defaults.conf")
    named = {"--master": "spark.master", "--packages": "spark.jars.packages", "--name": "spark.app.name",
             "--driver-memory": "spark.driver.memory"}  # fmt: skip
    for key, value in arguments:
        if key == "--conf":
            name, _, value = value.partition("=")
            given[name] = value
        elif key in named:
            given[named[key]] = value
    return given


def _submit_arguments(text: str) -> Iterator[tuple[str, str]]:
    words = shlex.split(text)
    for place, word in enumerate(words):
        if word.startswith("--"):
            key, equals, value = word.partition("=")
            if equals:
                yield key, value
            elif place + 1 < len(words):
                yield key, words[place + 1]


def _properties(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.replace("=", " ", 1).split(None, 1) for line in lines if line and line[0] not in "#!")
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}
