"""Losses: how much the rows of each scenario, and the labels of each task, weigh.

Shape letters in this file:
    B  rows in the batch   M  scenarios   N  tasks
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foundation.settings import ConfigError
from hinet_model.config import LossSettings
from hinet_model.data.batch import Batch

_SCHEMES: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "proportion": lambda shares: list(shares),
    "uniform": lambda shares: [float(share > 0) for share in shares],
    "sqrt": lambda shares: [share**0.5 for share in shares],
}
"""Unnormalised weight alpha of each scenario, from the scenarios' shares of the training rows."""


@dataclass(frozen=True)
class LossWeights:
    """What the settings make of the training split.

    Args:
        alphas: Weight of each scenario's mean loss; they sum to 1.
        row_factors: What a row of each scenario is multiplied with, ``alpha_i / p_i``.
        tasks: Weight ``beta_j`` of each task.
    """

    alphas: tuple[float, ...]
    row_factors: tuple[float, ...]
    tasks: tuple[float, ...]


def loss_weights(
    settings: LossSettings, scenarios: Sequence[str], tasks: Sequence[str], scenario_rows: Sequence[int]
) -> LossWeights:
    """The configured weights, by position.

    Raises:
        ConfigError: Names that the data do not have, or scenarios without a fixed weight.
    """
    faults = [
        f"loss.{key}: unknown name '{name}'; expected one of {', '.join(known)}"
        for key, given, known in (
            ("scenario_weights", settings.scenario_weights, scenarios),
            ("task_weights", settings.task_weights, tasks),
        )
        for name in given
        if name not in known
    ]
    if settings.scheme == "fixed":
        missing = [name for name in scenarios if name not in settings.scenario_weights]
        faults += [f"loss.scenario_weights: no weight for '{name}'" for name in missing]
        if not any(settings.scenario_weights.values()):
            faults.append("loss.scenario_weights: all zero; expected one positive weight at least")
    if faults:
        raise ConfigError(faults)
    fixed = [settings.scenario_weights.get(name, 0.0) for name in scenarios]
    return LossWeights(
        alphas=scenario_alphas(settings.scheme, scenario_rows, fixed),
        row_factors=scenario_weights(settings.scheme, scenario_rows, fixed),
        tasks=tuple(settings.task_weights.get(task, 1.0) for task in tasks),
    )


def scenario_shares(scenario_rows: Sequence[int]) -> tuple[float, ...]:
    """Each scenario's share of the training rows, in [0, 1].

    Raises:
        ValueError: There are no rows, or a negative number of them.
    """
    total = sum(scenario_rows)
    if total <= 0 or min(scenario_rows) < 0:
        raise ValueError(f"no shares of {list(scenario_rows)} rows; expected counts with a positive sum")
    return tuple(rows / total for rows in scenario_rows)


def scenario_alphas(
    scheme: str, scenario_rows: Sequence[int], fixed: Sequence[float] = ()
) -> tuple[float, ...]:
    """Weights alpha_i of the scenarios' mean losses; they sum to 1 and are what a run logs.

    Args:
        scheme: proportion: a scenario's share of the training rows; sqrt: the root of that share, scaled;
            uniform: 1/M for every scenario (that has rows); fixed: as given.
        scenario_rows: Rows of the training split per scenario.
        fixed: The weights of ``fixed``, before they are scaled to a sum of 1.

    Raises:
        ValueError: An unknown scheme.
    """
    if scheme == "fixed":
        weights = [weight * (rows > 0) for weight, rows in zip(fixed, scenario_rows, strict=True)]
    elif scheme in _SCHEMES:
        weights = _SCHEMES[scheme](scenario_shares(scenario_rows))
    else:
        raise ValueError(f"unknown loss scheme '{scheme}'; expected one of {', '.join([*_SCHEMES, 'fixed'])}")
    return tuple(weight / sum(weights) for weight in weights)


def scenario_weights(
    scheme: str, scenario_rows: Sequence[int], fixed: Sequence[float] = ()
) -> tuple[float, ...]:
    """Factor alpha_i / p_i of each row of scenario i, with p_i its share of the training rows.

    Under proportion it is 1 for every row: rows sampled as they come already carry the proportions. Under
    uniform it is 1 / (M p_i). A scenario without training rows has factor 0.
    """
    shares = scenario_shares(scenario_rows)
    alphas = scenario_alphas(scheme, scenario_rows, fixed)
    return tuple(alpha / share if share else 0.0 for alpha, share in zip(alphas, shares, strict=True))


class MultiTaskLoss(nn.Module):
    """Weighted cross-entropy of a batch, as its part of the global batch's mean.

    ``L = 1/R sum_r sum_j w_s(r) beta_j BCE_rj`` over the ``R`` rows of the GLOBAL batch: the parts of all
    workers simply add up, a scenario that is absent adds zero, and a row enters its own scenario's loss only.
    With a calibrator ``lambda max(p_rj - p_r(j-1), 0)`` is added to the ``BCE_rj`` of every task but the first.

    Args:
        scenario_row_weights: ``w_i`` per scenario, from `scenario_weights`.
        task_weights: ``beta_j`` per task.
        calibrator_weight: ``lambda``; 0 leaves the calibrator out.

    Source: HiNet (ICDE 2023), loss weighted by the scenarios' proportions, written per row; AITM (KDD 2021),
    behavioural expectation calibrator.
    """

    def __init__(
        self,
        scenario_row_weights: Sequence[float],
        task_weights: Sequence[float],
        calibrator_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_scenarios = len(scenario_row_weights)
        self.task_weights = tuple(task_weights)
        self.calibrator_weight = calibrator_weight
        # With equal weights (the proportion scheme without task weights) nothing needs to be multiplied.
        self.weighted = any(weight != 1.0 for weight in (*scenario_row_weights, *task_weights))
        weight_MN = torch.outer(torch.tensor(scenario_row_weights), torch.tensor(task_weights))
        self.weight_MN: Tensor
        self.register_buffer("weight_MN", weight_MN.float(), persistent=False)
        self._host_weight_MN = weight_MN.double()

    def forward(
        self, logits_BN: Tensor, batch: Batch, task_factors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss and its cells.

        Args:
            logits_BN: A model's answers to the batch.
            batch: The rows, their labels and the rows of the global batch.
            task_factors: What the tasks' losses are multiplied with in this step, beside ``beta_j``; a zero
                leaves a task out. ``(N,)``

        Returns:
            The scalar loss, with a gradient, and the unweighted sums of BCE over the rows of each scenario
            and task, ``(M, N)`` without a gradient.
        """
        bce_BN = F.binary_cross_entropy_with_logits(logits_BN, batch.labels, reduction="none")
        cells_MN = bce_BN.new_zeros(self.num_scenarios, bce_BN.shape[1])
        cells_MN.index_add_(0, batch.scenario_index, bce_BN.detach())
        if self.calibrator_weight:
            prob_BN = torch.sigmoid(logits_BN)
            excess_BN = F.pad((prob_BN[:, 1:] - prob_BN[:, :-1]).relu(), (1, 0))
            bce_BN = bce_BN + self.calibrator_weight * excess_BN
        if self.weighted:
            bce_BN = bce_BN * self.weight_MN.index_select(0, batch.scenario_index)
        if task_factors is not None:
            bce_BN = bce_BN * task_factors
        return bce_BN.sum() / max(batch.global_rows, 1), cells_MN

    def task_losses(self, cells_MN: Tensor, rows: float) -> Tensor:
        """Weighted BCE of each task over a whole global batch or epoch, ``(N,)`` float64 on the host.

        Args:
            cells_MN: Sums of BCE per scenario and task, over all workers, on the host.
            rows: The rows they were summed over.
        """
        return (cells_MN.double() * self._host_weight_MN).sum(dim=0) / max(rows, 1)
