"""Rows per second of scoring what a build has made, and of new requests, with a session of the scoring job's kind.

A process of its own, after a build and a training run. Ready rows are the examples of the build; requests are as many
raw rows, all later than what is known, whose behaviour features are computed on the way. Both are scored by the
registered version and written, as ``jobs/score.py`` does it, in turn.

Arguments: settings of the run, raw folder of the impressions, place for scores, repeats, file for the figures.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from benchmarks.features_log import DAY, DAYS
from feature_eng import delta
from feature_eng.events.stored import stored_events
from feature_eng.origin import origin_of
from feature_eng.requests import with_features
from foundation.job import configure_logging
from foundation.settings import load_settings
from hinet_model.lifecycle import registry
from hinet_model.serving import on_spark as scoring
from hinet_model.serving.scorer import Scorer
from hinet_model.settings import RunSettings

KEY = "impression_id"


def main(config: str, impressions: str, output: str, repeats: str, report: str) -> None:
    """Score in turn, and write rows per second of each repeat, and of training's epochs."""
    configure_logging()
    settings = load_settings(RunSettings, config, [])
    client = registry.connect(settings.mlflow.tracking_uri)
    version = registry.resolve(client, settings.mlflow.registered_model, registry.CHALLENGER)
    epochs = client.get_metric_history(version.run_id, "train/rows_per_second")
    origin = origin_of(settings.data.location, delta.properties(settings.data.location))
    examples, number = origin.examples, origin.version
    with tempfile.TemporaryDirectory(prefix="hinet-download-") as cache:
        folder = registry.model_folder(registry.fetch(client, version, Path(cache)))
        spark = delta.build_session(
            "score", places=[examples], data_bytes=lambda: delta.data_bytes(examples, number)
        )
        shipment = scoring.ship(spark, folder, f"{version.name}-{version.version}")
        contract = Scorer.load(folder).state.contract
        requests = (
            spark.read.parquet(impressions)
            .drop("clicked")
            .withColumn("shown_at", F.col("shown_at") + 2 * DAYS * DAY)
        )
        events = stored_events(spark, contract, origin.root, origin.tables)
        rows = requests.count()
        variants: dict[str, Callable[[], DataFrame]] = {
            "ready": lambda: delta.read(spark, examples, number),
            "requests": lambda: with_features(
                requests, events, delta.read(spark, examples, number), contract
            ),
        }
        rates: dict[str, list[float]] = {name: [] for name in variants}
        # The first of each loads the model and compiles; it does not count.
        for repeat in range(int(repeats) + 1):
            for name, made in variants.items():
                started = time.monotonic()
                delta.write(shipment.score(made(), [KEY]), output)
                if repeat:
                    rates[name].append(rows / (time.monotonic() - started))
        spark.stop()
    rates["training"] = [one.value for one in sorted(epochs, key=lambda one: one.step)]
    Path(report).write_text(json.dumps(rates), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
