"""Towers: one small perceptron per (scenario, task), from a task's extract to its logit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hinet_model.nn.block import Block
from hinet_model.nn.mlp import Layers, StackedMLP
from hinet_model.nn.routed_experts import ExpertGroups, can_route, tower_pieces
from hinet_model.nn.routing import pieces_of, segments_of


class TowerGroup(Block):
    """The towers of all scenarios; those of one scenario's tasks are batched products.

    Args:
        num_scenarios: Scenarios M.
        num_tasks: Tasks N.
        in_dim: Width of a task's extract.
        hidden_dims: Hidden widths; the last layer to one logit, without ReLU, is added.
        dropout: Rate of dropout after each hidden layer.

    Shape:
        extract: ``(N, rows, in_dim)``  ->  ``(rows, N)`` logits
    """

    def __init__(
        self, num_scenarios: int, num_tasks: int, in_dim: int, hidden_dims: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.num_scenarios = num_scenarios
        self.num_tasks = num_tasks
        self.towers = StackedMLP(
            num_scenarios * num_tasks, in_dim, [*hidden_dims, 1], dropout, relu_last=False
        )

        groups = [(scenario, task) for scenario in range(num_scenarios) for task in range(num_tasks)]
        self.groups = ExpertGroups.of([[[True]]] * len(groups), [task * in_dim for _, task in groups])

    def split(self) -> list[Layers]:
        """The parameters of each scenario's towers."""
        return self.towers.split([self.num_tasks] * self.num_scenarios)

    def forward(self, extract: Tensor, layers: Layers) -> Tensor:
        """The logits of rows of one scenario.

        Args:
            extract: What the task layer made of the rows, per task.
            layers: That scenario's part of `split`.
        """
        logits: Tensor = self.towers(extract, layers)
        return logits.squeeze(-1).t()

    def route(self, extract_NBH: Tensor, scenario_counts: Sequence[int]) -> Tensor:
        """The logits of a batch, each row by its own scenario's towers. ``(B, N)``

        Args:
            extract_NBH: Per task, what the layers before made of the rows, sorted by scenario.
            scenario_counts: Rows of each scenario.
        """
        if can_route(extract_NBH):
            return self.of_rows(extract_NBH.transpose(0, 1), scenario_counts)
        layers, pieces = self.split(), pieces_of(extract_NBH, scenario_counts, dim=1)
        return torch.cat(
            [self(pieces[scenario], layers[scenario]) for scenario, _, _ in segments_of(scenario_counts)]
        )

    def of_rows(self, extract_BNH: Tensor, scenario_counts: Sequence[int]) -> Tensor:
        """The same as `route` of what stands row by row, as one compiled operation. ``(B, N)``"""
        pieces = tower_pieces(scenario_counts, self.num_tasks)
        return self.towers.route(extract_BNH.flatten(1), self.groups, pieces, self.num_tasks).flatten(1)
