"""Parameters of the made log: what they imply, and what is refused. No Spark here."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import numpy as np
import pytest

from feature_eng.contract import ContractError, SixScenarios, load_contract
from feature_eng.sources.six_scenarios.expected import expectations, expected_auc
from foundation.settings import ConfigError, validate

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "conf" / "contracts" / "six_scenarios.yml"
MAY_KNOW = {"benchmarks/reachable.py", "jobs/study.py", "jobs/simulate_ab.py"}


def test_six_scenarios_have_from_40_to_1_percent_of_the_rows() -> None:
    shares = SixScenarios().shares
    assert [round(100 * share, 1) for share in shares] == [40.3, 30.5, 17.2, 7.9, 3.1, 1.0]
    assert sum(shares) == pytest.approx(1)
    assert shares[0] / shares[-1] == pytest.approx(40)
    assert len(SixScenarios(scenarios=100, groups=10).shares) == 100


def test_the_planted_similarity_is_that_of_the_mixture() -> None:
    parameters = SixScenarios()
    similarity = parameters.similarity
    for m, (shared, group, own) in enumerate(parameters.mixture):
        assert shared**2 + group**2 + own**2 == pytest.approx(1)
        for n, (other_shared, other_group, _) in enumerate(parameters.mixture):
            if m != n:
                related = group * other_group if m % 3 == n % 3 else 0.0
                assert similarity[m, n] == pytest.approx(shared * other_shared + related)
    assert similarity[0, 3] == pytest.approx(math.sqrt(0.2 * 0.38) + 0.6 * math.sqrt(0.8 * 0.62))
    assert np.array_equal(np.diag(similarity), np.ones(6))
    assert np.linalg.eigvalsh(similarity).min() > 0


@pytest.mark.parametrize(("shared", "group", "expected"), [(1.0, 0.0, 1.0), (0.0, 0.0, 0.0)])
def test_scenarios_are_equal_where_all_taste_is_shared_and_unrelated_where_none_is(
    shared: float, group: float, expected: float
) -> None:
    similarity = SixScenarios(shared_taste=(shared, shared), group_taste=group).similarity
    assert similarity[~np.eye(6, dtype=bool)] == pytest.approx(expected)


def test_conflict_turns_even_scenarios_from_agreement_to_its_opposite() -> None:
    assert SixScenarios(conflict=0.0).agreements == (0.8,) * 6
    assert SixScenarios(conflict=0.5).agreements == pytest.approx((0.8, 0.0) * 3)
    assert SixScenarios(conflict=1.0).agreements == pytest.approx((0.8, -0.8) * 3)


def test_intercepts_give_the_rates_that_were_asked_for() -> None:
    for expected, click, order in zip(
        expectations(SixScenarios()), np.linspace(0.2, 0.3, 6), np.linspace(0.3, 0.4, 6), strict=True
    ):
        assert expected.click_rate == pytest.approx(click, abs=1e-9)
        assert expected.order_rate == pytest.approx(order, abs=1e-9)


def test_noise_takes_the_best_possible_auc_from_certainty_to_chance() -> None:
    by_noise = [expectations(SixScenarios(noise=noise))[0] for noise in (0.01, 0.5, 1.0, 2.0, 100.0)]
    clicks = [one.click_auc for one in by_noise]
    assert clicks == sorted(clicks, reverse=True)
    assert clicks[0] > 0.999
    assert 0.5 < clicks[-1] < 0.52


def test_the_auc_to_expect_counts_all_pairs_and_ties_as_half() -> None:
    probs = np.array([0.2, 0.8, 0.8])
    pairs = [(p, q) for p in probs for q in probs]
    won = sum(p * (1 - q) * ((p > q) + 0.5 * (p == q)) for p, q in pairs)
    assert expected_auc(probs) == pytest.approx(won / (1.8 * 1.2))
    assert expected_auc(np.full(5, 0.3)) == 0.5


def test_orders_in_the_window_follow_two_waits() -> None:
    parameters = SixScenarios(click_delay_seconds=600, order_delay_hours=1)
    rng = np.random.default_rng(0)
    waited = rng.exponential(600, 10**6) + rng.exponential(3600, 10**6)
    assert parameters.order_in_window(3600) == pytest.approx((waited <= 3600).mean(), abs=2e-3)
    even = SixScenarios(click_delay_seconds=3600, order_delay_hours=1)
    nearly = SixScenarios(click_delay_seconds=3600.1, order_delay_hours=1)
    assert even.order_in_window(5000) == pytest.approx(nearly.order_in_window(5000), abs=1e-4)


def test_restaurants_of_one_scenario_are_dealt_out_whole() -> None:
    parameters = SixScenarios(items=1003)
    ranges = parameters.own_items
    assert ranges[0][0] == parameters.num_shared_items
    assert [first + count for first, count in ranges[:-1]] == [first for first, _ in ranges[1:]]
    assert sum(ranges[-1]) == 1003


def test_every_fault_of_the_parameters_is_named_at_once() -> None:
    wrong = {"new_users_per_day": 0.1, "items": 3, "item_overlap": 0, "groups": 9, "impressions": 20}
    with pytest.raises(ConfigError) as caught:
        validate(SixScenarios, wrong, "parameters")
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "new_users_per_day",
        "items",
        "groups",
        "impressions",
    ]
    assert "expected less than 0.0769" in caught.value.faults[0]


def test_a_contract_names_every_fault_of_its_made_log() -> None:
    with pytest.raises(ContractError) as caught:
        load_contract(
            CONTRACT,
            [
                "source.six_scenarios.scenarios=8",
                "source.six_scenarios.noize=2",
                "source.six_scenarios.conflict=2",
            ],
        )
    text = "\n".join(caught.value.faults)
    assert "source.six_scenarios.noize: unknown key; did you mean 'source.six_scenarios.noise'?" in text
    assert "source.six_scenarios.conflict: 2 is not usable" in text
    with pytest.raises(ContractError, match=r"tasks.order.table: no table is called 'truth'"):
        load_contract(CONTRACT, ["tasks.order.table=truth"])
    with pytest.raises(
        ContractError, match=r"of the 8 scenarios that source.six_scenarios makes, 7, 8 are in none"
    ):
        load_contract(CONTRACT, ["source.six_scenarios.scenarios=8"])
    with pytest.raises(ContractError, match=r"source.six_scenarios.groups: 20 is more than the 6 scenarios"):
        load_contract(CONTRACT, ["source.six_scenarios.groups=20"])


def test_parameters_go_with_their_reader_alone() -> None:
    with pytest.raises(ContractError, match=r"source.six_scenarios: the reader 'movielens' makes no log"):
        load_contract(CONTRACT, ["source.reader=movielens"])
    with pytest.raises(ContractError, match="makes its tables; expected none"):
        load_contract(CONTRACT, ["source.tables={clicks: {path: x, format: csv}}"])


def test_only_jobs_that_judge_read_the_truth() -> None:
    package = "feature_eng.sources.six_scenarios"
    importers = set()
    for folder in ("foundation", "feature_eng", "hinet_model", "jobs", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
            if package in text and not name.startswith(package.replace(".", "/")):
                importers.add(name)
    reader = "feature_eng/sources/raw.py"
    assert reader in importers
    assert importers <= {reader, *MAY_KNOW}
    calls = [
        node for node in ast.walk(ast.parse((ROOT / reader).read_text())) if isinstance(node, ast.Attribute)
    ]
    assert {node.attr for node in calls if getattr(node.value, "id", None) == "made"} == {"raw_tables"}
