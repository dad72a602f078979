"""Admission: may an evaluation be decided by at all? Pure, as the gate is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from feature_eng.contract import stored_name
from feature_eng.snapshot import FIRST_MEANING
from hinet_model.lifecycle.evaluation import CHALLENGER, CHAMPION, WEIGHED_BY, Evaluation
from hinet_model.lifecycle.policy import Policy
from hinet_model.lifecycle.promotion import Decision, decide


def inadmissible(
    evaluation: Evaluation,
    policy: Policy,
    challenger: Mapping[str, str],
    champion: Mapping[str, str] | None,
    now: datetime | None = None,
) -> list[str]:
    """Why an evaluation may not be decided by: stale, of other rows or another contract, or of rows trained on.

    Args:
        evaluation: As recorded.
        policy: The rules.
        challenger: Tags of the version that is to be promoted: its lineage.
        champion: Tags of the champion that it was compared with; ``None`` without one.
        now: The time; the clock's if not given.
    """
    faults = []
    if policy.max_age_days is not None:
        age = (now or datetime.now(UTC)) - datetime.fromisoformat(evaluation.made_at)
        if age > timedelta(days=policy.max_age_days):
            faults.append(
                f"the evaluation is stale: made {age.days} days ago, at {evaluation.made_at}; allowed "
                f"{policy.max_age_days:g} days: run jobs/evaluate.py again"
            )
    rows = evaluation.rows
    for tag, key, what in (
        ("table_id", "training_table_id", "rows of another table"),
        ("delta_version", "training_version", "rows of another version of the data"),
        ("contract_fingerprint", "contract_fingerprint", "rows of another contract"),
    ):
        if challenger.get(tag) != rows.get(key):
            faults.append(
                f"the evaluation is on {what}: {tag} is {rows.get(key)}, the challenger was trained with "
                f"{challenger.get(tag)}: run jobs/evaluate.py again"
            )
    weighed_by = rows.get(WEIGHED_BY)
    if weighed_by != (None if policy.weight is None else stored_name(policy.weight)):
        again = "" if policy.weight is None else f" --weight '{policy.weight}'"
        faults.append(
            f"the evaluation weighs rows by {weighed_by or 'nothing'}, the policy by {policy.weight or 'nothing'}: "
            f"run jobs/evaluate.py{again} again"
        )
    if champion is not None and champion.get("contract") != challenger.get("contract"):
        faults.append(
            f"the champion was trained by contract '{champion.get('contract')}', the challenger by "
            f"'{challenger.get('contract')}': they are not judged on the same thing"
        )
    for model in (CHALLENGER, CHAMPION) if evaluation.champion is not None else (CHALLENGER,):
        seen = evaluation.seen.get(model, {"rows": None, "how": "the evaluation does not say"})
        if seen["rows"] is None and policy.unknown_training == "refuse":
            faults.append(f"whether the {model} was trained on test rows is not known: {seen['how']}")
        elif seen["rows"]:
            faults.append(f"the {model} was trained on {seen['rows']:,} of the test rows: {seen['how']}")
    return faults


def caution(challenger: Mapping[str, str], champion: Mapping[str, str]) -> str | None:
    """What to bear in mind beside a decision, from the lineage of the two that were compared: their tags."""
    meanings = [tags.get("meaning", FIRST_MEANING) for tags in (champion, challenger)]
    if meanings[0] == meanings[1]:
        return None
    return (
        "careful: the champion learned from rows of another release, which meant something else (meaning "
        f"{meanings[0]}) than these (meaning {meanings[1]}): on its own it may be better than shown here"
    )


def decided(
    evaluation: Evaluation,
    policy: Policy,
    challenger: Mapping[str, str],
    champion: Mapping[str, str] | None,
) -> Decision:
    """What the policy says of the cells, and of the evaluation itself; arguments as `inadmissible` has them."""
    return refused_for(decide(evaluation, policy), inadmissible(evaluation, policy, challenger, champion))


def refused_for(decision: Decision, faults: Sequence[str]) -> Decision:
    """A decision on the cells, refused where there are faults beside them; they come before what the cells say."""
    if not faults:
        return decision
    against = decision.reasons if not decision.promote else ()
    return replace(decision, promote=False, reasons=(*faults, *against))
