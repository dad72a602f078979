"""Names that become folders lead nowhere else."""

from __future__ import annotations

import pytest

from foundation.names import DottedName, PlainName
from foundation.settings import ConfigError, Settings, validate


class Named(Settings):
    name: PlainName = "a"
    model: DottedName = "a"


@pytest.mark.parametrize("name", ["movielens", "movielens_1m", "hinet-movielens", "2024", "A"])
def test_letters_digits_and_dashes_are_names(name: str) -> None:
    assert validate(Named, {"name": name, "model": name}, "here").name == name


def test_a_model_of_a_catalog_has_dots() -> None:
    assert validate(Named, {"model": "main.ads.hinet"}, "here").model == "main.ads.hinet"


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "..",
        ".",
        "",
        "a/b",
        "/etc",
        "a b",
        "a\n",
        "-x",
        "_x",
        "a..b",
        "a.",
        ".a",
        "s3://b",
        "ä",
        "a\\b",
        "~",
    ],
)
def test_what_could_lead_elsewhere_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(Named, {"name": name, "model": name}, "here")
    plain, dotted = refused.value.faults
    assert plain.startswith(f"name: {name!r} is not usable as a name; expected letters, digits, '_' and '-'")
    assert dotted.startswith(f"model: {name!r} is not usable as a name")
