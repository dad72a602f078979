"""The settings of a study: all that a file of `conf/studies/` may say, and the settings of its trials."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from foundation.settings import ConfigError, Settings, SettingsByPath, load_settings, suggestion
from hinet_model.settings import RunSettings

Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]

Some = Annotated[dict[str, SettingsByPath], Field(min_length=1)]

View = Literal["ranking", "cells", "curve", "attention", "seesaw"]


class DataSection(Settings):
    """The table that all trials read, made by `jobs/build_features.py`."""

    contract: str
    """Data contract (YAML)."""
    source: str | None = None
    """Folder of the raw files, for a contract that does not say; an environment variable as `$NAME`."""
    settings: SettingsByPath = Field(default={})
    """Over those of the contract: a `name` of the table's own, for one."""


class SearchSection(Settings):
    """How the settings of each variant are chosen: by validation AUC; the test rows are not looked at."""

    seed: int = Field(default=0, ge=0)
    """Of all trials of the search."""
    settings: SettingsByPath = Field(default={})
    """Of all trials of the search."""
    candidates: Some = Field(default={"as configured": {}})
    """Settings by name, tried for every variant; one alone is taken without a trial."""
    candidates_of: dict[str, Some] = Field(default={})
    """Variants that have candidates of their own: for settings that have another name there."""


class FinalSection(Settings):
    """The trials that are compared: each variant as it was chosen, once per seed."""

    settings: SettingsByPath = Field(default={})
    seeds: Seeds = Field(default=[1, 2, 3])


class QuickSection(Settings):
    """What `--quick` makes of the study: the same questions, too small to answer them."""

    data: SettingsByPath = Field(default={})
    """Over the settings of the data."""
    settings: SettingsByPath = Field(default={})
    """Of all trials, over all others."""
    variants: list[str] = Field(default=[])
    """Those that are kept; all when left out."""
    seeds: Seeds = Field(default=[1, 2])
    candidates: int = Field(default=1, ge=1)
    """How many of each variant's candidates are kept."""


class StudySettings(Settings):
    """One study."""

    asks: str = Field(min_length=1)
    """The question, as the page puts it."""
    data: DataSection
    config: str
    """Settings of a training run (YAML), which all trials start from."""
    settings: SettingsByPath = Field(default={})
    """Of all trials, before those of a variant."""
    variants: Some
    """What is compared, by name."""
    reference: str
    """The variant that the others are compared with."""
    start: str | None = None
    """The variant that the way to the oracle begins at, for data with a known truth."""
    search: SearchSection = SearchSection()
    final: FinalSection = FinalSection()
    views: list[View] = Field(default=["ranking"])
    """What the page shows beside the trials."""
    curves: dict[str, dict[str, float]] = Field(default={})
    """Of the view `curve`: axis -> variant -> where on it the variant stands."""
    quick: QuickSection = QuickSection()

    @model_validator(mode="after")
    def _names_are_variants(self) -> StudySettings:
        named = [("reference", self.reference)]
        named += [("start", self.start)] if self.start is not None else []
        named += [("search.candidates_of", name) for name in self.search.candidates_of]
        named += [("quick.variants", name) for name in self.quick.variants]
        named += [(f"curves.{axis}", name) for axis, points in self.curves.items() for name in points]
        faults = [
            f"{where}: no variant is called '{name}'{suggestion(name, list(self.variants))}"
            for where, name in named
            if name not in self.variants
        ]
        if ("curve" in self.views) != bool(self.curves):
            faults.append("curves: needs the view 'curve', and the other way round")
        if faults:
            raise ConfigError(faults)
        return self

    def candidates(self, variant: str) -> Mapping[str, SettingsByPath]:
        """What is tried for a variant, by name."""
        return self.search.candidates_of.get(variant, self.search.candidates)

    def made_quick(self) -> StudySettings:
        """The study as `--quick` runs it."""
        quick, search = self.quick, self.search

        def first(candidates: Mapping[str, SettingsByPath]) -> dict[str, SettingsByPath]:
            return dict(list(candidates.items())[: quick.candidates])

        kept = quick.variants or list(self.variants)
        variants = {name: {**self.variants[name], **quick.settings} for name in kept}
        return self.model_copy(
            update={
                "data": self.data.model_copy(update={"settings": {**self.data.settings, **quick.data}}),
                "variants": variants,
                "reference": self.reference if self.reference in kept else kept[0],
                "start": self.start if self.start in kept else None,
                "search": search.model_copy(
                    update={
                        "settings": {**search.settings, **quick.settings},
                        "candidates": first(search.candidates),
                        "candidates_of": {
                            name: first(found) for name, found in search.candidates_of.items() if name in kept
                        },
                    }
                ),
                "final": self.final.model_copy(
                    update={"settings": {**self.final.settings, **quick.settings}, "seeds": quick.seeds}
                ),
                "curves": {
                    axis: {name: place for name, place in points.items() if name in kept}
                    for axis, points in self.curves.items()
                },
            }
        )


def overrides_of(*groups: SettingsByPath) -> list[str]:
    """Settings as the jobs' ``--set`` takes them."""
    return [f"{path}={json.dumps(value)}" for group in groups for path, value in group.items()]


def run_settings(config: str | Path, *groups: SettingsByPath) -> RunSettings:
    """The settings of a trial; later groups win.

    Raises:
        ConfigError: All faults, by path.
    """
    return load_settings(RunSettings, config, overrides_of(*groups))
