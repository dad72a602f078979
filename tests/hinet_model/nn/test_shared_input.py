"""Perceptrons that read the same rows, tile by tile, against one perceptron at a time."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from hinet_model.nn import shared_input
from hinet_model.nn.shared_input import shared_input_mlp

WIDTH = 6


def make(
    rows: int, perceptrons: int, dims: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    widths = (WIDTH, *dims)
    layers = [
        (
            torch.randn(perceptrons, narrow, wide, generator=generator, dtype=dtype).requires_grad_(),
            torch.randn(perceptrons, narrow, generator=generator, dtype=dtype).requires_grad_(),
        )
        for wide, narrow in pairwise(widths)
    ]
    return torch.randn(rows, WIDTH, generator=generator, dtype=dtype).requires_grad_(), layers


def one_at_a_time(rows: Tensor, layers: list[tuple[Tensor, Tensor]], relu_last: bool) -> Tensor:
    answers = []
    for perceptron in range(layers[0][0].shape[0]):
        hidden = rows
        for depth, (weight, bias) in enumerate(layers):
            hidden = hidden @ weight[perceptron].t() + bias[perceptron]
            if relu_last or depth < len(layers) - 1:
                hidden = torch.relu(hidden)
        answers.append(hidden)
    return torch.stack(answers, dim=1)


def gradients(answer: Tensor, rows: Tensor, layers: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, answer.numel(), dtype=answer.dtype).view(answer.shape)
    leaves = [rows, *(tensor for layer in layers for tensor in layer)]
    return list(torch.autograd.grad((answer * weight).sum(), leaves))


@pytest.fixture(params=[(1024, 4608), (4, 10), (1, 1)], ids=["one tile", "many tiles", "tiles of one"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, width = request.param
    monkeypatch.setattr(shared_input, "TILE_ROWS", rows)
    monkeypatch.setattr(shared_input, "TILE_WIDTH", width)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("relu_last", [True, False])
@pytest.mark.parametrize("dims", [(5,), (5, 3), (5, 4, 3)])
@pytest.mark.parametrize(("rows", "perceptrons"), [(0, 3), (1, 1), (9, 5)])
def test_answers_and_gradients_are_those_of_one_perceptron_at_a_time(
    rows: int, perceptrons: int, dims: tuple[int, ...], relu_last: bool
) -> None:
    x, layers = make(rows, perceptrons, dims)
    ours, expected = shared_input_mlp(x, layers, 0.0, relu_last), one_at_a_time(x, layers, relu_last)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(gradients(ours, x, layers), gradients(expected, x, layers), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("tiles")
def test_dropout_zeroes_at_its_rate_and_passes_scaled_gradients_where_it_does_not() -> None:
    torch.manual_seed(0)
    x, layers = make(3000, 4, (5,), torch.float32)
    with torch.no_grad():
        layers[0][1].fill_(100.0)  # so that ReLU lets everything pass
    plain = one_at_a_time(x, layers, relu_last=True)
    dropped = shared_input_mlp(x, layers, 0.25, relu_last=True)
    kept = dropped > 0
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(dropped, kept * plain / 0.75)
    expected = gradients(kept * plain / 0.75, x, layers)
    for got, wanted in zip(gradients(dropped, x, layers), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-2)


def test_a_tile_has_as_many_perceptrons_as_their_first_layers_fit_its_width(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_input, "TILE_WIDTH", 10)
    x, layers = make(4, 5, (5, 3))
    assert shared_input_mlp(x, layers, 0.0, relu_last=True).grad_fn.spans == [(0, 2), (2, 4), (4, 5)]


def test_a_gradient_may_be_asked_for_twice() -> None:
    x, layers = make(9, 5, (5, 3))
    answer = shared_input_mlp(x, layers, 0.0, relu_last=True)
    first = torch.autograd.grad(answer.sum(), x, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(answer.sum(), x)[0], first, rtol=0, atol=0)


@pytest.mark.usefixtures("tiles")
def test_under_autocast_it_computes_in_bfloat16_and_leaves_float32_gradients() -> None:
    x, layers = make(9, 5, (5, 3), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        answer = shared_input_mlp(x, layers, 0.0, relu_last=True)
    assert answer.dtype == torch.bfloat16
    expected = one_at_a_time(x, layers, relu_last=True)
    torch.testing.assert_close(answer.float(), expected, rtol=0.05, atol=0.2)
    for got, wanted in zip(gradients(answer.float(), x, layers), gradients(expected, x, layers), strict=True):
        assert got.dtype == torch.float32
        assert float((got - wanted).norm() / wanted.norm()) < 0.1
