"""From a configuration to a model: names become plain integers here, and nowhere else."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from feature_eng.settings import ConfigError
from hinet_model.batch import BatchLayout
from hinet_model.config import ModelSettings
from hinet_model.models.hinet import HiNet, HiNetSizes
from hinet_model.nn.embedding import FusedEmbedding


def build_model(settings: ModelSettings, layout: BatchLayout, seed: int) -> HiNet:
    """Build the configured model with initial weights that depend on ``seed`` alone.

    The global random state is neither read nor changed.

    Args:
        settings: The `model` section of a run's settings.
        layout: The data's features, scenarios and tasks.
        seed: Seeds the initial weights.

    Raises:
        ConfigError: An unknown model, or counts that do not fit the data's scenarios and tasks; all
            faults at once.
    """
    if settings.name not in REGISTRY:
        raise ConfigError([_unknown("model.name", settings.name, list(REGISTRY))])
    model = REGISTRY[settings.name](settings, layout)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model


def build_embedding(settings: ModelSettings, layout: BatchLayout) -> FusedEmbedding:
    """The fused embedding of a layout's fields."""
    spans = [(field.positions[0], field.positions[-1] + 1) for field in layout.slot_fields]
    return FusedEmbedding(
        layout.num_embeddings,
        settings.embedding_dim,
        spans,
        [field.pooled for field in layout.slot_fields],
        layout.num_numbers,
        settings.embedding_std,
    )


def hinet_sizes(settings: ModelSettings, scenarios: Sequence[str], tasks: Sequence[str]) -> HiNetSizes:
    """Translate counts per name into counts per position.

    Raises:
        ConfigError: Names that are missing, or that the data do not have.
    """
    faults: list[str] = []
    sub_experts = _counts("model.sub_experts", settings.sub_experts, ("shared", *scenarios), faults)
    shared = _counts("model.shared_experts", settings.shared_experts, scenarios, faults)
    specific = _specific(settings.specific_experts, scenarios, tasks, faults)
    if faults:
        raise ConfigError(faults)
    return HiNetSizes(
        sub_experts=sub_experts,
        sub_expert_dims=tuple(settings.sub_expert_dims),
        shared_experts=shared,
        specific_experts=specific,
        expert_dims=tuple(settings.expert_dims),
        tower_dims=tuple(settings.tower_dims),
        scenario_embedding_dim=settings.scenario_embedding_dim,
        gates=settings.gates,
        hierarchy=settings.hierarchy,
        scenario_attention=settings.scenario_attention == "full",
        input_dropout=settings.input_dropout,
        dropout=settings.dropout,
        expert_dropout=settings.expert_dropout,
        tower_dropout=settings.tower_dropout,
    )


def _build_hinet(settings: ModelSettings, layout: BatchLayout) -> HiNet:
    sizes = hinet_sizes(settings, layout.scenario_names, layout.task_names)
    return HiNet(build_embedding(settings, layout), sizes)


REGISTRY: dict[str, Callable[[ModelSettings, BatchLayout], HiNet]] = {"hinet": _build_hinet}
"""Model builders by name. A new model is one file, one line here and its keys in the settings."""


def num_parameters(model: nn.Module) -> int:
    """How many numbers a model learns, its embedding table included."""
    return sum(parameter.numel() for parameter in model.parameters())


def _specific(
    value: int | Mapping[str, int | dict[str, int]],
    scenarios: Sequence[str],
    tasks: Sequence[str],
    faults: list[str],
) -> tuple[tuple[int, ...], ...]:
    """Specific experts per scenario and task, from one count, a map of tasks, or scenarios of those."""
    where = "model.specific_experts"
    if isinstance(value, int):
        return ((value,) * len(tasks),) * len(scenarios)
    if set(value) & set(scenarios) and not set(value) <= set(tasks):
        faults.extend(_name_faults(where, value, scenarios))
        return tuple(_counts(f"{where}.{name}", value.get(name, 1), tasks, faults) for name in scenarios)
    nested = [
        f"{where}.{name}: a mapping; expected a count"
        for name, count in value.items()
        if isinstance(count, dict)
    ]
    if nested and set(value) <= set(tasks):
        faults.extend(nested)
        return ()
    if nested:
        faults.extend(_name_faults(where, value, scenarios))
        return ()
    flat = {name: count for name, count in value.items() if isinstance(count, int)}
    return (_counts(where, flat, tasks, faults),) * len(scenarios)


def _counts(
    where: str, value: int | Mapping[str, int], names: Sequence[str], faults: list[str]
) -> tuple[int, ...]:
    """One count per name, from one for all or a complete mapping; what is wrong is added to ``faults``."""
    if isinstance(value, int):
        return (value,) * len(names)
    faults.extend(_name_faults(where, value, names))
    return tuple(value.get(name, 1) for name in names)


def _name_faults(where: str, value: Mapping[str, object], names: Sequence[str]) -> list[str]:
    unknown = [_unknown(f"{where}.{name}", name, names) for name in value if name not in names]
    missing = [f"{where}: no count for '{name}'" for name in names if name not in value]
    return unknown + missing


def _unknown(where: str, name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"{where}: unknown name '{name}'; expected one of {', '.join(names)}{hint}"
