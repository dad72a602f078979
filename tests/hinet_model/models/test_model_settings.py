"""What a configuration may say of a model: its own keys and no other's, by a name that is known."""

from __future__ import annotations

from typing import Any

import pytest
from batches import make_layout

from foundation.settings import ConfigError
from hinet_model.models.build import build_model, num_dense_parameters
from hinet_model.models.hinet import HiNetSettings
from hinet_model.models.matching import yardstick
from hinet_model.models.registry import REGISTRY, read_saved_settings, read_settings


def faults(section: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        read_settings(section)
    return error.value.faults


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_section_that_only_names_a_model_gives_its_defaults_and_survives_a_document(name: str) -> None:
    settings = read_settings({"name": name})
    assert type(settings) is REGISTRY[name].settings
    assert settings.name == name
    assert read_settings(settings.model_dump(mode="json")) == settings


def test_a_section_without_a_name_is_hinets() -> None:
    assert read_settings({"gates": False}) == HiNetSettings(gates=False)


def test_an_unknown_key_gets_a_suggestion_among_the_models_own() -> None:
    assert faults({"name": "hinet", "sub_expert_dim": [8]}) == [
        "model.sub_expert_dim: unknown key; did you mean 'model.sub_expert_dims'?"
    ]


def test_a_key_of_another_model_says_whose_it_is() -> None:
    assert faults({"name": "ple", "experts": 3, "top_k": 2}) == [
        "model.experts: unknown key (flat_moe, hmoe, m3oe, mmoe have it); did you mean 'model.expert_dims'?",
        "model.top_k: unknown key (hinet has it)",
    ]


def test_an_unknown_model_is_refused_with_all_names_and_a_suggestion() -> None:
    (fault,) = faults({"name": "mmo"})
    assert fault.startswith("model: name 'mmo' is not known; expected 'aitm', ")
    assert fault.endswith("did you mean 'mmoe'?")


def test_all_faults_of_a_section_come_at_once() -> None:
    found = faults({"name": "pepnet", "gate_dim": 0, "level": 2, "expert_dims": []})
    assert [fault.partition(":")[0] for fault in found] == [
        "model.expert_dims",
        "model.gate_dim",
        "model.level",
    ]


def test_the_hinet_to_be_matched_is_that_of_the_section_where_nothing_else_is_said() -> None:
    section = {"name": "mmoe", "expert_dims": [32, 16], "tower_dims": [8], "experts": 3}
    same = yardstick(read_settings({**section, "match_parameters": "hinet"}))
    assert same == HiNetSettings(expert_dims=[32, 16], tower_dims=[8])
    other = yardstick(read_settings({**section, "match_parameters": {"sub_experts": 3, "tower_dims": [4]}}))
    assert other == HiNetSettings(expert_dims=[32, 16], tower_dims=[4], sub_experts=3)


def test_a_smaller_hinet_makes_a_smaller_model() -> None:
    layout = make_layout()

    def size(match: object) -> int:
        section = {"name": "mmoe", "expert_dims": [64, 32], "match_parameters": match}
        return num_dense_parameters(build_model(read_settings(section), layout, seed=0))

    assert size({"sub_experts": 1}) < 0.7 * size("hinet")


def test_what_hinet_does_not_know_is_refused_in_the_hinet_to_be_matched() -> None:
    assert faults({"name": "mmoe", "match_parameters": {"sub_expert": 3, "top_k": 0}}) == [
        "model.match_parameters.top_k: 0 is not usable; expected greater than or equal to 1",
        "model.match_parameters.sub_expert: unknown key; did you mean 'match_parameters.sub_experts'?",
    ]


def old_section(**given: Any) -> dict[str, Any]:
    """As it was saved when every model had the keys of all."""
    keys: dict[str, Any] = {}
    for kind in REGISTRY.values():
        keys |= kind.settings.model_construct().model_dump(mode="json")
    return {**keys, "match_parameters": None, "normalisation": "none", **given}


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_model_saved_with_the_keys_of_all_models_keeps_its_own(name: str) -> None:
    found = read_saved_settings(old_section(name=name, expert_dims=[8]))
    assert found == read_settings({"name": name, "expert_dims": [8]})


def test_a_model_saved_as_large_as_a_hinet_of_its_section_still_is() -> None:
    old = old_section(name="mmoe", match_parameters="hinet", sub_experts=3, tower_dims=[4])
    assert yardstick(read_saved_settings(old)) == HiNetSettings(sub_experts=3, tower_dims=[4])


def test_a_key_of_no_model_is_refused_in_a_saved_one_too() -> None:
    with pytest.raises(ConfigError, match=r"model\.future: unknown key"):
        read_saved_settings(old_section(name="mmoe", future=1))
