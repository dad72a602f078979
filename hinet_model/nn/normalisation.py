"""Normalisation of the features, such that a row's score never depends on its batch.

Shape letters in this file:
    B  rows in the batch   M  scenarios   D  width of the features
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hinet_model.data.batch import Batch


class RowNorm(nn.Module):
    """Centre and scale each row by itself, then by learned scales and shifts.

    Args:
        dim: Width ``D`` of the features.

    Shape:
        x_BD: ``(B, D)``  ->  ``(B, D)``

    Source: Layer Normalization (2016), equations 3 and 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Start as plain normalisation; ``generator`` is not needed."""
        self.norm.reset_parameters()

    def forward(self, x_BD: Tensor, batch: Batch) -> Tensor:
        normalised: Tensor = self.norm(x_BD)
        return normalised


class ScenarioNorm(nn.Module):
    """Partitioned normalisation: by the mean and variance of the row's scenario, with scales of its own.

    ``(gamma * gamma_p) * (x - mean_p) / sqrt(var_p + eps) + (beta + beta_p)``. Where STAR takes a training
    batch's own moments, this takes the running ones in training too, as they stood before the step: a row
    then scores alike in any batch, on any number of workers, and scenarios with a row or two in a batch are
    no special case. The moments move after the step, by `statistics` summed over all workers.

    Args:
        num_scenarios: Scenarios ``M``.
        dim: Width ``D`` of the features.
        momentum: Share of a step's moments in the running ones, once there were ``1 / momentum`` steps; before,
            the running moments are the plain mean over steps.
        epsilon: Added to the variance.

    Shape:
        x_BD: ``(B, D)``  ->  ``(B, D)``

    Source: STAR (CIKM 2021), section 3.3, equations 3 and 4.
    """

    def __init__(self, num_scenarios: int, dim: int, momentum: float = 0.01, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.num_scenarios, self.dim = num_scenarios, dim
        self.momentum, self.epsilon = momentum, epsilon
        self.scale = nn.Parameter(torch.empty(dim))
        self.shift = nn.Parameter(torch.empty(dim))
        self.scenario_scale = nn.Parameter(torch.empty(num_scenarios, dim))
        self.scenario_shift = nn.Parameter(torch.empty(num_scenarios, dim))
        self.mean: Tensor
        self.variance: Tensor
        self.steps: Tensor
        self.register_buffer("mean", torch.zeros(num_scenarios, dim))
        self.register_buffer("variance", torch.ones(num_scenarios, dim))
        self.register_buffer("steps", torch.zeros(num_scenarios))
        self._seen: Tensor | None = None

    @property
    def num_statistics(self) -> int:
        """Numbers that `statistics` gives."""
        return self.num_scenarios * (1 + 2 * self.dim)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Start as plain normalisation; ``generator`` is not needed."""
        for one in (self.scale, self.scenario_scale):
            nn.init.ones_(one)
        for zero in (self.shift, self.scenario_shift):
            nn.init.zeros_(zero)

    def forward(self, x_BD: Tensor, batch: Batch) -> Tensor:
        scenario = batch.scenario_index
        if self.training:
            self._seen = self._sums(x_BD.detach(), scenario)
        rate = self.scenario_scale * self.scale * (self.variance + self.epsilon).rsqrt()
        offset = self.scenario_shift + self.shift - rate * self.mean
        return torch.addcmul(offset.index_select(0, scenario), x_BD, rate.index_select(0, scenario))

    def _sums(self, x_BD: Tensor, scenario: Tensor) -> Tensor:
        """Rows, sum and sum of squares of each scenario, as ``(M, 1 + 2 D)``."""
        ones = x_BD.new_ones(len(x_BD), 1)
        sums = x_BD.new_zeros(self.num_scenarios, 1 + 2 * self.dim)
        return sums.index_add_(0, scenario, torch.cat([ones, x_BD, x_BD.square()], dim=1))

    def statistics(self) -> Tensor:
        """What the last training batch adds to the moments; add it up over workers. ``(num_statistics,)``"""
        seen, self._seen = self._seen, None
        return self.mean.new_zeros(self.num_statistics) if seen is None else seen.flatten()

    def update_statistics(self, sums: Tensor) -> None:
        """Move the running moments by a global batch's sums; scenarios without rows stay as they are."""
        counts, first, second = torch.split(
            sums.to(self.mean).view(self.num_scenarios, -1), [1, self.dim, self.dim], dim=1
        )
        present = counts > 0
        mean = first / counts.clamp(min=1)
        variance = (second / counts.clamp(min=1) - mean.square()).clamp(min=0)
        self.steps += present.squeeze(1).to(self.steps)
        rate = (1 / self.steps.clamp(min=1)).clamp(min=self.momentum).unsqueeze(1) * present
        self.mean.lerp_(mean, rate)
        self.variance.lerp_(variance, rate)
