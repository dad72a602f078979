"""Registry: the models that there are, found by their files, and what a configuration may say of any of them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import AfterValidator, BeforeValidator, Field

import hinet_model.models as package
from foundation.settings import Settings, validate
from hinet_model.models.hinet import HiNetSettings
from hinet_model.models.matching import yardstick
from hinet_model.models.model import ModelKind
from hinet_model.models.settings import ModelSettings, network_keys


def _declared() -> Iterator[tuple[str, ModelKind]]:
    for module in pkgutil.iter_modules(package.__path__):
        kind = getattr(importlib.import_module(f"{package.__name__}.{module.name}"), "MODEL", None)
        if kind is not None:
            named = kind.settings.model_fields["name"].default
            assert named == module.name, (
                f"{module.name}.py: its settings' name is {named!r}; expected its file's"
            )
            yield module.name, kind


REGISTRY: dict[str, ModelKind] = dict(_declared())
"""Models by name: every file of this package that declares a ``MODEL``."""


def _with_name(section: Any) -> Any:
    return {"name": "hinet", **section} if isinstance(section, Mapping) else section


def _with_yardstick(settings: ModelSettings) -> ModelSettings:
    if settings.match_parameters is not None:
        yardstick(settings)  # faults of the HiNet that it describes
    return settings


if TYPE_CHECKING:
    AnyModel = ModelSettings
else:
    AnyModel = Annotated[
        Union[tuple(kind.settings for kind in REGISTRY.values())],  # noqa: UP007
        Field(discriminator="name"),
        BeforeValidator(_with_name),
        AfterValidator(_with_yardstick),
    ]
"""The settings of some model, told apart by ``name``; without one they are HiNet's."""


class _Section(Settings):
    model: AnyModel


def read_settings(section: Mapping[str, Any]) -> ModelSettings:
    """The settings of a model.

    Args:
        section: What a configuration says of it.

    Raises:
        foundation.settings.ConfigError: An unknown model, keys that it does not have, unusable values: all faults.
    """
    return validate(_Section, {"model": section}, "model").model


def read_saved_settings(section: Mapping[str, Any]) -> ModelSettings:
    """The settings of a saved model, also of one that was saved when all models had the same keys.

    Then the keys of other models stood there too, with their defaults: nobody read them, but for HiNet's beside
    `match_parameters`; and partitioned normalisation, which STAR always had, did not have its name.

    Raises:
        foundation.settings.ConfigError: As `read_settings`.
    """
    if section.get("name") not in REGISTRY:
        return read_settings(section)
    known = {key for kind in REGISTRY.values() for key in kind.settings.model_fields}
    own = REGISTRY[section["name"]].settings.model_fields
    kept = {key: value for key, value in section.items() if key in own or key not in known}
    if section.get("match_parameters") == "hinet" and len(kept) < len(section):
        kept["match_parameters"] = {
            key: section[key] for key in network_keys(HiNetSettings) if key in section
        }
    if section["name"] == "star":
        kept["normalisation"] = "scenario"
    return read_settings(kept)
