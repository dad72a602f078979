"""Make an evaluated challenger the champion, if no cell gets worse; or return to the previous champion."""

from __future__ import annotations

import argparse

from mlflow import MlflowClient

from foundation.job import job_parser, run_job, say
from foundation.settings import load_settings
from hinet_model.lifecycle import evaluation, registry
from hinet_model.lifecycle.promotion import GateRules, decide
from hinet_model.report.tables import cells_table
from hinet_model.settings import RunSettings

EXIT_REFUSED = 3

EXAMPLES = """\
  python jobs/promote.py --config conf/train/movielens.yml
  python jobs/promote.py --config conf/train/movielens.yml --tolerance 0.001 --min-auc 0.6
  python jobs/promote.py --config conf/train/movielens.yml --rollback

exit codes: 0 promoted or rolled back, 2 cannot be done, 3 refused by the gate"""


def arguments() -> argparse.ArgumentParser:
    """What the job accepts."""
    parser = job_parser(__doc__ or "", EXAMPLES)
    rules = GateRules()
    parser.add_argument("--config", required=True, metavar="FILE", help="settings of the training run (YAML)")
    parser.add_argument(
        "--model-version", default=registry.CHALLENGER, metavar="V",
        help="version or alias to promote (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=float, default=rules.tolerance, metavar="AUC",
        help="how much AUC a cell may lose against the champion (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--min-auc", type=float, default=rules.min_auc, metavar="AUC",
        help="least AUC of every cell (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--min-class-rows", type=int, default=rules.min_class_rows, metavar="N",
        help="cells with fewer positives or negatives are not judged (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--rollback", action="store_true", help="return to the previous champion")
    return parser


def main() -> int:
    """Ask the gate and move the aliases."""
    given = arguments().parse_args()
    settings = load_settings(RunSettings, given.config, given.overrides)
    client = registry.connect(settings.mlflow.tracking_uri)
    name = settings.mlflow.registered_model
    if given.rollback:
        restored, withdrawn = registry.rollback(client, name)
        say(f"champion of {name} is version {restored} again; version {withdrawn} is withdrawn")
        return 0
    rules = GateRules(min_auc=given.min_auc, tolerance=given.tolerance, min_class_rows=given.min_class_rows)
    return promoted(client, registry.resolve(client, name, given.model_version), rules, given.config)


def promoted(
    client: MlflowClient, challenger: registry.RegisteredVersion, rules: GateRules, config: str
) -> int:
    """Decide by the recorded evaluation and act on it; the exit code."""
    judged = evaluation.latest(client, challenger)
    decision = decide(judged.challenger_cells, judged.champion_cells, rules)
    say(cells_table(judged.challenger_cells, judged.champion_cells))
    if decision.unjudged:
        say(f"too small to be judged: {', '.join(decision.unjudged)}")
    if not decision.promote:
        say(f"{challenger.uri} is not promoted:")
        for reason in decision.reasons:
            say(f"  {reason}")
        return EXIT_REFUSED
    try:
        replaced = registry.promote(client, challenger, judged.champion)
    except registry.ChampionMovedError as error:
        say(f"{challenger.uri} is not promoted:\n  {error}")
        return EXIT_REFUSED
    say(f"champion is {challenger.uri} ({decision.reasons[0]})")
    if replaced is not None:
        say(f"version {replaced} is previous_champion; to return to it:")
        say(f"  python jobs/promote.py --config {config} --rollback")
    return 0


if __name__ == "__main__":
    run_job(main)
