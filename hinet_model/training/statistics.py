"""Step statistics: what a step measures, side by side in the vector that is summed over the workers with the gradients.

    loss | workers that wish to stop | rows | loss sums (M x N) | what labels weigh (M x N) |
    workers that wish a checkpoint | workers that still write one | moments of normalisations

Shape letters in this file:
    M  scenarios   N  tasks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hinet_model.data.batch import Batch
from hinet_model.nn.normalisation import ScenarioNorm
from hinet_model.objective.losses import label_weights

_LOSS, _STOP, _ROWS, _CELLS = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a worker tells all others with a step, so that all of them know it after the same one.

    Args:
        stop: It was asked to stop.
        checkpoint: It is time for a checkpoint.
        writing: Its part of a checkpoint is not on storage yet.
    """

    stop: bool = False
    checkpoint: bool = False
    writing: bool = False


@dataclass(frozen=True, slots=True)
class StepMeasures:
    """What one step measured over the whole global batch.

    Args:
        loss: Its loss.
        wishes: What some worker or other wished.
        sums: What an epoch adds up (`StepStatistics.num_summed`), on the host, float64.
    """

    loss: float
    wishes: Wishes
    sums: Tensor


class StepStatistics:
    """Knows where everything stands in the vector.

    Args:
        num_scenarios: Scenarios ``M``.
        num_tasks: Tasks ``N``.
        norms: The model's normalisations, whose moments move by the global batch's sums.
    """

    def __init__(self, num_scenarios: int, num_tasks: int, norms: Sequence[ScenarioNorm] = ()) -> None:
        self.num_scenarios, self.num_tasks, self._norms = num_scenarios, num_tasks, list(norms)
        self._num_cells = num_scenarios * num_tasks
        self.num_summed = _CELLS + 2 * self._num_cells
        self._moments = self.num_summed + 2
        self.size = self._moments + sum(norm.num_statistics for norm in self._norms)

    def write(self, vector: Tensor, batch: Batch, loss: Tensor, cells_MN: Tensor, wishes: Wishes) -> None:
        """Write down this rank's part of a step, all but the moments."""
        vector[_LOSS] = loss.detach()
        vector[_STOP] = float(wishes.stop)
        vector[self.num_summed] = float(wishes.checkpoint)
        vector[self.num_summed + 1] = float(wishes.writing)
        vector[_ROWS] = batch.num_rows
        vector[_CELLS : _CELLS + self._num_cells] = cells_MN.detach().reshape(-1)
        labels_MN = cells_MN.new_zeros(self.num_scenarios, self.num_tasks)
        labels_MN.index_add_(0, batch.scenario_index, label_weights(batch).to(cells_MN.dtype))
        vector[_CELLS + self._num_cells : self.num_summed] = labels_MN.reshape(-1)

    def write_moments(self, vector: Tensor) -> None:
        """Write down what this rank's batch adds to the moments of the normalisations."""
        if self._norms:
            vector[self._moments :] = torch.cat([norm.statistics() for norm in self._norms])

    def update_norms(self, vector: Tensor) -> None:
        """Move the running moments by the whole global batch's sums."""
        start = self._moments
        for norm in self._norms:
            norm.update_statistics(vector[start : start + norm.num_statistics])
            start += norm.num_statistics

    def measures(self, vector: Tensor, loss: float | None = None) -> StepMeasures:
        """What the summed vector says; ``loss`` where it is another than the vector's.

        The sums are a copy: a view would keep the moments of every step in memory for as long as its numbers.
        """
        sums = vector[: self.num_summed].clone()
        summed_loss, stop = sums[: _STOP + 1].tolist()
        save, writing = vector[self.num_summed : self._moments].tolist()
        if loss is None:
            loss = summed_loss
        else:
            sums[_LOSS] = loss
        return StepMeasures(loss, Wishes(stop > 0, save > 0, writing > 0), sums)

    def loss_of(self, vector: Tensor) -> float:
        """The summed loss."""
        return float(vector[_LOSS])

    def rows(self, sums: Tensor) -> int:
        """Rows that were summed over."""
        return int(sums[_ROWS])

    def cell_sums(self, sums: Tensor) -> Tensor:
        """Sums of the cross-entropies. ``(M, N)``"""
        return sums[_CELLS : _CELLS + self._num_cells].reshape(self.num_scenarios, self.num_tasks)

    def label_sums(self, sums: Tensor) -> Tensor:
        """What the labels of each scenario and task weigh together: their number, where rows have no weights.

        ``(M, N)``
        """
        labels = sums[_CELLS + self._num_cells : _CELLS + 2 * self._num_cells]
        return labels.reshape(self.num_scenarios, self.num_tasks)

    def cell_means(self, sums: Tensor) -> npt.NDArray[np.float64]:
        """Mean cross-entropy of each scenario and task; NaN for one without labels. ``(M, N)``"""
        means: npt.NDArray[np.float64] = (self.cell_sums(sums) / self.label_sums(sums)).numpy()
        return means
