"""Routed experts: groups of gated perceptrons, each on the rows that are sent to it, as one compiled operation.

Shape letters in this file:
    B  rows in the batch     E  perceptrons of all groups     I  width of a group's input
    P  pieces                O  width of a layer              H  width of an answer
    G  groups                N  gates of a group              C  blocks of the result
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hinet_model.nn.native import library
from hinet_model.nn.routing import segments_of

_LEVELS = 2**32


@dataclass(frozen=True)
class ExpertGroups:
    """Which perceptrons, and which gates, belong together.

    Args:
        table: Of each group: first perceptron, how many, first gate score, how many, first column of its input in a
            row. ``(G, 5)`` int64
        places: Of each gate score of each group: gate times perceptrons of the group, plus the perceptron's place.
            int64
        num_gates: Gates of each group.
    """

    table: Tensor
    places: Tensor
    num_gates: int

    @classmethod
    def of(
        cls, members: Sequence[Sequence[Sequence[bool]]], columns: Sequence[int] | None = None
    ) -> ExpertGroups:
        """The groups of consecutive perceptrons.

        Args:
            members: Of each group and gate, whether it chooses among each of the group's perceptrons.
            columns: First column of each group's input; all read a row from its start if not given.
        """
        table, places = [], []
        first = first_score = 0
        for group, bank in enumerate(members):
            count = len(bank[0])
            chosen = [
                gate * count + k for gate, row in enumerate(bank) for k, member in enumerate(row) if member
            ]
            table.append((first, count, first_score, len(chosen), columns[group] if columns else 0))
            places += chosen
            first += count
            first_score += len(chosen)
        return cls(_int64(table), _int64(places), len(members[0]))


def can_route(rows: Tensor) -> bool:
    """Whether these rows can go through `routed_experts`: on a CPU, in fp32 or fp64, where it could be compiled.

    `torch.compile` sees nothing of the operation, so a model that is under it does without.
    """
    return (
        rows.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and rows.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and library.wanted()
    )


def routed_experts(
    rows: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    gate_weight: Tensor | None,
    mix: Tensor | None,
    groups: ExpertGroups,
    pieces: Tensor,
    num_blocks: int,
    dropout: float = 0.0,
    relu_last: bool = True,
) -> Tensor:
    """Send rows through groups of perceptrons, weigh the answers by gates, and sum them where they are wanted.

    The result of a row is the sum over the pieces that hold it: ``gate(row) . answers(row)`` of the piece's group,
    times an entry of ``mix`` where the piece names one, in the piece's block.

    Args:
        rows: ``(B, ...)``; a group reads ``I`` columns of it.
        layers: Weights ``(E, O, I)`` and biases ``(E, O)`` of each layer.
        gate_weight: One row per gate score, group by group and gate by gate; None trusts all members of a gate
            equally.
        mix: Weights of sums, any shape; the gradient flows into it.
        groups: Who belongs together.
        pieces: Group, first row, last plus one, block, place in ``mix`` (-1: as it is), sorted by group and then by
            row; no row twice in one group. ``(P, 5)`` int64
        num_blocks: Blocks ``C`` of a result.
        dropout: Rate of dropout after each ReLU; 0 where the model is not training.
        relu_last: Whether the last layer too is followed by ReLU and dropout.

    Returns:
        ``(B, C, N, H)``; zero where no piece has anything to say.
    """
    cut = round(dropout * _LEVELS)
    seed = int(torch.randint(2**62, ())) if cut else 0
    weights, biases = [weight for weight, _ in layers], [bias for _, bias in layers]
    options = (groups.num_gates, num_blocks, cut, seed, relu_last)
    result: Tensor = _RoutedExperts.apply(  # type: ignore[no-untyped-call]
        rows.contiguous(), gate_weight, mix, groups.table, pieces, groups.places, options, *weights, *biases
    )
    return result.view(len(rows), num_blocks, groups.num_gates, weights[-1].shape[1])


class _RoutedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        gate_weight: Tensor | None,
        mix: Tensor | None,
        table: Tensor,
        pieces: Tensor,
        places: Tensor,
        options: tuple[int, int, int, int, bool],
        *parameters: Tensor,
    ) -> Tensor:
        depth = len(parameters) // 2
        weights, biases = parameters[:depth], parameters[depth:]
        flat = None if mix is None else mix.reshape(-1)
        kept = any(ctx.needs_input_grad)
        result: Tensor
        result, *saved = torch.ops.hinet.routed_experts(
            rows, weights, biases, gate_weight, flat, table, pieces, places, *options, kept
        )
        ctx.options, ctx.depth = options, depth
        ctx.save_for_backward(rows, gate_weight, mix, table, pieces, places, *parameters, *saved)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, gate_weight, mix, table, pieces, places, *others = ctx.saved_tensors
        weights, biases = others[: ctx.depth], others[ctx.depth : 2 * ctx.depth]
        sums, gates, *hidden = others[2 * ctx.depth :]
        flat = None if mix is None else mix.reshape(-1)
        given = (weights, biases, gate_weight, flat, table, pieces, places, *ctx.options)
        grad_rows, grad_gate, grad_mix, *grads = torch.ops.hinet.routed_experts_backward(
            grad.contiguous(), rows, *given, sums, gates, hidden
        )
        return (
            grad_rows,
            None if gate_weight is None else grad_gate,
            None if mix is None else grad_mix.view(mix.shape),
            None,
            None,
            None,
            None,
            *grads,
        )


def scenario_pieces(scenario_counts: Sequence[int]) -> Tensor:
    """The pieces of groups of which each scenario has one: its rows, as they are, in the only block."""
    return tower_pieces(scenario_counts, num_tasks=1)


def tower_pieces(scenario_counts: Sequence[int], num_tasks: int) -> Tensor:
    """The pieces of groups of which each scenario has one per task: its rows, as they are, in the task's block."""
    return _int64(
        [
            (scenario * num_tasks + task, start, stop, task, -1)
            for scenario, start, stop in segments_of(scenario_counts)
            for task in range(num_tasks)
        ]
    )


def _int64(rows: Sequence[Any]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64)
