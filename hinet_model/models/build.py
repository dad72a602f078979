"""From a configuration to a model: names become plain integers here and in each model's ``_build``, nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from foundation.settings import ConfigError
from hinet_model.data.batch import BatchLayout
from hinet_model.models import registry
from hinet_model.models.counts import unknown_name
from hinet_model.models.ctcvr import CtcvrProduct
from hinet_model.models.features import build_embedding
from hinet_model.models.matching import matching_widths, yardstick
from hinet_model.models.model import ScenarioModel
from hinet_model.models.sampled import SampledNegatives
from hinet_model.models.separate import SeparateModels
from hinet_model.models.settings import ModelSettings, network_keys
from hinet_model.nn.row_shard import WHOLE, RowShard


def build_model(
    settings: ModelSettings, layout: BatchLayout, seed: int, shard: RowShard = WHOLE
) -> ScenarioModel:
    """Build the configured model with initial weights that depend on ``seed`` alone.

    The global random state is neither read nor changed.

    Args:
        settings: The `model` section of a run's settings.
        layout: The data's features, scenarios and tasks.
        seed: Seeds the initial weights.
        shard: Rows of the embedding table that this worker holds; their weights are those of the whole table.

    Raises:
        ConfigError: Names and counts that do not fit the data's scenarios and tasks.
    """
    _check_names(settings, layout)
    if settings.match_parameters is not None:
        settings = _matched(settings, layout)
    model = _assembled(settings, layout, shard)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model


def num_parameters(model: nn.Module) -> int:
    """How many numbers a model learns, its embedding table included."""
    return sum(parameter.numel() for parameter in model.parameters())


def num_dense_parameters(model: ScenarioModel) -> int:
    """How many numbers a model learns beside its embedding table."""
    return sum(parameter.numel() for parameter in model.dense_parameters())


def _check_names(settings: ModelSettings, layout: BatchLayout) -> None:
    """Refuse names that the data do not have.

    Raises:
        ConfigError: All faults at once.
    """
    faults = _ctcvr_faults(settings, layout.task_names)
    if settings.unknown_scenario is not None and settings.unknown_scenario not in layout.scenario_names:
        faults.append(
            unknown_name("model.unknown_scenario", settings.unknown_scenario, layout.scenario_names)
        )
    if faults:
        raise ConfigError(faults)


def _ctcvr_faults(settings: ModelSettings, tasks: Sequence[str]) -> list[str]:
    pair = {"ctr_task": settings.ctr_task, "ctcvr_task": settings.ctcvr_task}
    if settings.ctcvr == "direct":
        return [f"model.{key}: needs ctcvr: product" for key, task in pair.items() if task is not None]
    faults = [f"model.{key}: missing; ctcvr: product needs it" for key, task in pair.items() if task is None]
    faults += [
        unknown_name(f"model.{key}", task, tasks) for key, task in pair.items() if task and task not in tasks
    ]
    if settings.ctr_task is not None and settings.ctr_task == settings.ctcvr_task:
        faults.append(f"model.ctcvr_task: is '{settings.ctcvr_task}', the ctr_task; expected two tasks")
    return faults


def _assembled(settings: ModelSettings, layout: BatchLayout, shard: RowShard = WHOLE) -> ScenarioModel:
    """The model and what stands around it, its weights not yet drawn."""
    kind = registry.REGISTRY[settings.name]
    # Built in any case: it alone sees, and refuses, counts that do not fit the data's names.
    model = kind.build(settings, layout, build_embedding(settings, layout, shard=shard))
    if settings.joint is not True:
        parts = _parts(layout, settings.joint)
        members = [
            kind.build(
                _restricted(settings, part),
                part,
                build_embedding(settings, part, shard=shard).without_table(),
            )
            for part in parts
        ]
        embedding = build_embedding(settings, layout, len(members), shard)
        model = SeparateModels(embedding, members, settings.joint, layout.num_scenarios)
    if settings.ctcvr == "product":
        assert settings.ctr_task is not None
        assert settings.ctcvr_task is not None
        tasks = layout.task_names
        model = CtcvrProduct(model, tasks.index(settings.ctr_task), tasks.index(settings.ctcvr_task))
    # Last: it corrects what the loss saw, products included.
    return model if layout.sampling is None else SampledNegatives(model, layout.sampling)


def _parts(layout: BatchLayout, by: str) -> list[BatchLayout]:
    if by == "per_scenario":
        return [replace(layout, scenario_names=(name,)) for name in layout.scenario_names]
    return [replace(layout, task_names=(name,)) for name in layout.task_names]


def _restricted(settings: ModelSettings, part: BatchLayout) -> ModelSettings:
    """The same settings, without counts of scenarios and tasks that a separate model does not have."""
    names = {"shared", *part.scenario_names, *part.task_names}

    def kept(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: kept(count) for name, count in value.items() if name in names}

    keys = network_keys(type(settings))
    return settings.model_copy(update={key: kept(getattr(settings, key)) for key in keys})


def _matched(settings: ModelSettings, layout: BatchLayout) -> ModelSettings:
    """The settings with ``expert_dims`` at which the model is as large as its yardstick."""
    small = replace(layout, num_embeddings=0)
    wanted = num_dense_parameters(_assembled(yardstick(settings), small))

    def count(widths: list[int]) -> int:
        return num_dense_parameters(_assembled(settings.model_copy(update={"expert_dims": widths}), small))

    widths = matching_widths(settings.expert_dims, wanted, count)
    return settings.model_copy(update={"expert_dims": widths})
