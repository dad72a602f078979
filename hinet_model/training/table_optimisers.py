"""Optimisers of the embedding table: Adam and Adagrad on the rows of a step, and Adam on all rows.

A table optimiser takes the distinct ids of a GLOBAL step with their summed gradients, so that a step costs
what the batch's rows cost, whatever the table's size. Every worker calls it with the same ids and gradients
and so keeps the same table; or each with those of its own shard, whose rows are then the table.

Shape letters in this file:
    T  rows of the table   U  distinct rows of a step   D  width of a row
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from hinet_model.config import OptimiserSettings


class RowDecay:
    """Decoupled weight decay of embedding rows, applied late but in full.

    A step leaves the factor ``1 - rate * decay`` pending on every row that it does not touch, until the row is next
    read. What is pending is kept as one running sum of logarithms and its value when each row was last decayed,
    which is exact under a changing rate.

    Args:
        weight: The table ``(T, D)``.
        weight_decay: Decoupled decay per unit of learning rate; 0 makes every method return at once.
    """

    def __init__(self, weight: Tensor, weight_decay: float) -> None:
        self.weight = weight
        self.weight_decay = weight_decay
        self.log_total = 0.0
        self.log_applied = (
            torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device) if weight_decay else None
        )

    def apply_pending(self, ids: Tensor) -> None:
        """Multiply rows with what is pending on them, before they are read; ids may repeat."""
        if self.log_applied is not None:
            pending = self.log_total - self.log_applied.index_select(0, ids)
            factor = pending.exp().to(self.weight.dtype).unsqueeze(1)
            self.weight.index_copy_(0, ids, self.weight.index_select(0, ids) * factor)
            self.log_applied.index_fill_(0, ids, self.log_total)

    def flush(self) -> None:
        """Multiply every row with what is pending on it, before the table is read as a whole."""
        if self.log_applied is not None:
            self.weight.mul_((self.log_total - self.log_applied).exp().to(self.weight.dtype).unsqueeze(1))
            self.log_applied.fill_(self.log_total)

    @staticmethod
    def settled(weight: Tensor, state: dict[str, Any]) -> Tensor:
        """A table of which a `state_dict` says what is pending, with that applied; the table stays as it is."""
        pending: Tensor = state["log_total"] - state["log_applied"]
        return weight * pending.exp().to(weight.dtype).unsqueeze(1)

    def advance(self, learning_rate: float) -> None:
        """Leave one more step pending on every row."""
        if self.log_applied is not None:
            self.log_total += math.log1p(-learning_rate * self.weight_decay)

    def state_dict(self) -> dict[str, Any]:
        """What is pending."""
        return (
            {} if self.log_applied is None else {"log_total": self.log_total, "log_applied": self.log_applied}
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what was pending."""
        if self.log_applied is not None:
            self.log_total = float(state["log_total"])
            self.log_applied.copy_(state["log_applied"])


class TableOptimiser(ABC):
    """Trains an embedding table by (ids, gradients).

    Args:
        weight: The table ``(T, D)``, changed in place.
        learning_rate: Rate of the next step; a schedule may set it between steps.
        epsilon: Added to the denominator.
        l2: Times the row, added to its gradient: an L2 penalty on the rows that a step reads.
        weight_decay: Decoupled decay, applied when a row is read (`RowDecay`).
    """

    def __init__(
        self,
        weight: Tensor,
        learning_rate: float,
        *,
        epsilon: float = 1e-8,
        l2: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        self.weight = weight.detach()
        self.learning_rate = learning_rate
        self.epsilon = epsilon
        self.l2 = l2
        self.decay = RowDecay(self.weight, weight_decay)

    @abstractmethod
    def step(self, ids: Tensor, grads: Tensor, global_step: int) -> None:
        """Take step ``global_step`` (1 is the first) with distinct ``ids (U,)`` and ``grads (U, D)``."""

    @abstractmethod
    def moments(self) -> dict[str, Tensor]:
        """What it keeps of gradients, by name: tensors of one entry per row."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, all of one entry per row, and numbers that `load_state_dict` continues from, to the bit."""
        return {**self.moments(), **self.decay.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        for name, kept in self.moments().items():
            kept.copy_(state[name])
        self.decay.load_state_dict(state)


class _Adam(TableOptimiser):
    """The moments of Adam.

    Args:
        betas: Decay rates of the moments; the rest as in `TableOptimiser`.
    """

    def __init__(
        self, weight: Tensor, learning_rate: float, betas: tuple[float, float] = (0.9, 0.999), **others: float
    ) -> None:
        super().__init__(weight, learning_rate, **others)
        self.betas = betas
        self.mean = torch.zeros_like(self.weight)
        self.square = torch.zeros_like(self.weight)

    def moments(self) -> dict[str, Tensor]:
        """Running means of gradients and of their squares."""
        return {"mean": self.mean, "square": self.square}


class LazyAdam(_Adam):
    """Adam whose moments of a row move only when the row is touched; bias correction by the global step.

    Equal to Adam on the dense gradient while every row is touched at every step. A row that rests keeps its
    moments, where dense Adam would let them fade and go on moving it.

    Source: Adam (ICLR 2015), algorithm 1; AdamW (ICLR 2019) for the decay.
    """

    def step(self, ids: Tensor, grads: Tensor, global_step: int) -> None:
        """Take one step on the rows of ``ids``."""
        _check_step(global_step)
        self.decay.apply_pending(ids)
        row = self.weight.index_select(0, ids)
        if self.l2:
            grads = torch.add(grads, row, alpha=self.l2)
        self.decay.advance(self.learning_rate)
        self.decay.apply_pending(ids)
        if self.decay.log_applied is not None:
            row = self.weight.index_select(0, ids)
        beta_mean, beta_square = self.betas
        mean = self.mean.index_select(0, ids).lerp_(grads, 1 - beta_mean)
        square = self.square.index_select(0, ids).mul_(beta_square)
        square.addcmul_(grads, grads, value=1 - beta_square)
        self.mean.index_copy_(0, ids, mean)
        self.square.index_copy_(0, ids, square)
        denominator = square.sqrt_().div_(math.sqrt(1 - beta_square**global_step)).add_(self.epsilon)
        size = self.learning_rate / (1 - beta_mean**global_step)
        self.weight.index_copy_(0, ids, row.addcdiv_(mean, denominator, value=-size))


class RowAdagrad(TableOptimiser):
    """Adagrad with one accumulator per row: the sum of its gradients' mean squares.

    Source: Adagrad (JMLR 2011), the diagonal shared within a row as in FBGEMM's exact row-wise Adagrad.
    """

    def __init__(self, weight: Tensor, learning_rate: float, **others: float) -> None:
        super().__init__(weight, learning_rate, **others)
        self.total = torch.zeros(self.weight.shape[0], dtype=weight.dtype, device=weight.device)

    def moments(self) -> dict[str, Tensor]:
        """The accumulators."""
        return {"total": self.total}

    def step(self, ids: Tensor, grads: Tensor, global_step: int) -> None:
        """Take one step on the rows of ``ids``."""
        _check_step(global_step)
        self.decay.apply_pending(ids)
        if self.l2:
            grads = torch.add(grads, self.weight.index_select(0, ids), alpha=self.l2)
        self.decay.advance(self.learning_rate)
        self.decay.apply_pending(ids)
        total = self.total.index_select(0, ids) + grads.square().mean(dim=1)
        self.total.index_copy_(0, ids, total)
        size = (self.learning_rate / (total.sqrt_() + self.epsilon)).unsqueeze(1)
        self.weight.index_copy_(0, ids, self.weight.index_select(0, ids).addcmul_(grads, size, value=-1.0))


class DenseAdam(_Adam):
    """Adam on every row at every step, with an L2 penalty on all rows: for tables that are small.

    Exactly `torch.optim.Adam` on the dense gradient. Its step follows the table's size, not the batch's. It has no
    decoupled decay.
    """

    def __init__(
        self, weight: Tensor, learning_rate: float, betas: tuple[float, float] = (0.9, 0.999), *,
        epsilon: float = 1e-8, l2: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(weight, learning_rate, betas, epsilon=epsilon, l2=l2)
        self._grad = torch.zeros_like(self.weight)

    def step(self, ids: Tensor, grads: Tensor, global_step: int) -> None:
        """Take one step on every row; rows that are not in ``ids`` have a gradient of zero."""
        _check_step(global_step)
        torch.mul(self.weight, self.l2, out=self._grad)
        self._grad.index_add_(0, ids, grads)
        beta_mean, beta_square = self.betas
        self.mean.lerp_(self._grad, 1 - beta_mean)
        self.square.mul_(beta_square).addcmul_(self._grad, self._grad, value=1 - beta_square)
        denominator = torch.sqrt(self.square, out=self._grad)
        denominator.div_(math.sqrt(1 - beta_square**global_step)).add_(self.epsilon)
        size = self.learning_rate / (1 - beta_mean**global_step)
        self.weight.addcdiv_(self.mean, denominator, value=-size)


def build_table_optimiser(settings: OptimiserSettings, weight: Tensor) -> TableOptimiser:
    """The configured optimiser of an embedding table, which it changes in place."""
    rate = settings.table_learning_rate or settings.learning_rate
    own = {"epsilon": settings.epsilon, "l2": settings.table_l2}
    if settings.table == "dense_adam":
        return DenseAdam(weight, rate, settings.betas, **own)
    own["weight_decay"] = settings.table_weight_decay
    if settings.table == "adagrad":
        return RowAdagrad(weight, rate, **own)
    return LazyAdam(weight, rate, settings.betas, **own)


def _check_step(global_step: int) -> None:
    if global_step < 1:
        raise ValueError(f"global_step is {global_step}; the first step is 1")
