"""The gate refuses whatever may be worse in any cell, and whatever it cannot judge."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from evaluations import LINEAGE, cell, evaluation

from foundation.settings import ConfigError, UserError, load_settings, validate
from hinet_model.lifecycle.admission import inadmissible
from hinet_model.lifecycle.evaluation import CHALLENGER, Evaluation
from hinet_model.lifecycle.policy import Policy
from hinet_model.lifecycle.promotion import Decision, decide

RULES = Policy(floors={"auc": 0.6})
NOW = datetime(2024, 5, 2, tzinfo=UTC)


def rules(**changed: Any) -> Policy:
    return validate(Policy, {"floors": {"auc": 0.6}, **changed}, "policy")


def against_champion(*cells: Any, policy: Policy = RULES) -> Decision:
    return decide(evaluation(cells, champion="1"), policy)


def test_a_first_version_needs_the_floors_alone() -> None:
    decision = decide(evaluation([cell("a/click", 0.6), cell("b/click", 0.7)]), RULES)
    assert decision.promote
    assert "first version" in decision.reasons[0]


def test_a_first_version_below_the_floor_is_refused_by_cell() -> None:
    decision = decide(evaluation([cell("a/click", 0.59), cell("b/click", 0.7)]), RULES)
    assert not decision.promote
    assert decision.reasons == ("a/click: AUC 0.5900 is below the floor of 0.6",)


def test_a_cell_may_have_a_floor_of_its_own() -> None:
    cells = [cell("a/click", 0.55), cell("b/click", 0.7)]
    assert decide(evaluation(cells), rules(cell_floors={"a/click": {"auc": 0.5}})).promote
    strict = decide(evaluation(cells), rules(cell_floors={"b/click": {"gauc": 0.8}, "a/click": {}}))
    assert strict.reasons == ("b/click: GAUC is 0.7000; the floor is 0.8",)
    with pytest.raises(UserError, match="no cell 'a/clik'; did you mean 'a/click'"):
        decide(evaluation(cells), rules(cell_floors={"a/clik": {}}))


def test_one_worse_cell_refuses_however_much_the_others_gain() -> None:
    decision = against_champion(
        cell("a/click", 0.9, 0.7), cell("b/click", 0.9, 0.7), cell("c/click", 0.68, 0.7)
    )
    assert not decision.promote
    (reason,) = decision.reasons
    assert reason.startswith("c/click: AUC 0.6800 is 0.0200 below the champion's 0.7000")


def test_the_bound_decides_and_not_the_difference() -> None:
    # The same small loss: shown to be within the margin by many rows, not by few.
    assert against_champion(cell("a/click", 0.695, 0.7, se=0.003)).promote
    decision = against_champion(cell("a/click", 0.695, 0.7, se=0.0035))
    assert decision.reasons == (
        "a/click: AUC 0.6950 is 0.0050 below the champion's 0.7000; the true change may be -0.0108 (95% bound), "
        "allowed -0.01",
    )


def test_a_bound_of_exactly_the_margin_passes() -> None:
    assert against_champion(cell("a/click", 0.69, 0.7, se=0.0)).promote
    assert not against_champion(cell("a/click", 0.6899, 0.7, se=0.0)).promote


def test_where_users_rows_are_alike_the_bootstrap_may_decide() -> None:
    cells = [cell("a/click", 0.695, 0.7, se=0.0011)]
    assert against_champion(*cells).promote
    assert not against_champion(*cells, policy=rules(interval="by_user")).promote


def test_every_fault_is_reported_at_once() -> None:
    decision = against_champion(cell("a/click", 0.5, 0.7), cell("b/click", 0.5, 0.7, pcoc=3.0))
    assert len(decision.reasons) == 5


def test_a_cell_the_challenger_lacks_is_refused() -> None:
    lacking = cell("b/click", 0.9, 0.7)
    served = {model: of for model, of in lacking.measures.items() if model != CHALLENGER}
    decision = against_champion(cell("a/click", 0.9, 0.7), replace(lacking, measures=served, differences={}))
    assert decision.reasons == ("b/click: the champion serves this cell, the challenger does not",)


def test_a_new_cell_is_held_to_the_floor() -> None:
    assert against_champion(cell("a/click", 0.9, 0.7), cell("new/click", 0.9)).promote
    assert not against_champion(cell("a/click", 0.9, 0.7), cell("new/click", 0.55)).promote


def test_an_undefined_auc_is_refused() -> None:
    decision = decide(evaluation([cell("a/click", 0.9), cell("b/click", None)]), RULES)
    assert decision.reasons == ("b/click: AUC is not defined",)


@pytest.mark.parametrize("positives", [12, 9_988])
def test_a_tiny_cell_is_named_and_judged_with_the_next_smallest_of_its_task(positives: int) -> None:
    tiny = cell("tiny/click", 0.1, 0.9, se=0.1, positives=positives)
    others = [
        cell("small/click", 0.8, 0.8, positives=500),
        cell("big/click", 0.8, 0.8),
        cell("big/like", 0.8, 0.8),
    ]
    decision = against_champion(tiny, *others)
    assert decision.unjudged == ("tiny/click",)
    pool = decision.comparisons[-1]
    assert pool.cells == ("tiny/click", "small/click")
    assert not decision.promote, (
        "the pool is far worse: 0.1 against 0.9 weighs 120 thousand pairs of 4.9 million"
    )
    harmless = against_champion(
        replace(tiny, differences=cell("x/y", 0.9, 0.9, se=0.01).differences), *others
    )
    assert harmless.promote
    assert harmless.unjudged == ("tiny/click",)


def test_a_tiny_cell_of_a_first_version_is_named_and_pooled() -> None:
    decision = decide(
        evaluation([cell("tiny/click", 0.1, positives=3, rows=1000), cell("big/click", 0.9)]), RULES
    )
    assert decision.promote
    assert decision.unjudged == ("tiny/click",)


def test_a_tiny_cell_is_refused_where_the_policy_says_so() -> None:
    decision = decide(evaluation([cell("tiny/click", 0.9, positives=3)]), rules(too_small="refuse"))
    assert decision.reasons[0].startswith(
        "tiny/click: too small: 10,000 rows, 3 positives; wanted 100 rows, 25 positives"
    )


def test_cells_without_power_are_judged_together() -> None:
    # Each alone has a power of 0.51; four together of 0.99.
    cells = [cell(f"{name}/click", 0.8, 0.8, se=0.006) for name in "abcd"]
    decision = against_champion(*cells)
    assert decision.promote
    assert set(decision.unjudged) == {"a/click", "b/click", "c/click", "d/click"}
    assert decision.comparisons[-1].power == pytest.approx(0.955, abs=0.001)
    alone = against_champion(cells[0])
    assert alone.reasons[0].startswith(
        "a/click: cannot be judged, even together: too little power: 0.51 of 0.8"
    )


def test_where_users_count_a_pool_is_no_surer_than_its_cells_as_its_users_stand_in_all_of_them() -> None:
    cells = [cell(f"{name}/click", 0.8, 0.8, se=0.002) for name in "abcd"]  # by user: 0.006
    by_user = rules(interval="by_user")
    decision, alone = against_champion(*cells, policy=by_user), against_champion(cells[0], policy=by_user)
    assert decision.comparisons[-1].power == pytest.approx(alone.comparisons[-1].power)
    assert decision.comparisons[-1].bound == pytest.approx(-1.645 * 0.006, abs=1e-5)
    assert not decision.promote
    assert against_champion(*[cell(f"{name}/click", 0.8, 0.8, se=0.006) for name in "abcd"]).promote


def test_a_cell_without_power_that_is_worse_beyond_chance_is_refused_by_name() -> None:
    worse = cell("d/click", 0.77, 0.8, se=0.006)
    cells = [cell(f"{name}/click", 0.82, 0.8, se=0.006) for name in "abc"]
    decision = against_champion(*cells, worse)
    (reason,) = decision.reasons
    assert reason.startswith(
        "d/click: AUC 0.7700 is 0.0300 below the champion's, beyond chance (p 0.0017 after holm over 4"
    )
    # One in twenty by chance is expected among many: the correction lets it pass, without it it would be refused.
    chance = cell("d/click", 0.779, 0.8, se=0.006)
    assert against_champion(*cells, chance).promote
    assert not against_champion(*cells, chance, policy=rules(multiplicity="none")).promote


def test_calibration_outside_its_bounds_is_refused() -> None:
    decision = decide(evaluation([cell("a/click", 0.9, pcoc=2.5)]), rules(calibration={"ece": 0.01}))
    assert decision.reasons == (
        "a/click: PCOC 2.500 is outside 0.5 to 2",
        "a/click: ECE 0.0200 is above 0.01",
    )


def test_a_scenario_without_training_rows_is_refused_or_named() -> None:
    cells = [cell("a/click", 0.9), cell("b/click", 0.9, training_rows=0)]
    decision = decide(evaluation(cells), RULES)
    assert decision.reasons == ("b: the challenger has no training row of this scenario",)
    named = decide(evaluation(cells), rules(untrained="name"))
    assert named.promote
    assert named.untrained == ("b",)


@pytest.mark.parametrize(
    ("change", "gain", "promote"), [(0.01, "point", True), (0.01, "shown", False), (-0.01, "point", False)]
)
def test_an_overall_gain_may_be_wanted(change: float, gain: str, promote: bool) -> None:
    judged = evaluation([cell("a/click", 0.8, 0.8)], champion="1")
    *cells, overall = judged.judgements
    moved = replace(overall.differences["auc"], value=change, se=0.01)
    judged = replace(judged, judgements=(*cells, replace(overall, differences={"auc": moved})))
    assert decide(judged, rules(gain=gain)).promote is promote


def test_nothing_to_judge_is_refused() -> None:
    assert not decide(evaluation([]), RULES).promote
    assert not decide(evaluation([cell("a/click", 0.9, positives=0)]), RULES).promote


def test_an_evaluation_survives_json() -> None:
    judged = evaluation([cell("a/click", 0.8, 0.7), cell("b/click", None)], champion="1")
    assert Evaluation.from_json(judged.to_json()) == judged


def test_an_evaluation_of_another_format_is_refused() -> None:
    with pytest.raises(UserError, match="format 1; this code reads format 2"):
        Evaluation.from_json('{"model": "small"}')


def test_a_fresh_evaluation_of_the_right_rows_is_admissible() -> None:
    assert inadmissible(evaluation([], champion="1"), RULES, LINEAGE, LINEAGE, NOW) == []


@pytest.mark.parametrize(
    ("judged", "challenger", "champion", "message"),
    [
        ({"made_at": "2024-03-01T12:00:00+00:00"}, {}, {}, "stale: made 61 days ago"),
        ({}, {"table_id": "u"}, {}, "rows of another table"),
        ({}, {"delta_version": "4"}, {}, "rows of another version of the data"),
        ({}, {"contract_fingerprint": "g"}, {}, "rows of another contract"),
        ({}, {}, {"contract": "large"}, "the champion was trained by contract 'large'"),
        ({"seen": {}}, {}, {}, "whether the challenger was trained on test rows is not known"),
        (
            {"seen": {"challenger": {"rows": 0, "how": "h"}, "champion": {"rows": 31, "how": "by key"}}}, {}, {},
            "the champion was trained on 31 of the test rows: by key",
        ),
    ],
)  # fmt: skip
def test_what_may_not_be_decided_by_is_refused(
    judged: dict[str, Any], challenger: dict[str, str], champion: dict[str, str], message: str
) -> None:
    found = evaluation([], champion="1", **judged)
    faults = inadmissible(found, RULES, {**LINEAGE, **challenger}, {**LINEAGE, **champion}, NOW)
    assert message in faults[0]


def test_rows_are_weighed_as_the_policy_wants_them_or_it_is_refused() -> None:
    plain, wanted = evaluation([]), rules(weight="the value")
    weighed = replace(plain, rows={**plain.rows, "weighed_by": "the%20value"})
    assert inadmissible(weighed, wanted, LINEAGE, None, NOW) == []
    for judged, policy, words in (
        (weighed, RULES, "weighs rows by the%20value, the policy by nothing: run jobs/evaluate.py again"),
        (
            plain,
            wanted,
            "by nothing, the policy by the value: run jobs/evaluate.py --weight 'the value' again",
        ),
    ):
        (fault,) = inadmissible(judged, policy, LINEAGE, None, NOW)
        assert words in fault


def test_the_shipped_policies_are_right_and_the_default_says_what_is_default() -> None:
    assert load_settings(Policy, "conf/promotion/default.yml") == Policy()
    assert load_settings(Policy, "conf/promotion/approved.yml").approval == "approval"


def test_every_fault_of_a_policy_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Policy, {"margn": 0.1, "confidence": 2, "calibration": {"pcoc": [2, 3]}}, "policy")
    assert len(caught.value.faults) == 3
    assert "did you mean 'margin'" in str(caught.value)
