"""Perceptrons that all read the same rows, on a CPU: tile by tile, so that what is between products stays in cache.

The first layers of all perceptrons of a tile are one wide product, and so is the gradient of the rows that they
share: a batched product would write that gradient once per perceptron and then sum. Later layers are products of
strided views, in the layout [row, perceptron, width] from end to end, so nothing is transposed. Buffers of the
backward pass are of a tile's size and used again for every tile.

Shape letters in this file:
    B  rows                       I  width of a row, or of a layer's input
    E  perceptrons                O  width of a layer's output
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hinet_model.nn.dropout import draw_kept

TILE_ROWS = 1024
TILE_WIDTH = 4608
"""Most columns of a tile's first layer: its perceptrons' widths together (one perceptron at least)."""


def shared_input_mlp(
    rows: Tensor, layers: Sequence[tuple[Tensor, Tensor]], dropout: float, relu_last: bool
) -> Tensor:
    """Answers of all perceptrons to all rows; equal to one batched product per layer.

    Args:
        rows: ``(B, I)``
        layers: Weights ``(E, I, O)`` and biases ``(E, O)`` of each layer.
        dropout: Rate of dropout after each ReLU; 0 where the model is not training.
        relu_last: Whether the last layer too is followed by ReLU and dropout.

    Returns:
        ``(B, E, O)``
    """
    parameters = [tensor for layer in layers for tensor in layer]
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        rows, parameters = rows.to(dtype), [tensor.to(dtype) for tensor in parameters]
    result: Tensor = _SharedInput.apply(rows, dropout, relu_last, *parameters)  # type: ignore[no-untyped-call]
    return result


class _SharedInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, dropout: float, relu_last: bool, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[::2], parameters[1::2]
        num_rows, num_stacked = rows.shape[0], weights[0].shape[0]
        answer = rows.new_empty(num_rows, num_stacked, weights[-1].shape[2])
        ctx.spans = list(_spans(num_stacked, max(1, TILE_WIDTH // weights[0].shape[2])))
        ctx.scale = 1.0
        of_tiles: list[
            Tensor
        ] = []  # of each: the first layer's weights, then what all layers but the last leave
        for first, stop in ctx.spans:
            kept = [rows.new_empty(num_rows, stop - first, weight.shape[2]) for weight in weights[:-1]]
            outputs = [*kept, answer[:, first:stop]]
            wide = _wide(weights[0][first:stop])
            of_tiles += [wide, *kept]
            for start, end in _spans(num_rows, TILE_ROWS):
                for depth, output in enumerate(outputs):
                    result = output[start:end]
                    bias = biases[depth][first:stop]
                    if depth == 0:
                        _first_layer(bias, rows[start:end], wide, result)
                    else:
                        torch.baddbmm(
                            bias.unsqueeze(1),
                            outputs[depth - 1][start:end].transpose(0, 1),
                            weights[depth][first:stop],
                            out=result.transpose(0, 1),
                        )
                    if relu_last or depth < len(outputs) - 1:
                        if dropout:
                            keep, ctx.scale = draw_kept(result, dropout)
                            result.mul_(keep).mul_(ctx.scale)
                        result.relu_()
        ctx.relu_last = relu_last
        ctx.depth = len(weights)
        ctx.save_for_backward(rows, answer, *weights, *of_tiles)
        return answer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, answer, *saved = ctx.saved_tensors
        weights, of_tiles = saved[: ctx.depth], saved[ctx.depth :]
        num_rows = rows.shape[0]
        # Sums over tiles are kept in full precision.
        dtype = torch.promote_types(rows.dtype, torch.float32)
        grad_rows = torch.zeros(rows.shape, dtype=dtype)
        grad_weights = [torch.zeros(weight.shape, dtype=dtype) for weight in weights]
        grad_biases = [torch.zeros(weight.shape[0], weight.shape[2], dtype=dtype) for weight in weights]
        for number, (first, stop) in enumerate(ctx.spans):
            wide, *kept = of_tiles[number * ctx.depth : (number + 1) * ctx.depth]
            outputs = [*kept, answer[:, first:stop]]
            grad_wide = torch.zeros(wide.shape, dtype=dtype)
            buffers = [rows.new_empty(min(TILE_ROWS, num_rows), *output.shape[1:]) for output in outputs]
            for start, end in _spans(num_rows, TILE_ROWS):
                passed = grad[start:end, first:stop]
                for depth in reversed(range(ctx.depth)):
                    result = outputs[depth][start:end]
                    buffer = buffers[depth][: end - start]
                    if ctx.relu_last or depth < ctx.depth - 1:
                        torch.ops.aten.threshold_backward.grad_input(passed, result, 0, grad_input=buffer)
                        if ctx.scale != 1.0:
                            buffer.mul_(ctx.scale)
                        passed = buffer
                    elif not passed.is_contiguous():
                        passed = buffer.copy_(passed)
                    grad_biases[depth][first:stop].add_(passed.sum(dim=0))
                    if depth == 0:
                        flat = passed.reshape(end - start, -1)
                        _add_product(grad_wide, rows[start:end].t(), flat)
                        if ctx.needs_input_grad[0]:
                            _add_product(grad_rows[start:end], flat, wide.t())
                    else:
                        by_perceptron = passed.transpose(0, 1)
                        before = outputs[depth - 1][start:end]
                        _add_batched(grad_weights[depth][first:stop], before.permute(1, 2, 0), by_perceptron)
                        next_passed = buffers[depth - 1][: end - start]
                        torch.bmm(
                            by_perceptron,
                            weights[depth][first:stop].transpose(1, 2),
                            out=next_passed.transpose(0, 1),
                        )
                        passed = next_passed
            grad_weights[0][first:stop] = grad_wide.view(rows.shape[1], stop - first, -1).transpose(0, 1)
        grads = [part.to(rows.dtype) for pair in zip(grad_weights, grad_biases, strict=True) for part in pair]
        return grad_rows.to(rows.dtype) if ctx.needs_input_grad[0] else None, None, None, *grads


def _spans(total: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, total)) for start in range(0, total, size))


def _wide(weight_EIO: Tensor) -> Tensor:
    """The weights of all perceptrons side by side. ``(I, E * O)``"""
    return weight_EIO.transpose(0, 1).reshape(weight_EIO.shape[1], -1)


def _first_layer(bias_EO: Tensor, rows: Tensor, wide: Tensor, result: Tensor) -> None:
    if result.is_contiguous():
        torch.addmm(bias_EO.reshape(-1), rows, wide, out=result.view(len(rows), -1))
    else:  # a single layer, whose answers are some columns of all answers
        result.copy_(torch.addmm(bias_EO.reshape(-1), rows, wide).view(result.shape))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _add_batched(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.baddbmm_(left, right)
    else:
        total.add_(torch.bmm(left, right))
