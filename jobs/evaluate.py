"""Judge the challenger, and the champion if there is one, on the frozen test rows."""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from mlflow import MlflowClient
from pyspark.errors import PythonException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng import delta
from feature_eng.snapshot import CONTRACT_FINGERPRINT, EXAMPLES_PATH, EXAMPLES_VERSION, SnapshotError
from foundation.job import job_parser, run_job, say
from foundation.settings import UserError, load_settings
from hinet_model.lifecycle import evaluation, publishing, registry
from hinet_model.lifecycle.evaluation import Evaluation
from hinet_model.lifecycle.promotion import CellResult, decide
from hinet_model.lifecycle.registry import RegisteredVersion
from hinet_model.report.tables import cells_table
from hinet_model.serving import on_spark as scoring
from hinet_model.serving.scorer import Scorer
from hinet_model.settings import RunSettings

logger = logging.getLogger("evaluate")

EXAMPLES = """\
  python jobs/evaluate.py --config conf/train/movielens.yml
  python jobs/evaluate.py --config conf/train/movielens.yml --model-version 3
  spark-submit --properties-file conf/spark/local.conf jobs/evaluate.py --config conf/train/movielens.yml"""


def arguments() -> argparse.ArgumentParser:
    """What the job accepts."""
    parser = job_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--config", required=True, metavar="FILE", help="settings of the training run (YAML)")
    parser.add_argument(
        "--model-version", default=registry.CHALLENGER, metavar="V",
        help="version or alias to judge (%(default)s)",
    )  # fmt: skip
    return parser


def main() -> None:
    """Score the test rows with both versions and record what came of it."""
    given = arguments().parse_args()
    settings = load_settings(RunSettings, given.config, given.overrides)
    client = registry.connect(settings.mlflow.tracking_uri)
    name = settings.mlflow.registered_model
    challenger = registry.resolve(client, name, given.model_version)
    champion = registry.find(client, name, registry.CHAMPION)
    if champion is not None and champion.version == challenger.version:
        champion = None
    spark = delta.build_session("evaluate", places=[training_table(challenger)[0]])
    try:
        rows, described = frozen_rows(spark, challenger)
        challenger_cells = judged(spark, client, challenger, rows)
        champion_cells = judged(spark, client, champion, rows) if champion is not None else None
    finally:
        spark.stop()
    result = Evaluation(
        model=name,
        challenger=challenger.version,
        champion=champion.version if champion is not None else None,
        rows=described,
        challenger_cells=challenger_cells,
        champion_cells=champion_cells,
    )
    decision = decide(result.challenger_cells, result.champion_cells)
    evaluation.record(client, challenger, result, "passed" if decision.promote else "failed")
    summarise(result, challenger)


def training_table(version: RegisteredVersion) -> tuple[str, int]:
    """The table that a version was trained on, and which version of it."""
    table, training_version = version.tags.get("delta_table"), version.tags.get("delta_version")
    if not table or not training_version:
        raise UserError(f"{version.uri}: names no training data; its tags lack delta_table, delta_version")
    return table, int(training_version)


def frozen_rows(spark: SparkSession, version: RegisteredVersion) -> tuple[DataFrame, dict[str, str]]:
    """The test rows of the data that a version was trained on, raw, and how to find them again."""
    table, training_version = training_table(version)
    properties = delta.properties(table, training_version)
    if properties["id"] != version.tags.get("table_id"):
        raise SnapshotError(f"{table}: is another table than the one that {version.uri} was trained on")
    missing = [key for key in (EXAMPLES_PATH, EXAMPLES_VERSION) if key not in properties]
    if missing:
        raise SnapshotError(
            f"{table} (version {training_version}): does not say which examples it was made of "
            f"(no {', '.join(missing)}); build the features again"
        )
    described = {
        "table": properties[EXAMPLES_PATH],
        "version": properties[EXAMPLES_VERSION],
        "split": "test",
        "contract_fingerprint": properties[CONTRACT_FINGERPRINT],
    }
    examples = delta.read(spark, described["table"], int(described["version"]))
    return examples.where(F.col("split") == "test"), described


def judged(
    spark: SparkSession, client: MlflowClient, version: RegisteredVersion, rows: DataFrame
) -> tuple[CellResult, ...]:
    """Cells of one version on the frozen rows, scored by the model that MLflow would serve."""
    with tempfile.TemporaryDirectory(prefix="hinet-download-") as cache:
        mlflow_model = registry.fetch(client, version, Path(cache))
        publishing.check_pyfunc(mlflow_model)
        scorer = Scorer.load(registry.model_folder(mlflow_model))
        labels = {f"label__{task}" for task in scorer.task_names}
        lacking = sorted({*scorer.missing_columns(rows.columns), *(labels - set(rows.columns))})
        if lacking:
            raise UserError(
                f"{version.uri}: cannot be judged on these rows, which lack {', '.join(lacking)}; "
                "it was trained by another contract"
            )
        logger.info("scoring the test rows with %s", version.uri)
        folder = registry.model_folder(mlflow_model)
        shipment = scoring.ship(spark, folder, f"{version.name}-{version.version}")
        try:
            cells = scoring.evaluate(rows, shipment, scorer.scenario_names)
        except PythonException as error:
            message = scoring.user_message(error)
            if message is None:
                raise
            raise UserError(f"{version.uri}: {message}") from None
    return evaluation.to_results(cells, scorer.scenario_names, scorer.task_names)


def summarise(result: Evaluation, challenger: RegisteredVersion) -> None:
    """Print the table, and what promotion would say to it."""
    against = f" against champion {result.champion}" if result.champion else ""
    say(f"{challenger.uri}{against}, test rows of {result.rows['table']} version {result.rows['version']}")
    say(cells_table(result.challenger_cells, result.champion_cells))
    decision = decide(result.challenger_cells, result.champion_cells)
    say(f"gate at its default thresholds: {'passed' if decision.promote else 'failed'}")
    for reason in decision.reasons:
        say(f"  {reason}")
    if decision.unjudged:
        say(f"  too small to be judged: {', '.join(decision.unjudged)}")


if __name__ == "__main__":
    run_job(main)
