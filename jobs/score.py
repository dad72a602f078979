"""Score raw rows with the champion and write the scores, with their lineage, to a Delta table."""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pyspark.errors import PythonException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng import delta
from feature_eng.contract import stored_name
from feature_eng.events.stored import stored_events
from feature_eng.meaning import check_meaning
from feature_eng.origin import origin_of
from feature_eng.requests import with_features
from feature_eng.snapshot import CONTRACT_FINGERPRINT, FIRST_MEANING, MEANING_OF_ROWS
from feature_eng.sources.faults import as_user_errors
from foundation import stores
from foundation.job import job_parser, run_job, say, say_table, stage
from foundation.session import job_session
from foundation.settings import UserError, load_settings
from hinet_model.lifecycle import evaluation, registry
from hinet_model.report.tables import judgements_table
from hinet_model.serving import on_spark as scoring
from hinet_model.serving.scorer import Scorer
from hinet_model.settings import RunSettings

logger = logging.getLogger("score")

EXAMPLES = """\
  python jobs/score.py --config conf/train/movielens.yml
  python jobs/score.py --config conf/train/movielens.yml --where "split = 'test'"
  spark-submit --properties-file conf/spark/local.conf jobs/score.py --config conf/train/movielens.yml \\
      --input warehouse/movielens/to_score --output warehouse/movielens/scores_today"""


def arguments() -> argparse.ArgumentParser:
    """What the job accepts."""
    parser = job_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--config", required=True, metavar="FILE", help="settings of the training run (YAML)")
    parser.add_argument(
        "--model-version", default=registry.CHAMPION, metavar="V",
        help="version or alias to score with (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--input", metavar="TABLE",
        help="Delta table of requests: raw rows without labels, whose behaviour features are computed from the "
        "events of the newest build; or rows that have these features, with the property hinet.contract_fingerprint; "
        "default: the examples that the training table was made of",
    )  # fmt: skip
    parser.add_argument("--where", metavar="SQL", help="score only the rows that meet this condition")
    parser.add_argument(
        "--output", metavar="TABLE", help="Delta table to write; default: scores beside the input"
    )
    return parser


def main() -> None:
    """Resolve the champion once, score, write, and say where."""
    given = arguments().parse_args()
    settings = load_settings(RunSettings, given.config, given.overrides)
    client = registry.connect(settings.mlflow.tracking_uri)
    version = registry.resolve(client, settings.mlflow.registered_model, given.model_version)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hinet-download-") as cache:
        folder = registry.model_folder(registry.fetch(client, version, Path(cache)))
        scorer = Scorer.load(folder)
        table, table_version = input_table(given.input, settings, scorer, version)
        output = given.output or stores.join(stores.parent(table), "scores")
        refuse_other_table(output)
        lineage = {
            "model_name": version.name,
            "model_version": version.version,
            "run_id": version.run_id,
            "input_table": table,
            "input_version": str(table_version),
            "contract_fingerprint": scorer.contract_fingerprint,
        }
        with job_session(
            "score", places=[table, output], data_bytes=lambda: delta.data_bytes(table, table_version)
        ) as spark:
            if given.input is None and table_version is not None:
                rows = delta.read_earlier(spark, table, table_version)
            else:  # the user's own table may have features that Spark alone reads
                rows = delta.read(spark, table, table_version)
            if given.where:
                with as_user_errors("--where"):
                    rows = rows.where(given.where)
            if rows.isEmpty():
                meeting = f" that meets --where {given.where!r}" if given.where else ""
                raise UserError(f"{table}: has no row{meeting}; {output} is left as it is")
            if is_requests(rows.columns, scorer):
                with stage("requests"):
                    rows = with_features_of_past(spark, rows, settings, scorer, version)
            shipment = scoring.ship(spark, folder, f"{version.name}-{version.version}")
            key = scorer.state.contract.key
            keep = [name for part in key for name in {part, stored_name(part)} if name in rows.columns]
            keep = keep or [name for name in roles(scorer) if name in rows.columns]
            with stage("scores"):
                written = write(with_lineage(shipment.score(rows, keep), lineage), output, lineage, version)
            summarise(spark, output, written, scorer)
    say(f"took {time.monotonic() - started:.0f} s")
    if "evaluated_against" in version.tags:
        say(f"\n{version.uri} on its test rows")
        try:
            say(judgements_table(evaluation.latest(client, version)))
        except (
            registry.RegistryError
        ) as error:  # of an older format, or its files are gone: the scores are written
            say(str(error))
    say(f"{given.model_version + ' ':<10}{version.uri}")
    say(f"MLflow    mlflow ui --backend-store-uri {settings.mlflow.tracking_uri}")


def input_table(
    given: str | None,
    settings: RunSettings,
    scorer: Scorer,
    version: registry.RegisteredVersion,
) -> tuple[str, int | None]:
    """The table to score and its version, made by the contract that the model was trained by."""
    if given is not None:
        table, table_version = stores.normalised(given), delta.newest_version(given)
        properties = delta.properties(table, table_version)
        if CONTRACT_FINGERPRINT not in properties and is_requests(
            delta.column_names(table, table_version), scorer
        ):
            return table, table_version
    else:
        training = settings.data.location
        properties = delta.properties(training)
        origin = origin_of(training, properties)
        table, table_version = origin.examples, origin.version
    refuse_foreign(table, properties, scorer, version)
    return table, table_version


def refuse_other_table(output: str) -> None:
    """Refuse to replace a table that holds no scores: what is scored, or what it was made of, for one."""
    if delta.exists(output) and not {"model_version", "scored_at"} <= set(delta.column_names(output)):
        raise UserError(
            f"--output {output}: is a table without scores, which they would replace; expected one of scores, or a "
            "new place"
        )


def refuse_foreign(
    table: str, properties: Mapping[str, str], scorer: Scorer, version: registry.RegisteredVersion
) -> None:
    """Refuse rows that another contract made, or none that is named, or that mean something else than the model's."""
    fingerprint = properties.get(CONTRACT_FINGERPRINT)
    if fingerprint != scorer.contract_fingerprint:
        wanted = scorer.contract_fingerprint
        if fingerprint is None:
            raise UserError(
                f"{table}: names no contract; if its rows are as {version.uri} expects them, say so: "
                f"ALTER TABLE delta.`{table}` SET TBLPROPERTIES ('{CONTRACT_FINGERPRINT}' = '{wanted}')"
            )
        raise UserError(
            f"{table}: was made by contract {fingerprint[:12]}; {version.uri} scores rows of contract "
            f"{wanted[:12]} alone"
        )
    learned = version.tags.get("meaning", FIRST_MEANING)
    if properties.get(MEANING_OF_ROWS, learned) != learned:
        raise UserError(
            f"{table}: was built by another release, in which rows meant something else (meaning "
            f"{properties[MEANING_OF_ROWS]}) than those that {version.uri} was trained on (meaning {learned}); "
            "train on rows of this build, or score with the release that built the model's"
        )


def is_requests(columns: Sequence[str], scorer: Scorer) -> bool:
    """Whether rows of these columns lack what is computed from the past."""
    return not set(scorer.state.contract.behaviour_columns) <= set(columns)


def roles(scorer: Scorer) -> tuple[str, ...]:
    """What tells a row without a key: user, item and time, as the product's tables call them."""
    columns = scorer.state.contract.columns
    return tuple(stored_name(name) for name in (columns.user, columns.item, columns.time) if name is not None)


def with_features_of_past(
    spark: SparkSession,
    rows: DataFrame,
    settings: RunSettings,
    scorer: Scorer,
    version: registry.RegisteredVersion,
) -> DataFrame:
    """Requests with their behaviour features, from what the newest build of the model's contract knows."""
    training = settings.data.location
    properties = delta.properties(training)
    origin = origin_of(training, properties)
    refuse_foreign(training, properties, scorer, version)
    check_meaning(training, properties)
    contract = scorer.state.contract
    events = stored_events(spark, contract, origin.root, origin.tables)
    examples = delta.read_earlier(spark, origin.examples, origin.version)
    say(f"requests  features of what came before them, from {origin.examples} version {origin.version}")
    return with_features(rows, events, examples, contract)


def with_lineage(scores: DataFrame, lineage: dict[str, str]) -> DataFrame:
    """Add to every row which model scored it, from which rows, and when."""
    scored_at = datetime.now(UTC).replace(microsecond=0)
    return scores.drop(scoring.SCENARIO_INDEX).select(
        "*",
        F.lit(lineage["model_name"]).alias("model_name"),
        F.lit(lineage["model_version"]).alias("model_version"),
        F.lit(lineage["run_id"]).alias("run_id"),
        F.lit(int(lineage["input_version"])).cast("bigint").alias("input_version"),
        F.lit(scored_at).alias("scored_at"),
    )


def write(
    scores: DataFrame, output: str, lineage: dict[str, str], version: registry.RegisteredVersion
) -> int:
    """Write the scores in one commit that bears the lineage too; the version written."""
    try:
        return delta.write(scores, output, options={"userMetadata": json.dumps(lineage)})
    except PythonException as error:
        message = scoring.user_message(error)
        if message is None:
            raise
        raise UserError(f"{version.uri}: {message}") from None


def summarise(spark: SparkSession, output: str, written: int, scorer: Scorer) -> None:
    """Print rows and mean probabilities per scenario."""
    columns = scoring.probability_columns(scorer.task_names)
    counted = {
        row[scoring.SCENARIO]: row
        for row in delta.read(spark, output, written)
        .groupBy(scoring.SCENARIO)
        .agg(F.count("*").alias("rows"), *(F.avg(name).alias(name) for name in columns))
        .collect()
    }
    say_table(
        ["scenario", "rows", *(f"mean {name}" for name in columns)],
        [
            (name, counted[name]["rows"], *(f"{counted[name][column]:.4f}" for column in columns))
            for name in scorer.scenario_names
            if name in counted
        ],
    )
    say(f"scores    table {stores.normalised(output)} version {written}")


if __name__ == "__main__":
    run_job(main)
