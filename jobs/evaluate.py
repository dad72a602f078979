"""Judge the challenger, and the champion if there is one, on the frozen test rows."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from pyspark.errors import PythonException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng import drift
from feature_eng.accounts import accounts_of
from feature_eng.contract import stored_name
from feature_eng.frozen import first_second, frozen_examples, learned_from, training_rows, with_new_user
from feature_eng.snapshot import SnapshotError
from foundation import places, stores
from foundation.job import job_parser, run_job, say, stage
from foundation.session import job_session
from foundation.settings import UserError, load_settings
from hinet_model.lifecycle import evaluation, publishing, registry
from hinet_model.lifecycle.admission import caution, decided
from hinet_model.lifecycle.ancestry import BEGAN_WITH, ancestors
from hinet_model.lifecycle.evaluation import CHALLENGER, CHAMPION, UNCALIBRATED, WEIGHED_BY, Evaluation
from hinet_model.lifecycle.judging import contest
from hinet_model.lifecycle.judging.sums import Shape
from hinet_model.lifecycle.policy import Policy
from hinet_model.lifecycle.promotion import Decision
from hinet_model.lifecycle.registry import RegisteredVersion
from hinet_model.report import page
from hinet_model.report.model_facts import ModelFacts, model_facts
from hinet_model.report.run_facts import run_facts
from hinet_model.report.tables import decision_table, judgements_table
from hinet_model.serving import on_spark as scoring
from hinet_model.serving.scorer import Scorer
from hinet_model.settings import RunSettings

logger = logging.getLogger("evaluate")

EXAMPLES = """\
  python jobs/evaluate.py --config conf/train/movielens.yml
  python jobs/evaluate.py --config conf/train/movielens.yml --slices gender,new_user
  python jobs/evaluate.py --config conf/train/movielens.yml --model-version 3 --json local/evaluation.json
  python jobs/evaluate.py --config conf/train/movielens.yml --report local/evaluation.html
  spark-submit --properties-file conf/spark/local.conf jobs/evaluate.py --config conf/train/movielens.yml"""

ROW = "row_id"
NEW_USER = "new_user"
"""A slice that is made here: whether the user has no row in the training split."""


def arguments() -> argparse.ArgumentParser:
    """What the job accepts."""
    parser = job_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--config", required=True, metavar="FILE", help="settings of the training run (YAML)")
    parser.add_argument(
        "--model-version", default=registry.CHALLENGER, metavar="V",
        help="version or alias to judge (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--slices", default="", metavar="COLUMN,...",
        help=f"judge the values of these columns of the examples too; '{NEW_USER}': users without a training row",
    )  # fmt: skip
    parser.add_argument(
        "--weight", type=stored_name, metavar="COLUMN",
        help="weigh rows by this column of the examples; rows of weight 0 are left out",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole evaluation to this file")
    parser.add_argument(
        "--report", type=Path, metavar="FILE",
        help="where the page of the evaluation goes; default: reports/<model>-<version>.html beside the checkpoints",
    )  # fmt: skip
    return parser


def main() -> None:
    """Score the test rows with both versions and record what came of it."""
    given = arguments().parse_args()
    settings = load_settings(RunSettings, given.config, given.overrides)
    client = registry.connect(settings.mlflow.tracking_uri)
    name = settings.mlflow.registered_model
    versions = {CHALLENGER: registry.resolve(client, name, given.model_version)}
    champion = registry.find(client, name, registry.CHAMPION)
    if champion is not None and champion.version != versions[CHALLENGER].version:
        versions[CHAMPION] = champion
    slices = tuple(stored_name(part.strip()) for part in given.slices.split(",") if part.strip())
    with (
        job_session("evaluate", places=[training_table(versions[CHALLENGER])[0]]) as spark,
        stage("judging"),
    ):
        examples, described = examples_of(spark, versions[CHALLENGER])
        described |= {} if given.weight is None else {WEIGHED_BY: given.weight}
        asked = contest.Roles(ROW, weight=given.weight, slices=slices)
        result, inside, data = judged(spark, client, versions, examples, described, asked)
    tags = {role: version.tags for role, version in versions.items()}
    decision = decided(result, Policy(), tags[CHALLENGER], tags.get(CHAMPION))
    evaluation.record(client, versions[CHALLENGER], result, "passed" if decision.promote else "failed")
    if given.json is not None:
        given.json.write_text(result.to_json(), encoding="utf-8")
    summarise(result, versions[CHALLENGER], decision)
    if CHAMPION in tags and (careful := caution(tags[CHALLENGER], tags[CHAMPION])):
        say(careful)
    html = page.render(
        page.Findings(
            evaluation=result,
            decision=decision,
            policy="the default policy (conf/promotion/default.yml)",
            margin=Policy().margin,
            run=run_facts(
                client, versions[CHALLENGER], [(cell.scenario, cell.task) for cell in result.cells]
            ),
            model=inside,
            data=data,
        )
    )
    report = given.report or report_place(settings.checkpoint.folder, versions[CHALLENGER])
    write_report(report, html)
    evaluation.record_page(client, versions[CHALLENGER], html)
    say(f"report    {report}")


def training_table(version: RegisteredVersion) -> tuple[str, int]:
    """The table that a version was trained on, and which version of it."""
    table, training_version = version.tags.get("delta_table"), version.tags.get("delta_version")
    if not table or not training_version:
        raise UserError(f"{version.uri}: names no training data; its tags lack delta_table, delta_version")
    return table, int(training_version)


def examples_of(spark: SparkSession, version: RegisteredVersion) -> tuple[DataFrame, dict[str, str]]:
    """The examples that a version was trained on, and how to find the test rows again."""
    return frozen_examples(spark, *training_table(version), version.tags.get("table_id"))


def judged(
    spark: SparkSession, client: MlflowClient, versions: Mapping[str, RegisteredVersion], examples: DataFrame,
    described: dict[str, str], asked: contest.Roles,
) -> tuple[Evaluation, ModelFacts, page.DataFacts]:  # fmt: skip
    """All versions on the test rows, scored by the models that MLflow would serve; then a look into the challenger."""
    shape = Shape(contestants=len(versions), lists_at=10)
    with ExitStack() as stack:
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hinet-download-")))
        scorers, shipments = {}, {}
        for role, version in versions.items():
            mlflow_model = registry.fetch(client, version, cache)
            publishing.check_pyfunc(mlflow_model)
            folder = registry.model_folder(mlflow_model)
            scorers[role] = Scorer.load(folder)
            check_columns(version, scorers[role], examples, labels=role == CHALLENGER)
            shipments[role] = scoring.ship(spark, folder, f"{version.name}-{version.version}")
        if scorers[CHALLENGER].calibration is not None:
            shipments[UNCALIBRATED] = replace(shipments[CHALLENGER], calibrated=False)
        pair = (CHALLENGER, CHAMPION) if CHAMPION in shipments else None
        contract = scorers[CHALLENGER].state.contract
        rows = examples.where(F.col("split") == "test")
        if NEW_USER in asked.slices and NEW_USER not in rows.columns and contract.stored_user is not None:
            rows = with_new_user(rows, examples, contract.stored_user, NEW_USER)
        # Without users each list stands for itself, without lists each row.
        unit = contract.stored_user or contract.stored_list or ROW
        roles = replace(asked, user=unit, listed=contract.stored_list)
        logger.info("scoring the test rows with %s", ", ".join(one.uri for one in versions.values()))
        try:
            judgements = contest.compare(rows, shipments, roles, training_rows(examples), shape, pair)
        except PythonException as error:
            message = scoring.user_message(error)
            if message is None:
                raise
            raise UserError(message) from None
    champion = versions.get(CHAMPION)
    scenario_rows = {one.scenario: one.rows for one in judgements if one.kind == "cell"}
    inside = model_facts(scorers[CHALLENGER], rows, scenario_rows)
    result = Evaluation(
        model=versions[CHALLENGER].name,
        challenger=versions[CHALLENGER].version,
        champion=champion.version if champion is not None else None,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=described,
        seen={
            role: seen(spark, client, one, rows, described, (scorers[role], scorers[CHALLENGER]))
            for role, one in versions.items()
        },
        methods=contest.methods(shape),
        judgements=judgements,
    )
    return result, inside, data_facts(spark, described, contract.source.main_table)


def check_columns(version: RegisteredVersion, scorer: Scorer, examples: DataFrame, *, labels: bool) -> None:
    """Refuse rows that lack a raw column of the model or, where asked, a label of one of its tasks."""
    wanted = set(contest.label_columns(scorer.task_names)) if labels else set()
    lacking = sorted({*scorer.missing_columns(examples.columns), *(wanted - set(examples.columns))})
    if lacking:
        raise UserError(
            f"{version.uri}: cannot be judged on these rows, which lack {', '.join(lacking)}; "
            "it was trained by another contract"
        )


def seen(
    spark: SparkSession, client: MlflowClient, version: RegisteredVersion, rows: DataFrame,
    described: Mapping[str, str], scorers: tuple[Scorer, Scorer],
) -> dict[str, Any]:  # fmt: skip
    """How many of the test rows a version, or one that its weights began with, was trained on, and how that is known.

    Args:
        spark, client: To look up what they were trained on.
        version: The version.
        rows: The test rows.
        described: Where they are from.
        scorers: The version's, and that of the version whose contract made the rows.
    """
    own, contract = scorers[0].state, scorers[1].state.contract
    same_splits = contract.split.method == "random" and own.contract.split == contract.split
    how, trained = "", []
    try:
        first = first_second(rows, contract) if BEGAN_WITH in version.tags else None
        for one in (version, *ancestors(client, version)):
            trained_on = (one.tags.get("table_id"), one.tags.get("delta_version"))
            if trained_on == (described["training_table_id"], described["training_version"]):
                found = "trained on the other splits of this very version of the data"
            elif one is version and same_splits and own.fingerprint == contract.fingerprint:
                found = "same contract: a row keeps its split, by a hash of its key"
            elif one is not version and first is not None and one.created_at < first:
                found = "registered before the first test row came about"
            else:
                trained.append(examples_of(spark, one)[0])
                found = "test rows looked up by key among its training and validation rows"
            how += found if one is version else f"; {one.uri}, which it began with: {found}"
        return {"rows": learned_from(rows, trained, contract), "how": how}
    except Exception as error:
        return {"rows": None, "how": f"its training rows cannot be read: {str(error).splitlines()[0]}"}


def data_facts(spark: SparkSession, described: Mapping[str, str], main_table: str) -> page.DataFacts:
    """Rows in, kept and rejected, and drift, of the build that was judged; a note where its tables are gone."""
    place = stores.join(places.parent(described["table"]), "drift")
    try:
        found = accounts_of(
            spark, described["training_table"], int(described["training_version"]), main_table
        )
    except SnapshotError as error:
        return page.DataFacts(note=str(error))
    return page.DataFacts(found, drift=drift.to_rows(drift.stored(spark, place, int(described["version"]))))


def report_place(checkpoints: stores.Place, version: RegisteredVersion) -> Path:
    """Where the page goes: ``reports/`` beside the folder of checkpoints, or here where that is in an object store."""
    beside = places.parent(checkpoints) if places.is_local(checkpoints) else "local"
    return Path(beside) / "reports" / page.file_name(version.name, version.version)


def write_report(file: Path, html: str) -> None:
    """Write the page, its folder too."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--report {file}: cannot be written: {error}") from error


def summarise(result: Evaluation, challenger: RegisteredVersion, decision: Decision) -> None:
    """Print the table, and what promotion would say to it."""
    against = f" against champion {result.champion}" if result.champion else ""
    weighed = f", weighed by '{result.rows[WEIGHED_BY]}'" if WEIGHED_BY in result.rows else ""
    rows = f"test rows of {result.rows['table']} version {result.rows['version']}"
    say(f"{challenger.uri}{against}, {rows}{weighed}")
    say(judgements_table(result))
    say(decision_table(decision))
    say(f"gate at its default policy: {'passed' if decision.promote else 'failed'}")
    for reason in decision.reasons:
        say(f"  {reason}")


if __name__ == "__main__":
    run_job(main)
