"""Stacked MLPs: many perceptrons of equal widths, computed as one batched product per layer.

Shape letters in this file:
    E  perceptrons in the stack   I  width of a layer's input
    B  rows                       O  width of a layer's output
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hinet_model.nn.dropout import dropout_
from hinet_model.nn.routed_experts import ExpertGroups, routed_experts

Layers = list[tuple[Tensor, Tensor]]
"""Weights ``(E, O, I)`` and biases ``(E, O)`` of each layer."""


def initialise_linear_(weight: Tensor, in_dim: int, generator: torch.Generator) -> None:
    """Fill in place with the uniform distribution on +-1/sqrt(in_dim), as `torch.nn.Linear` starts."""
    bound = 1.0 / math.sqrt(in_dim)
    with torch.no_grad():
        weight.uniform_(-bound, bound, generator=generator)


class StackedMLP(nn.Module):
    """``E`` perceptrons with own parameters and equal widths, ReLU after every layer (the last if asked).

    The layout is [perceptron, row, width] from the first product to the last, and rows that all perceptrons read are
    broadcast, never copied, into one batched product; where there is only one layer, into one plain product.

    Args:
        num_stacked: Number ``E`` of perceptrons.
        in_dim: Width of the rows they read.
        dims: Width of each layer.
        dropout: Rate of dropout after each ReLU.
        relu_last: Whether the last layer too is followed by ReLU and dropout.

    Shape:
        rows: ``(B, I)``, read by all, or ``(E, B, I)``  ->  ``(E, B, O)``
    """

    def __init__(
        self, num_stacked: int, in_dim: int, dims: Sequence[int], dropout: float, relu_last: bool = True
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.relu_last = relu_last
        self.in_dims = [in_dim, *dims[:-1]]
        self.out_dim = dims[-1]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(num_stacked, narrow, wide))
            for wide, narrow in zip(self.in_dims, dims, strict=True)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.empty(num_stacked, narrow)) for narrow in dims)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights and biases anew."""
        for weight, bias, in_dim in zip(self.weights, self.biases, self.in_dims, strict=True):
            initialise_linear_(weight, in_dim, generator)
            initialise_linear_(bias, in_dim, generator)

    def layers(self) -> Layers:
        """The parameters of all perceptrons, layer by layer."""
        return list(zip(self.weights, self.biases, strict=True))

    def split(self, counts: Sequence[int]) -> list[Layers]:
        """The parameters of consecutive groups of perceptrons.

        The parameters stay whole (one tensor per layer for the optimiser and the exchange), and a group
        that is not used gets a gradient of zero, not none: it is the same on every worker.
        """
        weights = [weight.split(list(counts)) for weight in self.weights]
        biases = [bias.split(list(counts)) for bias in self.biases]
        return [
            [(weight[group], bias[group]) for weight, bias in zip(weights, biases, strict=True)]
            for group in range(len(counts))
        ]

    def route(
        self,
        rows: Tensor,
        groups: ExpertGroups,
        pieces: Tensor,
        num_blocks: int,
        gate_weight: Tensor | None = None,
        mix: Tensor | None = None,
    ) -> Tensor:
        """The perceptrons as `routed_experts`, which says what is given and returned."""
        dropout = self.dropout if self.training else 0.0
        result: Tensor = routed_experts(
            rows, self.layers(), gate_weight, mix, groups, pieces, num_blocks, dropout, self.relu_last
        )
        return result

    def forward(self, rows: Tensor, layers: Layers | None = None) -> Tensor:
        layers = self.layers() if layers is None else layers
        num_stacked = layers[0][0].shape[0]
        if rows.dim() == 2 and len(layers) == 1:
            return self._one_product(rows, *layers[0])
        hidden = rows
        for depth, (weight_EOI, bias_EO) in enumerate(layers):
            input_EBI = hidden if hidden.dim() == 3 else hidden.expand(num_stacked, -1, -1)
            hidden = torch.baddbmm(bias_EO.unsqueeze(1), input_EBI, weight_EOI.transpose(1, 2))
            if self.relu_last or depth < len(layers) - 1:
                hidden = dropout_(hidden, self.dropout, self.training, relu=True)
        return hidden

    def _one_product(self, rows: Tensor, weight_EOI: Tensor, bias_EO: Tensor) -> Tensor:
        """One layer of all perceptrons on rows that all read: so is the gradient of the rows one product."""
        wide = torch.addmm(bias_EO.flatten(), rows, weight_EOI.flatten(0, 1).t())
        if self.relu_last:
            wide = dropout_(wide, self.dropout, self.training, relu=True)
        return wide.view(len(rows), *bias_EO.shape).transpose(0, 1)
