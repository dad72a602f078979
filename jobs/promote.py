"""Make an evaluated challenger the champion, if the policy allows it; or return to the previous champion."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from mlflow import MlflowClient

from foundation.job import job_parser, run_job, say
from foundation.settings import UserError, load_settings
from hinet_model.lifecycle import evaluation, registry
from hinet_model.lifecycle.admission import inadmissible, refused_for
from hinet_model.lifecycle.audit import Audit, ClaimedError, Record, as_json, beside
from hinet_model.lifecycle.evaluation import Evaluation
from hinet_model.lifecycle.policy import Policy
from hinet_model.lifecycle.promotion import Decision, decide
from hinet_model.lifecycle.registry import RegisteredVersion
from hinet_model.report.tables import decision_table, judgements_table
from hinet_model.settings import RunSettings

EXIT_REFUSED = 3
APPROVED = "approved"

EXAMPLES = """\
  python jobs/promote.py --config conf/train/movielens.yml
  python jobs/promote.py --config conf/train/movielens.yml --dry-run --json local/decision.json
  python jobs/promote.py --config conf/train/movielens.yml --rule margin=0.005 --rule floors.auc=0.6
  python jobs/promote.py --config conf/train/movielens.yml --policy conf/promotion/approved.yml --approve
  python jobs/promote.py --config conf/train/movielens.yml --rollback

exit codes: 0 promoted, approved or rolled back (--dry-run: would be promoted), 2 cannot be done, 3 refused"""


def arguments() -> argparse.ArgumentParser:
    """What the job accepts."""
    parser = job_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--config", required=True, metavar="FILE", help="settings of the training run (YAML)")
    parser.add_argument(
        "--model-version", default=registry.CHALLENGER, metavar="V",
        help="version or alias to promote (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--policy",
        metavar="FILE",
        help="rules of the gate (YAML); default: those of conf/promotion/default.yml",
    )
    parser.add_argument(
        "--rule", action="append", default=[], metavar="KEY=VALUE", help="override a rule; may be repeated"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the decision to this file")
    parser.add_argument(
        "--audit", metavar="TABLE", help="audit table; default: promotions beside the training table"
    )
    parser.add_argument(
        "--by", metavar="NAME", help="who decides, for the audit; default: the user of this process"
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--dry-run", action="store_true", help="decide, change nothing, record nothing")
    action.add_argument("--approve", action="store_true", help="write the approval that the policy asks for")
    action.add_argument("--rollback", action="store_true", help="return to the previous champion")
    return parser


def main() -> int:
    """Ask the gate and move the aliases."""
    given = arguments().parse_args()
    settings = load_settings(RunSettings, given.config, given.overrides)
    policy = load_settings(Policy, given.policy, given.rule)
    client = registry.connect(settings.mlflow.tracking_uri)
    name = settings.mlflow.registered_model
    alias = registry.CHAMPION if given.rollback else given.model_version
    version = registry.resolve(client, name, alias)
    audit = Audit(given.audit or beside(version.tags.get("delta_table") or settings.data.location), given.by)
    if given.rollback:
        return rolled_back(client, version, audit)
    if given.approve:
        return approved(client, version, policy, audit)
    return promoted(client, version, policy, audit, given)


def rolled_back(client: MlflowClient, champion: RegisteredVersion, audit: Audit) -> int:
    """Return to the previous champion."""
    previous = registry.find(client, champion.name, registry.PREVIOUS_CHAMPION)
    record = Record(
        model=champion.name,
        version=champion.version,
        action="rollback",
        outcome="",
        champion_before=champion.version,
        champion_after=previous.version if previous is not None else None,
    )
    try:
        with audit.claim(record):
            restored, withdrawn = registry.rollback(client, champion.name)
    except ClaimedError as error:
        say(str(error))
        audit.write(
            replace(record, outcome="refused", champion_after=champion.version, reasons=(str(error),))
        )
        return EXIT_REFUSED
    say(f"champion of {champion.name} is version {restored} again; version {withdrawn} is withdrawn")
    return 0


def approved(client: MlflowClient, version: RegisteredVersion, policy: Policy, audit: Audit) -> int:
    """Write the approval that the policy asks for."""
    if policy.approval is None:
        raise UserError(
            "approval: the policy asks for none; expected the name of a tag, as in conf/promotion/approved.yml"
        )
    judged = evaluation.latest(client, version)
    client.set_model_version_tag(version.name, version.version, policy.approval, APPROVED)
    record = Record(version.name, version.version, "approve", "approved", reasons=(f"tag {policy.approval}",))
    audit.write(replace(record, policy=policy.model_dump_json(), evaluation=basis(judged)))
    say(f"{version.uri} is approved: tag '{policy.approval}' is '{APPROVED}'")
    return 0


def promoted(
    client: MlflowClient,
    challenger: RegisteredVersion,
    policy: Policy,
    audit: Audit,
    given: argparse.Namespace,
) -> int:
    """Decide by the recorded evaluation and act on it; the exit code."""
    judged = evaluation.latest(client, challenger)
    decision = whole_decision(client, challenger, judged, policy)
    say(judgements_table(judged))
    say(decision_table(decision))
    if given.json is not None:
        content = {"model": challenger.name, "version": challenger.version, "champion": judged.champion,
                   "decision": decision.to_json(), "policy": policy.model_dump(mode="json")}  # fmt: skip
        given.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    record = Record(
        model=challenger.name,
        version=challenger.version,
        action="promote",
        outcome="refused",
        champion_before=judged.champion,
        champion_after=challenger.version,
        reasons=decision.reasons,
        policy=policy.model_dump_json(),
        evaluation=basis(judged),
    )
    if not decision.promote:
        return refused(challenger, decision.reasons, None if given.dry_run else audit, record)
    if given.dry_run:
        say(f"{challenger.uri} would be promoted ({decision.reasons[0]})")
        return 0
    try:
        with audit.claim(record):
            # The champion is read again under the claim: nobody else moves it now.
            replaced = registry.promote(client, challenger, judged.champion)
    except (registry.ChampionMovedError, ClaimedError) as error:
        return refused(challenger, (str(error),), audit if isinstance(error, ClaimedError) else None, record)
    say(f"champion is {challenger.uri} ({decision.reasons[0]})")
    if replaced is not None:
        say(f"version {replaced} is previous_champion; to return to it:")
        say(f"  python jobs/promote.py --config {given.config} --rollback")
    return 0


def whole_decision(
    client: MlflowClient, challenger: RegisteredVersion, judged: Evaluation, policy: Policy
) -> Decision:
    """What the gate says of the cells, of the evaluation itself, and of the approval."""
    champion = None
    if judged.champion is not None:
        champion = registry.resolve(client, challenger.name, judged.champion)
    faults = inadmissible(judged, policy, challenger.tags, champion.tags if champion is not None else None)
    decision = decide(judged, policy)
    if policy.approval is not None and challenger.tags.get(policy.approval, "").lower() != APPROVED:
        faults.append(
            f"waits for approval: tag '{policy.approval}' is {challenger.tags.get(policy.approval, 'not set')!r}; "
            "a person sets it with --approve"
        )
    return refused_for(decision, faults)


def refused(
    challenger: RegisteredVersion, reasons: tuple[str, ...], audit: Audit | None, record: Record
) -> int:
    """Say why, and record it."""
    say(f"{challenger.uri} is not promoted:")
    for reason in reasons:
        say(f"  {reason}")
    if audit is not None:
        audit.write(replace(record, champion_after=record.champion_before, reasons=reasons))
    return EXIT_REFUSED


def basis(judged: Evaluation) -> str:
    """What was decided by, for the audit."""
    return as_json(
        {"made_at": judged.made_at, "champion": judged.champion, "rows": judged.rows, "seen": judged.seen}
    )


if __name__ == "__main__":
    run_job(main)
