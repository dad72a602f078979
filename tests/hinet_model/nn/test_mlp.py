"""Stacked perceptrons against one perceptron at a time, on rows that all of them read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hinet_model.nn.mlp import StackedMLP

WIDTH = 6

pytestmark = pytest.mark.usefixtures("experts")


def make(count: int, dims: list[int], relu_last: bool = True, rate: float = 0.0) -> StackedMLP:
    stack = StackedMLP(count, WIDTH, dims, rate, relu_last)
    stack.reset_parameters(torch.Generator().manual_seed(0))
    return stack


def rows_of(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1), dtype=dtype).requires_grad_()


def one_at_a_time(stack: StackedMLP, rows: Tensor) -> Tensor:
    answers = []
    for perceptron in range(stack.weights[0].shape[0]):
        hidden = rows
        for depth, (weight, bias) in enumerate(stack.layers()):
            hidden = hidden @ weight[perceptron].t() + bias[perceptron]
            if stack.relu_last or depth < len(stack.weights) - 1:
                hidden = torch.relu(hidden)
        answers.append(hidden)
    return torch.stack(answers)


def gradients(answer: Tensor, stack: StackedMLP, rows: Tensor) -> list[Tensor]:
    weight = torch.linspace(-1, 1, answer.numel(), dtype=answer.dtype).view(answer.shape)
    return list(torch.autograd.grad((answer * weight).sum(), [rows, *stack.parameters()]))


@pytest.mark.parametrize("relu_last", [True, False])
@pytest.mark.parametrize("dims", [[5], [5, 3], [5, 4, 3]], ids=str)
@pytest.mark.parametrize(("num_rows", "count"), [(0, 3), (1, 1), (9, 5), (1000, 2)])
def test_answers_and_gradients_are_those_of_one_perceptron_at_a_time(
    num_rows: int, count: int, dims: list[int], relu_last: bool
) -> None:
    stack, rows = make(count, dims, relu_last).double(), rows_of(num_rows)
    ours, expected = stack(rows), one_at_a_time(stack, rows)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(gradients(ours, stack, rows), gradients(expected, stack, rows), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [[5], [5, 4]], ids=str)
def test_dropout_zeroes_at_its_rate_and_passes_scaled_gradients_where_it_does_not(dims: list[int]) -> None:
    torch.manual_seed(0)
    stack, rows = make(4, dims, rate=0.25), rows_of(3000, torch.float32)
    with torch.no_grad():
        stack.biases[-1].fill_(100.0)  # so that the last ReLU lets everything pass
        if len(dims) > 1:
            stack.weights[0].zero_()  # and the first dropout nothing to zero
            stack.biases[0].zero_()
    plain, dropped = one_at_a_time(stack, rows), stack(rows)
    kept = dropped > 0
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(dropped, kept * plain / 0.75)
    expected = gradients(kept * plain / 0.75, stack, rows)
    for got, wanted in zip(gradients(dropped, stack, rows), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(stack.eval()(rows), plain)


@pytest.mark.parametrize("dims", [[5], [5, 3]], ids=str)
def test_under_autocast_it_computes_in_bfloat16_and_leaves_float32_gradients(dims: list[int]) -> None:
    stack, rows = make(5, dims), rows_of(9, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        answer = stack(rows)
    assert answer.dtype == torch.bfloat16
    expected = one_at_a_time(stack, rows)
    torch.testing.assert_close(answer.float(), expected, rtol=0.05, atol=0.2)
    wanted = gradients(expected, stack, rows)
    for got, right in zip(gradients(answer.float(), stack, rows), wanted, strict=True):
        assert got.dtype == torch.float32
        assert float((got - right).norm() / right.norm()) < 0.1
