"""The data contract: what a raw log means, as data.

A contract names the scenario column and its values, the label rules, the features and
the split. A new data set is a new contract, not new code. Reading one needs no Spark.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from feature_eng.contract_faults import cross_faults, shared_feature, time_reasons
from feature_eng.contract_parts import (
    Behaviour,
    Bucketed,
    Categorical,
    Columns,
    Count,
    Feature,
    History,
    MultiValued,
    Numeric,
    Rate,
    Raw,
    Scenario,
    ScenarioValues,
    Source,
    Split,
    Table,
    Task,
    to_number,
)
from foundation.settings import ConfigError, Settings, faults_of, read_yaml, with_overrides

__all__ = [
    "SPLITS",
    "Behaviour",
    "Bucketed",
    "Categorical",
    "Columns",
    "Contract",
    "ContractError",
    "Count",
    "Feature",
    "History",
    "MultiValued",
    "Numeric",
    "Rate",
    "Raw",
    "Scenario",
    "ScenarioValues",
    "Source",
    "Split",
    "Table",
    "Task",
    "load_contract",
    "to_contract",
    "to_number",
]

SPLITS: tuple[str, str, str] = ("train", "validation", "test")


class ContractError(ConfigError):
    """A contract that cannot be used, or data that are not what the contract says."""


class Contract(Settings):
    """A checked data contract. Orders of scenarios, tasks and features are the orders everywhere.

    Args:
        behaviour: ``False`` leaves out history, count and rate features as a group.
    """

    name: str
    source: Source
    columns: Columns
    scenario: Scenario
    tasks: Annotated[dict[str, Task], Field(min_length=1)]
    all_features: dict[str, Annotated[Feature, Field(discriminator="kind")]] = Field(
        alias="features", min_length=1
    )
    behaviour: bool = True
    split: Split

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Contract:
        parts = {alias: getattr(self, name) for name, alias in _field_aliases()}
        faults = list(cross_faults(parts, parts))
        if faults:
            raise ContractError(faults)
        return self

    @property
    def scenario_names(self) -> tuple[str, ...]:
        """Scenario names; a name's place is its scenario_index."""
        return tuple(self.scenario.values)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Task names in label and head order."""
        return tuple(self.tasks)

    @cached_property
    def features(self) -> Mapping[str, Feature]:
        """Features in use, by name: all, or all but behaviour when that is switched off."""
        return {
            name: feature
            for name, feature in self.all_features.items()
            if self.behaviour or not isinstance(feature, Behaviour)
        }

    @property
    def behaviour_features(self) -> Mapping[str, Behaviour]:
        """The features in use that are computed from what came before."""
        return {name: feature for name, feature in self.features.items() if isinstance(feature, Behaviour)}

    @property
    def feature_columns(self) -> tuple[str, ...]:
        """Raw columns that features in use read, each once, in feature order."""
        columns = (feature.column for feature in self.features.values() if not isinstance(feature, Behaviour))
        return tuple(dict.fromkeys(columns))

    @property
    def raw_columns(self) -> tuple[str, ...]:
        """Raw columns of the impression table that examples carry, each once."""
        columns = self.columns
        roles = (
            *columns.key,
            columns.user,
            columns.item,
            columns.time,
            columns.position,
            self.scenario.column,
        )
        return tuple(dict.fromkeys(name for name in (*roles, *self.feature_columns) if name is not None))

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything the contract says, in canonical JSON."""
        content = self.model_dump(mode="json", by_alias=True)
        # Order carries meaning for scenarios, tasks and features, so keys are not sorted.
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    @property
    def time_reasons(self) -> tuple[str, ...]:
        """What needs a time column, by name; empty when nothing does."""
        parts = {alias: getattr(self, name) for name, alias in _field_aliases()}
        return tuple(time_reasons(parts))

    @property
    def requires_time(self) -> bool:
        """Whether anything in the contract needs to know when a row happened."""
        return bool(self.time_reasons)

    def scenario_index(self, value: object) -> int | None:
        """Index of the scenario a raw value belongs to, ``None`` for an unknown one."""
        for index, values in enumerate(self.scenario.values.values()):
            if values.matches(value):
                return index
        return None

    def shared_feature(self, history: History) -> str:
        """Name of the categorical feature whose column and vocabulary a history shares."""
        name = shared_feature(history, self.columns.item, self.all_features)
        assert name is not None, "checked when the contract was read"
        return name

    def history_column(self, history: History) -> str:
        """Raw column a history collects."""
        feature = self.all_features[self.shared_feature(history)]
        assert isinstance(feature, Categorical)
        return feature.column


def load_contract(path: str | Path, overrides: Sequence[str] = ()) -> Contract:
    """Read and check a contract.

    Args:
        path: YAML file, see ``conf/contracts/movielens.yml``.
        overrides: ``"split.method=random"``, ``"behaviour=false"`` and the like.

    Raises:
        ContractError: Every fault, one line each.
    """
    try:
        mapping, faults = with_overrides(read_yaml(path), overrides)
    except ConfigError as error:
        raise ContractError(error.faults) from None
    try:
        contract = to_contract(mapping, str(path))
    except ContractError as error:
        raise ContractError(faults + error.faults) from None
    if faults:
        raise ContractError(faults)
    return contract


def to_contract(mapping: Mapping[str, Any], where: str = "contract") -> Contract:
    """Check a mapping of plain values as a contract.

    Raises:
        ContractError: Every fault, one line each, also those between parts of which some are faulty.
    """
    try:
        return Contract.model_validate(dict(mapping))
    except ValidationError as error:
        faults = faults_of(Contract, mapping, error, where)
        faults += [fault for fault in cross_faults(_readable_parts(mapping), mapping) if fault not in faults]
        raise ContractError(faults) from None


def _field_aliases() -> list[tuple[str, str]]:
    return [(name, field.alias or name) for name, field in Contract.model_fields.items()]


def _readable_parts(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a faulty contract that can be read, so that faults between them are found too."""
    sections: dict[str, Any] = {
        "source": Source, "columns": Columns, "scenario": Scenario, "split": Split, "behaviour": bool,
        "tasks": Task, "features": Annotated[Feature, Field(discriminator="kind")],
    }  # fmt: skip
    parts: dict[str, Any] = {}
    for name, schema in sections.items():
        given = mapping.get(name)
        adapter: TypeAdapter[Any] = TypeAdapter(schema)
        if name in ("tasks", "features"):
            entries = given.items() if isinstance(given, Mapping) else ()
            parts[name] = {
                key: part for key, value in entries if (part := _readable(adapter, value)) is not None
            }
        elif (part := _readable(adapter, given)) is not None:
            parts[name] = part
    return parts


def _readable(adapter: TypeAdapter[Any], value: Any) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError:
        return None
