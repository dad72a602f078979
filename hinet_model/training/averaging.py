"""Averaging: the mean of a run's weights over the ends of its last epochs.

With a constant learning rate the weights keep moving around a good place; their mean lies nearer to it than any
of them. Unlike a falling rate it costs no regularisation: with Adam an L2 penalty acts at the learning rate.

Source: Averaging Weights Leads to Wider Optima and Better Generalization (UAI 2018).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Running mean of a model's parameters; costs one more copy of them.

    Args:
        model: The model. Its buffers are not averaged.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._mean: dict[str, Tensor] = {}
        self.count = 0
        self.first_epoch = 0
        """The earliest epoch in the mean, where there is one."""

    @torch.no_grad()
    def add(self, epoch: int) -> None:
        """Take the model's present weights into the mean, as those of the end of ``epoch``."""
        if not self.count:
            self.first_epoch = epoch
        self.count += 1
        for name, parameter in self._model.named_parameters():
            if name in self._mean:
                self._mean[name].lerp_(parameter, 1 / self.count)
            else:
                self._mean[name] = parameter.detach().clone()

    def keep_from(self, epoch: int) -> bool:
        """Forget a mean that an epoch before ``epoch`` is part of; whether there was one.

        A run that goes on for longer than it was meant to averages over later epochs.
        """
        if not self.count or self.first_epoch >= epoch:
            return False
        self._mean, self.count = {}, 0
        return True

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the mean as its weights, for as long as the block lasts; as it is without a mean."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._model.named_parameters():
            if name in self._mean:
                present = parameter.detach().clone()
                parameter.copy_(self._mean[name])
                self._mean[name] = present

    def state_dict(self) -> dict[str, object]:
        """The mean, of how many it is, and from which epoch on."""
        return {"mean": self._mean, "count": self.count, "first_epoch": self.first_epoch}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from a `state_dict`."""
        mean, count, first_epoch = state["mean"], state["count"], state["first_epoch"]
        assert isinstance(mean, dict)
        assert isinstance(count, int)
        assert isinstance(first_epoch, int)
        devices = {name: parameter.device for name, parameter in self._model.named_parameters()}
        self._mean = {name: tensor.to(devices[name]) for name, tensor in mean.items()}
        self.count, self.first_epoch = count, first_epoch
