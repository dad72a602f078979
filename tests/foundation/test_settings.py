"""Settings: unknown keys, overrides and all faults at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from foundation.settings import (
    ConfigError,
    Settings,
    SettingsByPath,
    UserError,
    load_settings,
    read_yaml,
    validate,
    with_overrides,
)


class Square(Settings):
    kind: Literal["square"]
    side: float


class Circle(Settings):
    kind: Literal["circle"]
    radius: float


class Training(Settings):
    epochs: int = 3
    learning_rate: float = 0.001
    scheme: Literal["proportion", "uniform"] = "proportion"


class Schema(Settings):
    training: Training = Training()
    shapes: dict[str, Annotated[Square | Circle, Field(discriminator="kind")]] = Field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    over: SettingsByPath = Field(default={})
    variants: dict[str, SettingsByPath] = Field(default={})


def faults_of(mapping: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(Schema, mapping, "test")
    return caught.value.faults


def test_without_a_file_the_defaults_hold_and_overrides_change_them() -> None:
    settings = load_settings(Schema, None, ["training.epochs=7", "sizes=[1, 2]"])
    assert settings.training.epochs == 7
    assert settings.training.learning_rate == 0.001
    assert settings.sizes == (1, 2)


def test_a_misspelt_override_is_refused_with_the_full_path_that_was_meant() -> None:
    with pytest.raises(
        ConfigError, match=r"^training\.epoch: unknown key; did you mean 'training\.epochs'\?$"
    ):
        load_settings(Schema, None, ["training.epoch=1"])


def test_a_key_in_the_wrong_group_is_led_to_the_right_one() -> None:
    assert faults_of({"epochs": 3}) == ["epochs: unknown key; did you mean 'training.epochs'?"]


def test_all_faults_are_named_at_once() -> None:
    faults = faults_of(
        {
            "training": {"epochs": "many", "scheme": "unifrom"},
            "shapes": {"a": {"kind": "square", "sidee": 1}, "b": {"kind": "cirle"}, "c": {}},
            "sizes": [1, "x"],
            "extra": 1,
        }
    )
    assert [fault.partition(":")[0] for fault in faults] == [
        "training.epochs",
        "training.scheme",
        "shapes.a.side",
        "shapes.a.sidee",
        "shapes.b",
        "shapes.c",
        "sizes.1",
        "extra",
    ]
    by_place = dict(fault.split(": ", 1) for fault in faults)
    assert by_place["training.scheme"].endswith("did you mean 'uniform'?")
    assert by_place["shapes.a.sidee"] == "unknown key; did you mean 'shapes.a.side'?"
    assert by_place["shapes.b"].endswith("did you mean 'circle'?")


def test_faults_of_overrides_and_of_the_file_come_together(tmp_path: Path) -> None:
    path = tmp_path / "settings.yml"
    path.write_text("training: {epoch: 1}\n")
    with pytest.raises(UserError) as caught:
        load_settings(Schema, path, ["no_value", "sizes.a=1", "sizes=[1", "training.epochs.deep=1"])
    text = str(caught.value)
    assert "override 'no_value'" in text
    assert "sizes: the override's value '[1' is not valid YAML" in text
    assert "did you mean 'training.epochs'" in text
    assert "sizes" in text


def test_below_settings_by_path_the_rest_of_the_path_is_one_of_them(tmp_path: Path) -> None:
    path = tmp_path / "settings.yml"
    path.write_text("over: {a.b: 1, c: {d: 2}}\nvariants: {small: {a.b: 3}}\n")
    overrides = [
        "over.a.b=4",
        "over.c.d=5",
        "variants.small.a.b=6",
        "variants.large.a.b=7",
        "training.epochs=8",
    ]
    settings = load_settings(Schema, path, overrides)
    assert list(settings.over.items()) == [("a.b", 4), ("c", {"d": 2}), ("c.d", 5)]
    assert settings.variants == {"small": {"a.b": 6}, "large": {"a.b": 7}}
    assert settings.training.epochs == 8


def test_an_override_cannot_go_below_a_value() -> None:
    changed, faults = with_overrides({"a": 1}, ["a.b=2"])
    assert changed == {"a": 1}
    assert faults == ["a.b: 'a' is a value, not a group of settings"]


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yml"
    path.write_text("training: {epochs: 1}\ntraining: {epochs: 2}\n")
    with pytest.raises(ConfigError, match="'training' stands twice"):
        read_yaml(path)


def test_a_mapping_may_take_over_another_ones_keys(tmp_path: Path) -> None:
    path = tmp_path / "merged.yml"
    path.write_text("one: &one {a: 1, b: 2}\ntwo: {<<: *one, b: 3}\n")
    assert read_yaml(path)["two"] == {"a": 1, "b": 3}
    path.write_text("one: &one {a: 1}\ntwo: {<<: *one, b: 3, b: 4}\n")
    with pytest.raises(ConfigError, match="'b' stands twice"):
        read_yaml(path)


@pytest.mark.parametrize("content", ["- a list", "{not: [closed", "just text"])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.yml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"bad\.yml"):
        read_yaml(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yml: cannot be read"):
        load_settings(Schema, tmp_path / "absent.yml")


def test_settings_cannot_change_once_read() -> None:
    settings = load_settings(Schema, None)
    with pytest.raises(ValueError, match="frozen"):
        settings.training.epochs = 4  # type: ignore[misc]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["training", "epochs", "shapes", "a", "kind"]), inner)
        ),
    )
)
def test_whatever_is_given_either_fits_or_is_refused_with_named_faults(value: object) -> None:
    mapping = value if isinstance(value, dict) else {"shapes": value}
    faults = [": "]
    try:
        validate(Schema, mapping, "test")
    except ConfigError as error:
        faults = error.faults
    assert faults
    assert all(": " in fault for fault in faults)


@given(st.integers(), st.integers())
def test_the_last_override_wins_and_the_given_mapping_stays_as_it_was(first: int, last: int) -> None:
    mapping = {"a": {"b": 0}}
    changed, faults = with_overrides(mapping, [f"a.b={first}", f"a.b={last}"])
    assert not faults
    assert changed == {"a": {"b": last}}
    assert mapping == {"a": {"b": 0}}


def test_words_and_days_are_text_where_yaml_would_make_something_else_of_them(tmp_path: Path) -> None:
    path = tmp_path / "words.yml"
    path.write_text(
        "on: user_id\nmarkets: [no, yes, off]\nday: 2024-05-01\ntruths: [true, False]\nnothing: null\n"
    )
    assert read_yaml(path) == {
        "on": "user_id", "markets": ["no", "yes", "off"], "day": "2024-05-01", "truths": [True, False], "nothing": None,
    }  # fmt: skip
    assert with_overrides({}, ["join=[{on: no}]"]) == ({"join": [{"on": "no"}]}, [])
