"""Dropout whose random numbers do not cost more than the layer they follow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LEVELS = 2**16


def dropout_(hidden: Tensor, rate: float, training: bool, relu: bool = False) -> Tensor:
    """Zero each element with probability ``rate`` and scale the rest, in place.

    On a CPU one 64-bit draw decides four elements, which takes a quarter of the time of
    `torch.nn.functional.dropout`; the rate is therefore rounded to 1/65536, and the scale
    is that of the rounded rate, so the expectation is exact.

    Args:
        hidden: Any shape; changed in place, so no other operation may have saved it.
        rate: Probability of zero, in [0, 1).
        training: False leaves the dropout out.
        relu: ReLU first. Together they need no mask for the backward pass: an element's gradient passes, scaled,
            exactly where the result is positive.

    Returns:
        ``hidden``.
    """
    if not training or rate == 0.0 or hidden.numel() == 0:
        return hidden.relu_() if relu else hidden
    kept, scale = _draw_kept(hidden, rate)
    if not relu:
        return hidden.mul_(kept).mul_(scale)
    result: Tensor = _ReluDropout.apply(hidden, kept, scale)  # type: ignore[no-untyped-call]
    return result


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        hidden.mul_(kept).relu_().mul_(scale)
        ctx.mark_dirty(hidden)
        ctx.save_for_backward(hidden)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (result,) = ctx.saved_tensors
        passed: Tensor = torch.ops.aten.threshold_backward(grad, result, 0)
        return passed.mul_(ctx.scale), None, None


def _draw_kept(hidden: Tensor, rate: float) -> tuple[Tensor, float]:
    """Which elements are kept, and what these are multiplied with."""
    cut = round(rate * _LEVELS)
    scale = _LEVELS / (_LEVELS - cut)
    if hidden.device.type != "cpu":
        return torch.rand(hidden.shape, device=hidden.device) >= cut / _LEVELS, scale
    draws = torch.empty((hidden.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    level = draws.view(torch.int16)[: hidden.numel()].view(hidden.shape)
    return level >= cut - _LEVELS // 2, scale
