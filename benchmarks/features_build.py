"""One build of features in a process of its own, by whichever commit's code stands on the path.

What it uses of that code is what every commit to be compared has: the job's own function, and its session, which later
commits fit to the data.

Arguments: root of the code, contract, warehouse, settings of Spark as JSON, file for the figures; and, for a build by
date, its days.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from feature_eng import delta
from feature_eng.contract import load_contract
from foundation.job import configure_logging


def main(root: str, contract: str, warehouse: str, conf: str, report: str, dates: str | None = None) -> None:
    """Build, and write seconds, seconds of processors and the heap's peak."""
    sys.argv[0] = "build_features.py"
    configure_logging()
    specification = importlib.util.spec_from_file_location(
        "build_features", Path(root, "jobs", "build_features.py")
    )
    assert specification is not None
    assert specification.loader is not None
    job = importlib.util.module_from_spec(specification)
    sys.modules["build_features"] = job
    specification.loader.exec_module(job)
    described = load_contract(contract)
    sized: dict[str, Any] = {}
    if "data_bytes" in inspect.signature(delta.build_session).parameters:
        sized["data_bytes"] = lambda: job.bytes_of(described.source, None)
    spark = delta.build_session("benchmark", json.loads(conf), **sized)
    spark.range(10).count()
    # Earlier commits know no dates.
    asked = {} if dates is None else {"dates": job.by_date.dates_of(dates, described)}
    before = processor_seconds()
    started = time.monotonic()
    job.build(spark, described, None, warehouse, **asked)
    seconds = time.monotonic() - started
    cpu_seconds = processor_seconds() - before
    pools = spark._jvm.java.lang.management.ManagementFactory.getMemoryPoolMXBeans()
    heap = sum(pool.getPeakUsage().getUsed() for pool in pools if str(pool.getType().name()) == "HEAP")
    spark.stop()
    found = {"seconds": seconds, "cpu_seconds": cpu_seconds, "heap_gib": heap / 2**30}
    Path(report).write_text(json.dumps(found), encoding="utf-8")


def processor_seconds() -> float:
    """Seconds of processors that this process and all below it have used."""
    this, seconds = psutil.Process(), 0.0
    for one in (this, *this.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # of those that have ended their parents know
            seconds += sum(one.cpu_times()[:4])
    return seconds


if __name__ == "__main__":
    main(*sys.argv[1:])
