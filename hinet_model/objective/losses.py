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
    settings: LossSettings,
    scenarios: Sequence[str],
    tasks: Sequence[str],
    scenario_rows: Sequence[int],
    whole: Sequence[float] | None = None,
    trained: Sequence[float] | None = None,
) -> LossWeights:
    """The configured weights, by position.

    Args:
        settings: Section ``loss``.
        scenarios: Names of the scenarios.
        tasks: Names of the tasks.
        scenario_rows: Rows of the training split per scenario.
        whole: What its rows weigh together before negatives are sampled: what the scenarios' proportions are
            of. The rows where left out.
        trained: What its rows weigh together as they are trained on. The rows where left out.

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
        alphas=scenario_alphas(settings.scheme, _trained_on(whole, trained, scenario_rows), fixed),
        row_factors=scenario_weights(settings.scheme, scenario_rows, fixed, whole, trained),
        tasks=tuple(settings.task_weights.get(task, 1.0) for task in tasks),
    )


def scenario_shares(scenario_rows: Sequence[float]) -> tuple[float, ...]:
    """Each scenario's share of the training rows, or of what they weigh, in [0, 1].

    Raises:
        ValueError: There are no rows, or a negative number of them.
    """
    total = sum(scenario_rows)
    if total <= 0 or min(scenario_rows) < 0:
        raise ValueError(f"no shares of {list(scenario_rows)} rows; expected counts with a positive sum")
    return tuple(rows / total for rows in scenario_rows)


def scenario_alphas(
    scheme: str, scenario_rows: Sequence[float], fixed: Sequence[float] = ()
) -> tuple[float, ...]:
    """Weights alpha_i of the scenarios' mean losses; they sum to 1 and are what a run logs.

    Args:
        scheme: proportion: a scenario's share of the training rows; sqrt: the root of that share, scaled;
            uniform: 1/M for every scenario (that has rows); fixed: as given.
        scenario_rows: Rows of the training split per scenario, or what they weigh together.
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
    scheme: str,
    scenario_rows: Sequence[int],
    fixed: Sequence[float] = (),
    whole: Sequence[float] | None = None,
    trained: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """Factor alpha_i / p_i of each row of scenario i, with p_i its share of the training rows.

    Under proportion it is 1 for every row: rows sampled as they come already carry the proportions. Under
    uniform it is 1 / (M p_i). A scenario without training rows has factor 0.

    Where rows have weights, p_i is what a scenario's rows weigh together over the number of all rows, so that
    the loss is made of each scenario's weighted mean, whatever the weights sum to. Where negatives are
    sampled, alpha_i is of what the rows weigh before that; under proportion a scenario that lost more rows
    than others gets a factor above theirs.

    Args:
        scheme: As in `scenario_alphas`.
        scenario_rows: Rows of the training split per scenario.
        fixed: As in `scenario_alphas`.
        whole: What they weigh before negatives are sampled; the rows where left out.
        trained: What they weigh as they are trained on; the rows where left out.
    """
    total = sum(scenario_rows)
    alphas = scenario_alphas(scheme, _trained_on(whole, trained, scenario_rows), fixed)
    shares = [weight / total for weight in trained or scenario_rows] if total else [0.0] * len(alphas)
    return tuple(alpha / share if share else 0.0 for alpha, share in zip(alphas, shares, strict=True))


def _trained_on(
    whole: Sequence[float] | None, trained: Sequence[float] | None, scenario_rows: Sequence[int]
) -> list[float]:
    """What scenarios weigh before sampling, 0 for one that nothing is left of."""
    pairs = zip(whole or scenario_rows, trained or scenario_rows, strict=True)
    return [weight if left > 0 else 0 for weight, left in pairs]


def label_weights(batch: Batch) -> Tensor:
    """What each label of a batch weighs: the weight of its row, 0 where there is no label. ``(B, N)``."""
    known_BN = (batch.labels >= 0).to(batch.labels.dtype)
    return known_BN if batch.row_weights is None else known_BN * batch.row_weights.unsqueeze(1)


class MultiTaskLoss(nn.Module):
    """Weighted cross-entropy of a batch, as its part of the global batch's mean.

    ``L = 1/R sum_r sum_j w_s(r) beta_j v_rj BCE_rj`` over the ``R`` rows of the GLOBAL batch: the parts of all
    workers simply add up, a scenario that is absent adds zero, and a row enters its own scenario's loss only.
    ``v_rj`` is the row's own weight, 1 where rows have none, and 0 where the row has no label of the task:
    what is not there adds zero and leaves ``R`` alone, so that a label weighs the same in any batch.
    With a calibrator ``lambda max(p_rj - p_r(j-1), 0)`` is added to the ``BCE_rj`` of every task but the first,
    in rows that have the labels of both.

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
            The scalar loss, with a gradient, and the sums of BCE over the labels of each scenario and task,
            by the rows' own weights alone, ``(M, N)`` without a gradient.
        """
        label_weight_BN = label_weights(batch)
        label_BN = batch.labels.clamp(min=0.0)
        bce_BN = F.binary_cross_entropy_with_logits(logits_BN, label_BN, reduction="none") * label_weight_BN
        cells_MN = bce_BN.new_zeros(self.num_scenarios, bce_BN.shape[1])
        cells_MN.index_add_(0, batch.scenario_index, bce_BN.detach())
        if self.calibrator_weight:
            prob_BN = torch.sigmoid(logits_BN)
            excess_BN = F.pad((prob_BN[:, 1:] - prob_BN[:, :-1]).relu(), (1, 0))
            excess_BN = excess_BN * F.pad(
                torch.minimum(label_weight_BN[:, 1:], label_weight_BN[:, :-1]), (1, 0)
            )
            bce_BN = bce_BN + self.calibrator_weight * excess_BN
        if self.weighted:
            bce_BN = bce_BN * self.weight_MN.index_select(0, batch.scenario_index)
        if task_factors is not None:
            bce_BN = bce_BN * task_factors
        return bce_BN.sum() / max(batch.global_rows, 1), cells_MN

    def task_losses(self, cells_MN: Tensor, labels_N: Tensor | float) -> Tensor:
        """Weighted mean BCE of each task's labels over a global batch or epoch, ``(N,)`` float64 on the host.

        0 for a task without labels.

        Args:
            cells_MN: Sums of BCE per scenario and task, over all workers, on the host.
            labels_N: What the labels that they were summed over weigh together.
        """
        sums_N = (cells_MN.double() * self._host_weight_MN).sum(dim=0)
        label_N = torch.as_tensor(labels_N, dtype=torch.float64)
        return torch.where(label_N > 0, sums_N / label_N, 0.0)
