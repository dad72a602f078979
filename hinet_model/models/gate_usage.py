"""Gate usage: how a model's gates spread their trust over the experts, scenario by scenario and task by task.

A gate that listens to one expert alone, or an expert that no row listens to, is capacity paid for and not used. What a
gate says depends on the row, so rows are needed; a few hundred of each scenario will do.

Shape letters in this file:
    B  rows of one scenario   G  gates of a bank   W  places for experts   K  experts that a gate chooses among
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from hinet_model.data.batch import BatchLayout
from hinet_model.models.hmoe import HMoE
from hinet_model.models.model import ScenarioModel
from hinet_model.models.ple import ControlLevel
from hinet_model.models.separate import SeparateModels
from hinet_model.nn.expert_group import ScenarioExtractors
from hinet_model.nn.gate import SoftmaxGates
from hinet_model.nn.native import library

_DEAD_SHARE = 0.1


@dataclass(frozen=True)
class GateUsage:
    """What one gate made of the rows of one scenario.

    Attributes:
        scenario: Whose rows.
        layer: Where the gate stands in the model: path of its module.
        gate: What it serves: a task, ``all tasks``, ``shared`` or ``own`` (the shared and the scenario's extractor).
        rows: Rows that it was asked about.
        weights: Mean weight of each of its ``K`` experts, summing to 1.
        entropy: Mean over rows of the weights' entropy, as a share of ``log K``: 1 trusts all alike, 0 one alone;
            ``None`` where there is one expert.
    """

    scenario: str
    layer: str
    gate: str
    rows: int
    weights: tuple[float, ...]
    entropy: float | None

    @property
    def dead(self) -> tuple[int, ...]:
        """Places, from 0, of the experts with a mean weight below ``1 / (10 K)``."""
        least = _DEAD_SHARE / len(self.weights)
        return tuple(place for place, weight in enumerate(self.weights) if weight < least)


def gate_usage(
    model: ScenarioModel, layout: BatchLayout, columns: Mapping[str, npt.NDArray[Any]]
) -> tuple[GateUsage, ...]:
    """Run some rows through a model and watch its gates.

    Args:
        model: In evaluation mode. Gates that are switched off, and models without any, have nothing to show.
        layout: Of the model's input.
        columns: Encoded rows, such as `Scorer.encode` gives; a scenario without rows is left out.
    """
    gates = {
        name: module for name, module in model.named_modules()
        if isinstance(module, SoftmaxGates) and module.enabled
    }  # fmt: skip
    found: list[GateUsage] = []
    if not gates:
        return ()
    for index, scenario in enumerate(layout.scenario_names):
        of_scenario = columns["scenario_index"] == index
        if not of_scenario.any():
            continue
        batch, _ = layout.to_batch({name: column[of_scenario] for name, column in columns.items()})
        seen: dict[tuple[str, int], _Seen] = {}
        hooks = [
            module.register_forward_hook(functools.partial(_watch, seen, name), with_kwargs=True)
            for name, module in gates.items()
        ]
        try:
            # Compiled experts weigh without calling the gates' module.
            with torch.inference_mode(), library.left_out():
                model(batch)
        finally:
            for hook in hooks:
                hook.remove()
        for (name, bank), one in seen.items():
            for gate, label in _served(model, name, bank, index, layout.task_names):
                found.append(one.usage(gate, scenario, name, label.rstrip(": ")))
    return tuple(found)


@dataclass
class _Seen:
    """What a bank of gates has said so far: sums over rows.

    Args:
        members: ``(G, W)``, whose weights are the gate's own.
        weight: ``(G, W)``
        entropy: ``(G,)``
        rows: How many.
    """

    members: Tensor
    weight: Tensor
    entropy: Tensor
    rows: int

    def usage(self, gate: int, scenario: str, layer: str, label: str) -> GateUsage:
        weights = (self.weight[gate] / self.rows)[self.members[gate]].tolist()
        entropy = None
        if len(weights) > 1:
            entropy = float(self.entropy[gate]) / self.rows / math.log(len(weights))
        return GateUsage(scenario, layer, label, self.rows, tuple(weights), entropy)


def _watch(
    seen: dict[tuple[str, int], _Seen], name: str, module: SoftmaxGates,
    args: tuple[Any, ...], kwargs: Mapping[str, Any], weight_BGW: Tensor,
) -> None:  # fmt: skip
    """A forward hook: add up what the bank says of these rows."""
    bank = args[1] if len(args) > 1 else kwargs.get("bank", 0)
    weight = weight_BGW.detach().double()
    entropy = -torch.xlogy(weight, weight).sum(dim=2).sum(dim=0)
    if (name, bank) not in seen:
        members = (module.get_buffer(f"penalty_{bank}") == 0).view(module.shapes[bank])
        seen[name, bank] = _Seen(members, torch.zeros_like(weight[0]), torch.zeros_like(entropy), 0)
    one = seen[name, bank]
    one.weight += weight.sum(dim=0)
    one.entropy += entropy
    one.rows += len(weight)


def _served(
    model: ScenarioModel, name: str, bank: int, scenario: int, tasks: Sequence[str]
) -> Iterator[tuple[int, str]]:
    """The gates of a bank that have a say in this scenario by themselves, and what each serves."""
    owner, _, attribute = name.rpartition(".")
    parent = model.get_submodule(owner)
    gates: SoftmaxGates = model.get_submodule(name)  # type: ignore[assignment]
    of_task = _own_task(model, name, tasks)
    count = gates.shapes[bank][0]
    if isinstance(parent, ScenarioExtractors):
        # All extractors' gates are one bank, or each is its own; with one scenario there is one beside the shared one.
        own = min(scenario + 1, len(parent.counts) - 1)
        for gate in range(count):
            number = gate if count > 1 else bank
            if number in (0, own):
                yield gate, of_task + ("shared" if number == 0 else "own")
    elif isinstance(parent, HMoE) and attribute == "gates":
        yield min(scenario, count - 1), of_task + "own"
    elif isinstance(parent, ControlLevel):
        streams = len(parent.specific[0])
        yield (
            0,
            of_task + ("shared" if attribute == "shared_gates" else _task(tasks, bank % streams, streams)),
        )
    elif count == len(tasks):
        yield from ((gate, tasks[gate]) for gate in range(count))
    else:
        yield from ((gate, of_task or "all tasks") for gate in range(count))


def _task(tasks: Sequence[str], place: int, of: int) -> str:
    return tasks[place] if of == len(tasks) else ""


def _own_task(model: nn.Module, name: str, tasks: Sequence[str]) -> str:
    """``<task>: `` where the gates are of a model that serves one task alone."""
    parts = name.split(".")
    for depth in range(len(parts)):
        owner = model.get_submodule(".".join(parts[:depth]))
        if isinstance(owner, SeparateModels) and owner.by == "per_task":
            return f"{tasks[int(parts[depth + 1])]}: "
    return ""
