"""The whole of a contract: its sections together, and what follows from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from feature_eng.contract.columns import Columns, Scenario, Time
from feature_eng.contract.drift import Drift
from feature_eng.contract.encoding import Encoding
from feature_eng.contract.faults import (
    ROW_KEY,
    ContractError,
    cross_faults,
    shared_feature,
    time_reasons,
)
from feature_eng.contract.features import Behaviour, Categorical, Feature, History
from feature_eng.contract.names import RELATED_EVENTS, stored_name
from feature_eng.contract.related import tables_and_times
from feature_eng.contract.sampling import Sampling
from feature_eng.contract.section import Section
from feature_eng.contract.source import Source
from feature_eng.contract.split import SPLITS, Split
from feature_eng.contract.tasks import Task
from foundation.names import PlainName


class Contract(Section):
    """A checked data contract. Orders of scenarios, tasks and features are the orders everywhere.

    Args:
        behaviour: ``False`` leaves out history, count and rate features as a group.
        weight: Column of the impression that says how much a row weighs in the loss: finite, at least 0.
        sampling: Which negatives training leaves out.
        drift: How far a build may lie from the one before.
        encoder: What a build's encoder keeps of the one before.
    """

    later: ClassVar[frozenset[str]] = frozenset({"weight", "sampling", "drift", "encoder"})

    name: PlainName
    source: Source
    columns: Columns
    scenario: Scenario
    tasks: Annotated[dict[str, Task], Field(min_length=1)]
    all_features: dict[str, Annotated[Feature, Field(discriminator="kind")]] = Field(
        alias="features", min_length=1
    )
    behaviour: bool = True
    split: Split
    weight: str | None = None
    sampling: Sampling | None = None
    drift: Drift | None = None
    encoder: Encoding | None = None

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
    def behaviour_columns(self) -> tuple[str, ...]:
        """The columns that are computed from what came before, in feature order."""
        return tuple(column for name, one in self.behaviour_features.items() for column in one.columns(name))

    @cached_property
    def slots_told(self) -> Mapping[str, str]:
        """Column that tells more of a history's slots -> the history."""
        return {
            column: name for name, one in self.behaviour_features.items() for column in one.columns(name)[1:]
        }

    @property
    def feature_columns(self) -> tuple[str, ...]:
        """Raw columns that features in use read, each once, in feature order."""
        columns = (feature.column for feature in self.features.values() if not isinstance(feature, Behaviour))
        return tuple(dict.fromkeys(columns))

    def entity_column(self, feature: Behaviour) -> str:
        """Raw column by whose values a behaviour feature goes."""
        roles = {"user": self.columns.user, "item": self.columns.item}
        found = roles.get(feature.by, feature.by)
        assert found is not None, "checked when the contract was read"
        return found

    @property
    def entity_columns(self) -> tuple[str, ...]:
        """Raw columns by whose values behaviour features go, each once."""
        return tuple(dict.fromkeys(self.entity_column(one) for one in self.behaviour_features.values()))

    @cached_property
    def related_times(self) -> Mapping[str, Time]:
        """Tables of events beside the impressions, those of labels first, and how the times of each are read."""
        found = tables_and_times({alias: getattr(self, name) for name, alias in _field_aliases()})
        return {table: time for table, time in found.items() if time is not None}

    def events_of(self, table: str) -> str:
        """Name of the table that a raw table's rows are kept in, typed."""
        return "events" if table == self.source.main_table else f"{RELATED_EVENTS}{table}"

    def readers_of(self, table: str) -> Mapping[str, Behaviour]:
        """The behaviour features that are told by rows of a table."""
        main = self.source.main_table
        return {
            name: feature
            for name, feature in self.behaviour_features.items()
            if table in (feature.table or (main,))
        }

    @property
    def key(self) -> tuple[str, ...]:
        """Columns that identify an example: the contract's key, or the one that is made of each row's content."""
        return self.columns.key or (ROW_KEY,)

    @property
    def stored_key(self) -> tuple[str, ...]:
        """The columns of `key` as the tables of events and examples call them."""
        return tuple(stored_name(name) for name in self.key)

    @property
    def stored_user(self) -> str | None:
        """The user's column as these tables call it."""
        return None if self.columns.user is None else stored_name(self.columns.user)

    @property
    def stored_list(self) -> str | None:
        """The column of lists as these tables call it."""
        return None if self.columns.list is None else stored_name(self.columns.list)

    @property
    def raw_columns(self) -> tuple[str, ...]:
        """Raw columns of the impression table that examples carry, each once."""
        columns = self.columns
        roles = (
            *self.key,
            columns.user,
            columns.item,
            columns.time,
            columns.position,
            columns.list,
            self.split.column,
            self.scenario.column,
            self.weight,
        )
        return tuple(
            dict.fromkeys(
                name for name in (*roles, *self.entity_columns, *self.feature_columns) if name is not None
            )
        )

    @cached_property
    def optional_columns(self) -> frozenset[str]:
        """Columns of features that may be left out when scores are asked for; they then are null."""
        readers: dict[str, list[bool]] = {}
        for name, feature in self.features.items():
            own = feature.columns(name) if isinstance(feature, Behaviour) else (feature.column,)
            for column in own:
                readers.setdefault(column, []).append(feature.optional)
        return frozenset(
            name for name, optional in readers.items() if all(optional) and name != self.scenario.column
        )

    @property
    def label_columns(self) -> dict[str, tuple[Task, ...]]:
        """Columns of the impression that labels are made of, each with its tasks."""
        columns = dict.fromkeys(task.column for task in self.tasks.values() if task.column is not None)
        return {name: tuple(task for task in self.tasks.values() if task.column == name) for name in columns}

    @property
    def duration_columns(self) -> tuple[str, ...]:
        """Columns of the impression that say after how many seconds a label is known, each once."""
        columns = (task.known_after_column for task in self.tasks.values())
        return tuple(dict.fromkeys(name for name in columns if name is not None))

    @property
    def has_row_weights(self) -> bool:
        """Whether training rows weigh differently in the loss."""
        corrects = self.sampling is not None and self.sampling.correction == "weights"
        return self.weight is not None or corrects

    @property
    def shifted_task(self) -> str | None:
        """Task whose logit the model corrects when it scores; ``None`` where nothing is to correct."""
        if self.sampling is None or self.sampling.correction != "shift":
            return None
        return self.sampling.task or self.task_names[0]

    @property
    def kept_negatives(self) -> tuple[float, ...]:
        """Share of each scenario's negatives that training keeps."""
        if self.sampling is None:
            return (1.0,) * len(self.scenario_names)
        shares = self.sampling.by_scenario
        return tuple(shares.get(name, self.sampling.keep_negatives) for name in self.scenario_names)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what rows and their labels mean, in canonical JSON.

        Where the tables lie, which versions of them were read, by which seeds rows were drawn, which dates are
        whose split, how far builds may lie apart and which indices values have is told by the build's own record.
        """
        content = self.model_dump(mode="json", by_alias=True)
        for table in content["source"]["tables"].values():
            for name in ("path", "version", "timestamp"):
                table.pop(name, None)
        for name in ("drift", "encoder"):
            content.pop(name, None)
        for section in ("split", "sampling"):
            content.get(section, {}).pop("seed", None)
        for span in SPLITS:  # which dates are whose is a draw of rows too, and moves on from day to day
            content["split"].pop(span, None)
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


def _field_aliases() -> list[tuple[str, str]]:
    return [(name, field.alias or name) for name, field in Contract.model_fields.items()]
