"""A simulated A/B test of two registered models on made data, where the truth of every click and order is known."""

from __future__ import annotations

import argparse
import json
import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from pyspark.errors import PythonException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng import delta
from feature_eng.contract import Contract, SixScenarios
from feature_eng.origin import origin_of
from feature_eng.sources.six_scenarios.truth import truth
from foundation.job import job_parser, run_job, say, say_table
from foundation.session import job_session
from foundation.settings import UserError, load_settings
from hinet_model.lifecycle import registry
from hinet_model.lifecycle.ancestry import ancestors
from hinet_model.lifecycle.registry import RegisteredVersion
from hinet_model.serving import on_spark as scoring
from hinet_model.serving.scorer import Scorer
from hinet_model.settings import RunSettings
from hinet_model.studies.online import Array, Choices, Lists, Uplift, fused, run

logger = logging.getLogger("simulate_ab")

EXAMPLES = """\
  python jobs/simulate_ab.py --config conf/train/six_scenarios.yml
  python jobs/simulate_ab.py --config conf/train/six_scenarios.yml --control 1 --treatment 2 --scenarios s1,s2
  python jobs/simulate_ab.py --config conf/train/six_scenarios.yml --score click=0.3,order=1,price=0.5 --shown 3
  spark-submit --properties-file conf/spark/local.conf jobs/simulate_ab.py --config conf/train/six_scenarios.yml

Nothing here was seen by a person: clicks and orders are drawn from the process that made the data
(docs/six_scenarios.md). Both models rank the same candidates, the lists of the test rows, all as if at position 1."""

REQUEST = "request_id"
TRUTHS = ("click_utility", "order_utility")


def arguments() -> argparse.ArgumentParser:
    """What the job accepts."""
    parser = job_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--config", required=True, metavar="FILE", help="settings of the training run (YAML)")
    parser.add_argument(
        "--control", default=registry.CHAMPION, metavar="V", help="version or alias (%(default)s)"
    )
    parser.add_argument(
        "--treatment", default=registry.CHALLENGER, metavar="V", help="version or alias (%(default)s)"
    )
    parser.add_argument(
        "--scenarios", default="", metavar="NAME,...", help="where the test runs; default: the first two"
    )
    parser.add_argument(
        "--score", type=powers_of, default=powers_of("click=0.3,order=1,price=0.5"), metavar="NAME=POWER,...",
        help="the score is the product of these powers of tasks' probabilities and of the price "
        "(click=0.3,order=1,price=0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--shown", type=int, default=5, metavar="K", help="candidates of a list that are shown (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the lot and of the draws (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to this file")
    return parser


def powers_of(text: str) -> dict[str, float]:
    """``click=0.3,order=1`` as a mapping."""
    found = {}
    for part in text.split(","):
        name, _, power = part.strip().partition("=")
        try:
            found[name] = float(power)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{part}'; expected NAME=POWER") from None
    return found


def main() -> None:
    """Rank the lists of the test rows by both models, and let made users choose."""
    given = arguments().parse_args()
    settings = load_settings(RunSettings, given.config, given.overrides)
    client = registry.connect(settings.mlflow.tracking_uri)
    name = settings.mlflow.registered_model
    versions = [registry.resolve(client, name, one) for one in (given.control, given.treatment)]
    table, number = same_data(client, versions)
    with job_session("simulate_ab", places=[table]) as spark:
        origin = origin_of(table, delta.properties(table, number))
        examples = delta.read_earlier(spark, origin.examples, origin.version)
        found = simulated(spark, client, versions, examples, given)
    say(f"SIMULATED A/B test: control {versions[0].uri}, treatment {versions[1].uri}")
    say(
        f"score: {' x '.join(f'{part}^{power:g}' for part, power in given.score.items())}; {given.shown} shown"
    )
    for scenario, (lists, uplifts) in found.items():
        say(
            f"\n{scenario}: {len(lists.user):,} lists of {len(np.unique(lists.user)):,} users, half of them in each arm"
        )
        say_table(HEADER, [line_of(one) for one in uplifts])
    if given.json is not None:
        content = {
            "simulated": True,
            "control": versions[0].uri,
            "treatment": versions[1].uri,
            "score": given.score,
            "shown": given.shown,
            "seed": given.seed,
            "scenarios": {
                scenario: {"lists": len(lists.user), "metrics": [finite(asdict(one)) for one in uplifts]}
                for scenario, (lists, uplifts) in found.items()
            },
        }
        given.json.write_text(json.dumps(content, indent=1), encoding="utf-8")


HEADER = ["metric", "control", "treatment", "uplift", "95 % interval", "by the truth", "users per arm needed"]


def line_of(one: Uplift) -> list[str]:
    """One metric as a line of the table."""
    needed = f"{one.users_per_arm:,.0f}" if math.isfinite(one.users_per_arm) else "-"
    return [
        one.metric, f"{one.control:.4f}", f"{one.treatment:.4f}", f"{one.uplift:+.2%}",
        f"{one.low:+.2%} to {one.high:+.2%}", f"{one.expected:+.2%}", needed,
    ]  # fmt: skip


def finite(content: dict[str, Any]) -> dict[str, Any]:
    """``null`` for what JSON has no number for."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in content.items()
    }


def same_data(client: MlflowClient, versions: Sequence[RegisteredVersion]) -> tuple[str, int]:
    """The version of the training table that both models are of: neither may have seen the other's test rows."""
    data = [data_of(one) for one in versions]
    table, number, _ = data[0]
    if table is None or number is None:
        raise UserError(
            f"{versions[0].uri}: names no training data; its tags lack delta_table, delta_version"
        )
    if data[0] != data[1]:
        raise UserError(
            f"{versions[0].uri} and {versions[1].uri} were trained on different data ({table} version {number}, "
            f"{data[1][0]} version {data[1][1]}); expected two models of one version, whose test rows neither has seen"
        )
    for one in versions:
        for earlier in ancestors(client, one):
            if data_of(earlier) != data[0]:
                raise UserError(
                    f"{one.uri}: began with {earlier.uri}, which was trained on other data and may have seen test "
                    "rows; expected models that began anew, or with one of the same data"
                )
    return table, int(number)


def data_of(version: RegisteredVersion) -> tuple[str | None, str | None, str | None]:
    """Table, its version and its id, of what a version was trained on."""
    table, number, identity = (version.tags.get(tag) for tag in ("delta_table", "delta_version", "table_id"))
    return table, number, identity


def simulated(
    spark: SparkSession, client: MlflowClient, versions: Sequence[RegisteredVersion], examples: DataFrame,
    given: argparse.Namespace,
) -> dict[str, tuple[Lists, list[Uplift]]]:  # fmt: skip
    """What the test finds, scenario by scenario."""
    with tempfile.TemporaryDirectory(prefix="hinet-download-") as cache:
        folders = [registry.model_folder(registry.fetch(client, one, Path(cache))) for one in versions]
        scorer = Scorer.load(folders[0])
        contract = scorer.state.contract
        made = contract.source.six_scenarios or SixScenarios()
        check(contract, made, given)
        scenarios = [part.strip() for part in given.scenarios.split(",") if part.strip()]
        scenarios = scenarios or list(contract.scenario_names[:2])
        check_names(scenarios, contract.scenario_names, "--scenarios")
        rows = whole_lists(examples, scenarios, made.list_length)
        shipments = [
            scoring.ship(spark, folder, f"ab-{one.version}")
            for folder, one in zip(folders, versions, strict=True)
        ]
        window = float(contract.tasks["order"].within or 0)
        known = truth(spark, made, window).select("impression_id", *TRUTHS)
        keep = ["impression_id", REQUEST, "user_id", "price", "scenario"]
        at_first = rows.withColumn("position", F.lit(1).cast(rows.schema["position"].dataType))
        logger.info("ranking the lists of %s by both models", ", ".join(scenarios))
        try:
            scored = (
                scoring.score_side_by_side(at_first, shipments, keep).join(known, "impression_id").toPandas()
            )
        except PythonException as error:
            message = scoring.user_message(error)
            if message is None:
                raise
            raise UserError(message) from None
    choices = Choices(made.noise, made.position_weight, made.order_in_window(window), made.basket_spread)
    found = {}
    for scenario in scenarios:
        lists, scores = lists_of(
            scored[scored["scenario"] == scenario], contract, made.list_length, given.score
        )
        if not len(lists.user):
            raise UserError(
                f"{scenario}: no list lies whole in the test rows; split by time or dates, not by rows"
            )
        found[scenario] = (lists, run(lists, scores[0], scores[1], given.shown, choices, given.seed))
    return found


def check(contract: Contract, made: SixScenarios, given: argparse.Namespace) -> None:
    """Refuse what has no known truth, and what cannot be ranked."""
    if contract.source.reader != "six_scenarios" or not {"click", "order"} <= set(contract.task_names):
        raise UserError(
            f"contract '{contract.name}': its data have no known truth; a test can be simulated on those of the reader "
            "six_scenarios alone, with the tasks click and order"
        )
    check_names(given.score, (*contract.task_names, "price"), "--score")
    if not 1 <= given.shown <= made.list_length:
        raise UserError(f"--shown {given.shown}: expected 1 to {made.list_length}, the length of a list")


def check_names(names: Sequence[str], known: Sequence[str], where: str) -> None:
    """Refuse names that are not known."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"{where}: no {', '.join(unknown)}; expected some of {', '.join(known)}")


def whole_lists(examples: DataFrame, scenarios: Sequence[str], length: int) -> DataFrame:
    """Test rows of lists that lie whole in the test: of one that does not, some candidates were trained on."""
    # The process numbers impressions list by list.
    listed = examples.withColumn(REQUEST, F.floor(F.col("impression_id") / length))
    test = listed.where((F.col("split") == "test") & F.col("scenario").isin(list(scenarios)))
    whole = test.groupBy(REQUEST).count().where(F.col("count") == length).select(REQUEST)
    return test.join(whole, REQUEST, "left_semi")


def lists_of(
    rows: pd.DataFrame, contract: Contract, length: int, powers: dict[str, float]
) -> tuple[Lists, list[Array]]:
    """The lists of a scenario, and each model's scores of their candidates."""
    ordered = rows.sort_values([REQUEST, "impression_id"])

    def square(column: str) -> Array:
        return ordered[column].to_numpy(np.float64).reshape(-1, length)

    price = square("price")
    scores = [
        fused(
            {task: square(scoring.side_by_side_column(place, task)) for task in contract.task_names},
            price,
            powers,
        )
        for place in range(2)
    ]
    users = ordered["user_id"].to_numpy(np.int64)[::length]
    return Lists(users, square("click_utility"), square("order_utility"), price), scores


if __name__ == "__main__":
    run_job(main)
