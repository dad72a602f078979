"""Balance: weights of the tasks that move as training goes, computed from sums over all workers.

Each scheme sees only the losses and gradients of the GLOBAL batch, which are the same on every worker, and keeps
its own state by plain arithmetic on the host. So all workers hold the same weights, and they are those of one
worker that has all rows.

Shape letters in this file:
    N  tasks   P  numbers in the gradient of all dense parameters and table rows
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hinet_model.config import LossSettings


class TaskBalance:
    """Task factors of every step, beside the fixed weights ``beta_j``; this one keeps them at 1.

    Schemes override what they move. A task whose loss is 0 (its weight is, or the batch has no label of it) takes
    no part in any of them.
    """

    per_task = False
    """Whether `combine` needs the gradient of each task apart."""

    @property
    def factors(self) -> tuple[float, ...] | None:
        """What the tasks' losses are multiplied with in the next step; None: with 1."""
        return None

    def combine(self, gradients_NP: Tensor, losses_N: Tensor, step: int) -> Tensor:
        """The gradient to step with, ``(P,)``, of the tasks' global gradients and losses at a global step."""
        return gradients_NP.sum(dim=0)

    def after_step(self, losses_N: Tensor) -> None:
        """Take in the global losses of a step."""

    def after_epoch(self) -> None:
        """An epoch has ended; not called where a run stops within one."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` continues from."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""


class PCGrad(TaskBalance):
    """Take from each task's gradient what goes against another task's, then add them up.

    Tasks are gone through in an order that is drawn anew at every step, from the step's number.

    Source: Gradient Surgery for Multi-Task Learning (NeurIPS 2020), algorithm 1.
    """

    per_task = True

    def combine(self, gradients_NP: Tensor, losses_N: Tensor, step: int) -> Tensor:
        """The sum of the projected gradients."""
        num_tasks = len(gradients_NP)
        random = torch.Generator().manual_seed(step)
        squares = gradients_NP.square().sum(dim=1)
        total = torch.zeros_like(gradients_NP[0])
        for task in range(num_tasks):
            projected = gradients_NP[task].clone()
            for other in torch.randperm(num_tasks, generator=random).tolist():
                along = torch.dot(projected, gradients_NP[other])
                if other != task and along < 0:
                    projected -= along / squares[other] * gradients_NP[other]
            total += projected
        return total


class Uncertainty(TaskBalance):
    """Weigh each task by the noise of its labels, which is learned: ``sum_j exp(-s_j) L_j + s_j / 2``.

    ``s_j = log sigma_j^2`` takes a gradient step of its own, on the global loss: ``1/2 - exp(-s_j) L_j``.

    Args:
        num_tasks: Tasks ``N``.
        rate: Size of that step.

    Source: Multi-Task Learning Using Uncertainty to Weigh Losses (CVPR 2018), equation 10, classification.
    """

    def __init__(self, num_tasks: int, rate: float) -> None:
        self.rate = rate
        self.log_variances = [0.0] * num_tasks

    @property
    def factors(self) -> tuple[float, ...] | None:
        """``exp(-s_j)``."""
        return tuple(math.exp(-value) for value in self.log_variances)

    def after_step(self, losses_N: Tensor) -> None:
        """Take the step of ``s``."""
        self.log_variances = [
            value - self.rate * (0.5 - math.exp(-value) * loss) * (loss > 0)
            for value, loss in zip(self.log_variances, losses_N.tolist(), strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """``s``."""
        return {"log_variances": list(self.log_variances)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.log_variances = list(state["log_variances"])


class DynamicWeightAverage(TaskBalance):
    """Weigh tasks whose loss falls slowly more: ``w_j = N softmax(r_j / T)``, ``r_j = L_j(t-1) / L_j(t-2)``.

    Losses are means over an epoch's steps that have labels of the task; the first two epochs weigh all tasks alike.

    Args:
        num_tasks: Tasks ``N``.
        temperature: ``T``.

    Source: End-to-End Multi-Task Learning with Attention (CVPR 2019), equation 7.
    """

    def __init__(self, num_tasks: int, temperature: float) -> None:
        self.num_tasks, self.temperature = num_tasks, temperature
        self.epochs: list[list[float]] = []
        self.sums: list[float] = [0.0] * num_tasks
        self.steps: list[int] = [0] * num_tasks

    @property
    def factors(self) -> tuple[float, ...] | None:
        """The weights of this epoch."""
        if len(self.epochs) < 2:
            return (1.0,) * self.num_tasks
        before, last = (torch.tensor(losses, dtype=torch.float64) for losses in self.epochs)
        weighed = (before > 0) & (last > 0)
        weights = torch.ones_like(before)
        weights[weighed] = weighed.sum() * (last / before / self.temperature)[weighed].softmax(dim=0)
        return tuple(weights.tolist())

    def after_step(self, losses_N: Tensor) -> None:
        """Add up this epoch's losses, and the steps that had any."""
        losses = losses_N.tolist()
        self.sums = [so_far + now for so_far, now in zip(self.sums, losses, strict=True)]
        self.steps = [count + (loss > 0) for count, loss in zip(self.steps, losses, strict=True)]

    def after_epoch(self) -> None:
        """Keep the mean losses of the last two epochs."""
        means = [total / max(count, 1) for total, count in zip(self.sums, self.steps, strict=True)]
        self.epochs = [*self.epochs[-1:], means]
        self.sums, self.steps = [0.0] * self.num_tasks, [0] * self.num_tasks

    def state_dict(self) -> dict[str, Any]:
        """The losses of the last two epochs, and of this one so far."""
        return {
            "epochs": [list(losses) for losses in self.epochs],
            "sums": list(self.sums),
            "steps": list(self.steps),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.epochs = [list(losses) for losses in state["epochs"]]
        self.sums, self.steps = list(state["sums"]), list(state["steps"])


class GradNorm(TaskBalance):
    """Bring the tasks' gradients to norms that go with how fast each task learns.

    ``L_grad = sum_j | w_j ||g_j|| - mean_k(w_k ||g_k||) r_j^alpha |``, with ``r_j`` the task's loss over its first
    one, divided by the mean of these. The weights take a gradient step on it (the mean counts as constant) and are
    scaled to a sum of ``N``. The norm is that of the gradient of all parameters: models differ in what they share.

    Args:
        num_tasks: Tasks ``N``.
        rate: Step of the weights.
        alpha: Strength of the pull.

    Source: GradNorm: Gradient Normalization for Adaptive Loss Balancing (ICML 2018), algorithm 1.
    """

    per_task = True

    def __init__(self, num_tasks: int, rate: float, alpha: float) -> None:
        self.rate, self.alpha = rate, alpha
        self.weights = [1.0] * num_tasks
        self.first: list[float] | None = None

    @property
    def factors(self) -> tuple[float, ...] | None:
        """The weights of the next step."""
        return tuple(self.weights)

    def combine(self, gradients_NP: Tensor, losses_N: Tensor, step: int) -> Tensor:
        """The weighted sum; then move the weights."""
        weights = torch.tensor(self.weights, dtype=torch.float64)
        combined = (weights.to(gradients_NP).unsqueeze(1) * gradients_NP).sum(dim=0)
        losses = losses_N.tolist()
        # A task's first loss is that of the first batch with a label of it.
        self.first = [first or loss for first, loss in zip(self.first or losses, losses, strict=True)]
        first = torch.tensor(self.first, dtype=torch.float64)
        weighed = (first > 0) & (losses_N > 0)
        if weighed.any():
            norms = gradients_NP.double().norm(dim=1).cpu()[weighed]
            progress, before = (losses_N / first)[weighed], weights[weighed]
            target = (before * norms).mean() * (progress / progress.mean()) ** self.alpha
            moved = before - self.rate * torch.sign(before * norms - target) * norms
            moved = moved.clamp(min=1e-3)
            weights[weighed] = moved * len(moved) / moved.sum()
            self.weights = weights.tolist()
        return combined

    def state_dict(self) -> dict[str, Any]:
        """Weights and first losses."""
        return {"weights": list(self.weights), "first": self.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.weights, self.first = list(state["weights"]), state["first"]


def build_balance(settings: LossSettings, num_tasks: int) -> TaskBalance:
    """The configured balance of a run's tasks."""
    if settings.balance == "uncertainty":
        return Uncertainty(num_tasks, settings.balance_rate)
    if settings.balance == "dwa":
        return DynamicWeightAverage(num_tasks, settings.dwa_temperature)
    if settings.balance == "gradnorm":
        return GradNorm(num_tasks, settings.balance_rate, settings.gradnorm_alpha)
    return PCGrad() if settings.balance == "pcgrad" else TaskBalance()


def effective_weights(balance: TaskBalance, task_weights: Sequence[float]) -> list[float]:
    """What the tasks' losses weigh in the next step: ``beta_j`` times the factor."""
    factors = balance.factors or (1.0,) * len(task_weights)
    return [factor * weight for factor, weight in zip(factors, task_weights, strict=True)]
