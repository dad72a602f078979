"""The data contract: what it refuses, and what it tells the rest."""

from __future__ import annotations

import copy
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_eng.contract import ContractError, load_contract, to_contract, to_number

CONTRACTS = Path(__file__).parents[2] / "conf" / "contracts"

SMALL: dict[str, Any] = {
    "name": "small",
    "source": {
        "reader": "tables",
        "tables": {
            "shown": {"path": "shown.csv", "format": "csv"},
            "orders": {"path": "orders.csv", "format": "csv"},
        },
    },
    "columns": {"key": ["row"], "user": "who", "item": "what", "time": "at"},
    "scenario": {"column": "page", "values": {"home": {"in": ["home"]}, "search": {"in": ["search"]}}},
    "tasks": {
        "click": {"column": "clicked", "equals": 1},
        "order": {"table": "orders", "join_on": ["who", "what"], "within": "24h"},
    },
    "features": {
        "item": {"kind": "categorical", "column": "what"},
        "recent": {"kind": "history", "last": 3, "when": "order"},
        "rate": {"kind": "rate", "task": "click"},
    },
    "split": {"method": "time"},
}


def changed(**changes: Any) -> dict[str, Any]:
    """The small contract with dotted places (``__`` for the dot) set anew, or dropped by ``...``."""
    mapping = copy.deepcopy(SMALL)
    for dotted, value in changes.items():
        *groups, last = dotted.split("__")
        level = mapping
        for group in groups:
            level = level[group]
        if value is ...:
            del level[last]
        else:
            level[last] = value
    return mapping


def faults_of(**changes: Any) -> list[str]:
    with pytest.raises(ContractError) as caught:
        to_contract(changed(**changes))
    return caught.value.faults


@pytest.mark.parametrize("name", ["movielens", "movielens_1m"])
def test_the_contracts_that_come_with_the_product_are_sound(name: str) -> None:
    contract = load_contract(CONTRACTS / f"{name}.yml")
    assert contract.scenario_names == ("under_25", "from_25_to_34", "from_35")
    assert contract.task_names == ("click", "like")
    assert contract.requires_time == (name == "movielens")


def test_movielens_1m_has_exactly_the_features_of_published_comparisons() -> None:
    contract = load_contract(CONTRACTS / "movielens_1m.yml")
    assert list(contract.features) == ["user_id", "movie_id", "gender", "occupation", "zip", "genre", "age"]
    assert [contract.scenario_index(code) for code in (1, 18, 25, 35, 45, 50, 56)] == [0, 0, 1, 2, 2, 2, 2]


def test_ages_in_years_are_parted_at_the_same_bounds() -> None:
    contract = load_contract(CONTRACTS / "movielens.yml")
    assert [contract.scenario_index(age) for age in (7, 24, 25, 34, 35, 73)] == [0, 0, 1, 1, 2, 2]
    assert [contract.scenario_index(age) for age in (None, "", "x", 24.5, float("nan"), True)] == [None] * 6


def test_one_switch_leaves_out_all_behaviour_features_and_changes_the_fingerprint() -> None:
    whole = to_contract(SMALL)
    without = to_contract(changed(behaviour=False))
    assert list(whole.features) == ["item", "recent", "rate"]
    assert list(without.features) == ["item"]
    assert whole.fingerprint != without.fingerprint


def test_the_fingerprint_tells_orders_apart_but_not_ways_of_writing() -> None:
    turned = changed()
    turned["scenario"]["values"] = dict(reversed(turned["scenario"]["values"].items()))
    assert to_contract(turned).fingerprint != to_contract(SMALL).fingerprint
    assert to_contract(changed(tasks__order__within=86400)).fingerprint == to_contract(SMALL).fingerprint


def test_the_fingerprint_is_of_what_rows_mean_not_of_where_they_lie_or_how_they_are_drawn() -> None:
    plain = to_contract(SMALL)
    table = next(iter(plain.source.tables))
    moved = to_contract(changed(**{f"source__tables__{table}__path": "elsewhere"}, split__seed=7))
    assert moved != plain
    assert moved.fingerprint == plain.fingerprint
    filtered = to_contract(changed(**{f"source__tables__{table}__where": "who > 1"}))
    assert filtered.fingerprint != plain.fingerprint


def test_everything_that_needs_a_time_is_refused_by_name_without_one() -> None:
    assert faults_of(columns__time=...) == [
        "columns.time: is missing; needed by split.method 'time'",
        "columns.time: is missing; needed by tasks.order (label from a table)",
        "columns.time: is missing; needed by features.recent (history)",
        "columns.time: is missing; needed by features.rate (rate)",
    ]


def test_the_user_disjoint_split_needs_a_position() -> None:
    assert faults_of(split__method="user_disjoint") == [
        "columns.position: is missing; needed by split.method 'user_disjoint'"
    ]


def test_a_user_disjoint_split_refuses_behaviour_by_item_which_holds_labels_of_test_users() -> None:
    split = {"method": "user_disjoint"}
    features = {
        "item": {"kind": "categorical", "column": "what"},
        "recent": {"kind": "history", "last": 3},
        "user_rate": {"kind": "rate", "task": "click"},
        "item_rate": {"kind": "rate", "task": "click", "by": "item"},
        "item_count": {"kind": "count", "by": "item"},
    }
    given = {"columns__position": "place", "features": features}
    assert faults_of(**given, split=split) == [
        "split.method: 'user_disjoint' would show training rows what test rows did, by way of item_rate, item_count; "
        "expected 'time' or 'dates', behaviour: false, or split.allow_leakage: true"
    ]
    assert to_contract(changed(**given, split={**split, "allow_leakage": True}))
    assert to_contract(changed(**given, split=split, behaviour=False))
    assert to_contract(changed(columns__position="place", split=split))


def test_a_split_by_a_column_names_it_and_refuses_behaviour_which_may_know_of_test_rows() -> None:
    together = "split: method 'column' and 'column: NAME' go together"
    assert faults_of(split={"method": "column"}) == [together]
    assert faults_of(split={"method": "random", "column": "part", "allow_leakage": True}) == [together]
    by_column = {"method": "column", "column": "part"}
    rate = {"item": {"kind": "categorical", "column": "what"}, "rate": {"kind": "rate", "task": "click"}}
    (fault,) = faults_of(features=rate, split=by_column)
    assert fault.startswith(
        "split.method: 'column' would show training rows what test rows did, by way of rate"
    )
    contract = to_contract(changed(split=by_column, columns__list="what", behaviour=False))
    assert {"part", "what"} <= set(contract.raw_columns)
    assert (contract.split.wanted, contract.stored_list) == (("train", "test"), "what")


@pytest.mark.parametrize(
    "table",
    [
        {"path": "s3a://AKIA77:hunter2@bucket/log", "format": "delta"},
        {"path": ["log.csv", "https://x.example/log.csv?sig=hunter2"], "format": "csv"},
        {"table": "delta.`abfss://c@a.dfs.core.windows.net/log?sig=hunter2`"},
    ],
)
def test_an_address_with_a_credential_is_refused_without_repeating_it(table: dict[str, Any]) -> None:
    (fault,) = faults_of(source__tables__shown=table)
    assert fault.startswith(
        "source.tables.shown: the address holds a credential, which would travel with every"
    )
    assert "hunter2" not in fault
    fine = {"path": "abfss://container@account.dfs.core.windows.net/log", "format": "delta"}
    assert to_contract(changed(source__tables__shown=fine))


def test_faults_between_parts_are_named_beside_faults_within_them() -> None:
    faults = faults_of(split__metod="random", features__rate__task="clik", scenario__values__search={})
    assert faults == [
        "scenario.values.search: expected exactly one of 'range: [low, high]' and 'in: [values]'",
        "split.metod: unknown key; did you mean 'split.method'?",
        "features.rate.task: no task is called 'clik'; expected one of click, order; did you mean 'click'?",
    ]


def test_a_faulty_task_is_not_reported_again_where_it_is_named() -> None:
    assert len(faults_of(tasks__click={"column": "clicked"})) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"name": "../../x"},
            "name: '../../x' is not usable as a name; expected letters, digits, '_' and '-'",
        ),
        ({"name": "/etc/x"}, "name: '/etc/x' is not usable as a name"),
        ({"scenario__values__search": {"in": ["home", "x"]}}, "scenario.values.search: overlaps 'home'"),
        ({"scenario__values": {"a": {"range": [0, 5]}, "b": {"in": [5]}}}, "scenario.values.b: overlaps 'a'"),
        ({"scenario__values": {"a": {"range": [9, 5]}}}, "scenario.values.a: range [9, 5] is empty"),
        ({"tasks__order__table": "order"}, "tasks.order.table: no table is called 'order'; expected one of"),
        ({"tasks__order__table": "shown"}, "tasks.order.table: 'shown' holds the impressions"),
        ({"tasks__order__within": "soon"}, "tasks.order.within: 'soon' is not a length of time"),
        ({"tasks__click__at_least": 3}, "tasks.click: expected exactly one of 'greater_than'"),
        ({"features__recent__of": "itm"}, "features.recent.of: a history shares"),
        ({"features__recent__when": "ordr"}, "did you mean 'order'"),
        (
            {"features__what": {"kind": "count"}},
            "features.what: a behaviour feature needs a name that no raw",
        ),
        ({"features__Bad": {"kind": "count"}}, "features.Bad: is not usable as a name"),
        ({"features__split": {"kind": "count"}}, "features.split: the name is taken"),
        ({"scenario__column": "scenario"}, "scenario.column: the column name 'scenario' is taken"),
        ({"split__fractions": [0.8, 0.1, 0.2]}, "split.fractions: [0.8, 0.1, 0.2] are not shares"),
        ({"source__main": "show"}, "source.main: no table is called 'show'; did you mean 'shown'?"),
        ({"features__item__kind": "categoric"}, "did you mean 'categorical'?"),
        (
            {"tasks__click__null_is": 1},
            "tasks.click.null_is: '1' is not known; expected 0, 'reject' or 'missing'",
        ),
        ({"tasks__click__known_after": 0}, "tasks.click.known_after: 0 is not after the row's time"),
        ({"tasks__click__known_after": True}, "tasks.click.known_after: True is neither a column nor"),
        ({"tasks__click__attribution": "last"}, "tasks.click: 'sum' and 'attribution' go with 'table'"),
        ({"tasks__click__scenarios": ["hom"]}, "tasks.click.scenarios: no scenario is called 'hom'"),
        ({"tasks__click__scenarios": []}, "tasks.click: 'scenarios' is empty"),
        ({"tasks__order__null_is": 0}, "tasks.order: 'null_is' and 'known_after' go with 'column'"),
        ({"tasks__order__at_least": 5}, "tasks.order: 'greater_than', 'at_least', 'equals' go with 'column'"),
        ({"tasks__order__sum": "amount"}, "tasks.order: a label by 'sum' needs exactly one of"),
        ({"tasks__order__attribution": "middle"}, "tasks.order.attribution"),
        ({"weight": "split"}, "weight: the column name 'split' is taken"),
        (
            {"sampling": {"keep_negatives": 0}},
            "sampling.keep_negatives: 0 is not usable; expected greater than 0",
        ),
        ({"sampling": {"keep_negatives": 0.1, "task": "clik"}}, "did you mean 'click'?"),
        ({"sampling": {"keep_negatives": 0.1, "by_scenario": {"serch": 1}}}, "did you mean 'search'?"),
        (
            {"sampling": {"keep_negatives": 0.1, "correction": "shift"}},
            "sampling.task: is missing; correction",
        ),
        (
            {"split": {"method": "random"}},
            "split.method: 'random' would show training rows what test rows did",
        ),
        ({"split": {"method": "user_disjoint", "gap": 5}}, "split: 'gap' goes with method 'time' or 'dates'"),
        ({"split__train": ["2022-04-08", None]}, "split: 'train' goes with method 'dates'"),
        ({"split": {"method": "dates"}}, "split: method 'dates' needs 'train: [first, last]'"),
        (
            {"split": {"method": "dates", "train": [20220408, None]}},
            "20220408 is not a date; expected 2022-04-08",
        ),
        ({"split": {"method": "dates", "train": ["2022-04-31", None]}}, "'2022-04-31' is not a date"),
        (
            {"split": {"method": "dates", "train": ["2022-04-21", "2022-04-08"]}},
            "'train' ends before it begins",
        ),
        (
            {
                "split": {
                    "method": "dates",
                    "train": ["2022-04-08", "2022-04-21"],
                    "test": ["2022-04-21", None],
                }
            },
            "split: 'test' must begin after 'train' has ended",
        ),
        ({"split__zone": "Asia/Shanghay"}, "split.zone: 'Asia/Shanghay' is no time zone"),
    ],
)
def test_what_cannot_work_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    faults = faults_of(**changes)
    assert len(faults) == 1
    assert words in faults[0]


MINUTES = "names no month: mm is minutes, MM the month"
HALVES = "names an hour of twelve and not which half of the day: expected HH, or hh with a"


@pytest.mark.parametrize(
    ("format", "faults"),
    [
        ("yyyy-mm-dd", [f"{MINUTES}; did you mean 'yyyy-MM-dd'?"]),
        ("yyyymm", [f"{MINUTES}; did you mean 'yyyyMM'?"]),
        ("yyyy-mm-dd'T'HH:mm", [f"{MINUTES}; did you mean \"yyyy-MM-dd'T'HH:mm\"?"]),
        ("dd yyyy HH:mm", [MINUTES]),
        ("mm/dd", ["names no year; expected a pattern such as 'yyyy-MM-dd'", MINUTES]),
        ("yyyy-MM-dd hh:mm", [f"{HALVES}; did you mean 'yyyy-MM-dd HH:mm'?"]),
        ("yyyy-MM-dd KK 'a clock'", [f"{HALVES}; did you mean \"yyyy-MM-dd HH 'a clock'\"?"]),
        ("dd/mm/yyyy hh:mm", [f"{fault}; did you mean 'dd/MM/yyyy HH:mm'?" for fault in (MINUTES, HALVES)]),
    ],
)
def test_letters_of_a_format_that_mean_other_times_are_refused_with_what_was_meant(
    format: str, faults: list[str]
) -> None:
    time = {"column": "at", "format": format}
    found = [
        fault for fault in faults_of(columns__time=time, tasks__order__time=time) if ".format: " in fault
    ]
    assert found == [
        f"{where}.format: {format!r} {fault}"
        for where in ("columns.time", "tasks.order.time")
        for fault in faults
    ]


@pytest.mark.parametrize(
    "format",
    [
        "yyyyMMdd",
        "yyyy",
        "yyyyMM",
        "yyyy-DDD",
        "d LLL uuuu",
        "yyyy-MM-dd h:mm a",
        "yyyy-MM-dd kk",
        "yyyy 'dhm'",
    ],
)
def test_formats_that_leave_nothing_open_are_taken(format: str) -> None:
    assert to_contract(changed(columns__time={"column": "at", "format": format}))


def test_a_missing_contract_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"absent\.yml: cannot be read"):
        load_contract(tmp_path / "absent.yml")


@pytest.mark.parametrize(
    ("value", "read"),
    [("7", 7.0), (" -1.5e2 ", -150.0), (3, 3.0), ("", None), ("7d", None), ("1e999", None), ("٣", None), (None, None),
     (True, None), (float("inf"), None), ("0x10", None), ("7\n", None)],
)  # fmt: skip
def test_a_number_is_plain_decimal_notation(value: object, read: float | None) -> None:
    assert to_number(value) == read


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_is_read_back_from_its_text(value: float) -> None:
    assert to_number(repr(value)) == value


def test_a_date_is_read_as_yaml_gives_it_and_ends_with_its_last_second() -> None:
    dates = {"method": "dates", "zone": "Asia/Shanghai", "train": [None, date(2022, 4, 21)],
             "validation": ["2022-04-22T00:00:00+08:00", "2022-04-22 11:59:59"]}  # fmt: skip
    contract = to_contract(changed(split=dates))
    first_of_april_22 = 1_650_556_800
    assert contract.split.spans == {
        "train": (None, first_of_april_22 - 1),
        "validation": (first_of_april_22, first_of_april_22 + 12 * 3600 - 1),
    }
    assert contract.split.wanted == ("train", "validation")
    again = to_contract(contract.model_dump(mode="json", by_alias=True))
    assert again.split == contract.split
    assert again.fingerprint == contract.fingerprint


def test_all_faults_of_labels_sampling_and_split_are_named_at_once() -> None:
    faults = faults_of(
        tasks__click__scenarios=["hom"],
        sampling={"keep_negatives": 2, "corection": "shift"},
        split={"method": "random", "gap": "1x"},
    )
    assert [fault.split(":")[0] for fault in faults] == [
        "split.gap", "sampling.keep_negatives", "sampling.corection", "tasks.click.scenarios",
    ]  # fmt: skip


def test_a_setting_left_at_its_default_leaves_the_fingerprint_alone() -> None:
    plain = to_contract(SMALL).fingerprint
    assert (
        to_contract(changed(tasks__click__null_is="reject", split__allow_leakage=False)).fingerprint == plain
    )
    assert to_contract(changed(tasks__click__null_is=0)).fingerprint != plain
    assert to_contract(changed(weight="worth")).fingerprint != plain
    assert load_contract(CONTRACTS / "movielens.yml").fingerprint.startswith("965bb627671e791e")
