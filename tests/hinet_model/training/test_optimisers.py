"""Optimisers: equal to torch's on the dense gradient where they should be, and right where they differ."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from hinet_model.config import OptimiserSettings
from hinet_model.training.optimisers import build_dense_optimiser, rate_factor
from hinet_model.training.table_optimisers import (
    DenseAdam,
    LazyAdam,
    RowAdagrad,
    TableOptimiser,
    build_table_optimiser,
)

T, D, STEPS = 6, 3, 5
ALL = torch.arange(T)


def start() -> Tensor:
    return torch.randn(T, D, generator=torch.Generator().manual_seed(0))


def gradients(rows: int = T) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, D, generator=generator) for _ in range(STEPS)]


def dense_result(optimiser: type[torch.optim.Optimizer], grads: list[Tensor], **options: float) -> Tensor:
    weight = nn.Parameter(start())
    torch_optimiser = optimiser([weight], **options)
    for grad in grads:
        weight.grad = grad.clone()
        torch_optimiser.step()
    return weight.detach()


def scattered(ids: Tensor, grads: list[Tensor]) -> list[Tensor]:
    return [torch.zeros(T, D).index_copy(0, ids, grad) for grad in grads]


def run(optimiser: TableOptimiser, ids: Tensor, grads: list[Tensor]) -> None:
    for step, grad in enumerate(grads, start=1):
        optimiser.step(ids, grad, step)


def test_lazy_adam_equals_adam_while_every_row_is_touched() -> None:
    weight = start()
    run(LazyAdam(weight, 0.1, l2=0.01), ALL, gradients())
    expected = dense_result(torch.optim.Adam, gradients(), lr=0.1, weight_decay=0.01)
    torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-5)


def test_lazy_adam_with_decay_equals_adamw_while_every_row_is_touched() -> None:
    weight = start()
    run(LazyAdam(weight, 0.1, weight_decay=0.3), ALL, gradients())
    expected = dense_result(torch.optim.AdamW, gradients(), lr=0.1, weight_decay=0.3)
    torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-5)


def test_dense_adam_equals_adam_with_l2_on_rows_that_the_batch_does_not_touch() -> None:
    ids = torch.tensor([1, 4])
    weight = start()
    run(DenseAdam(weight, 0.1, l2=0.05), ids, gradients(2))
    expected = dense_result(torch.optim.Adam, scattered(ids, gradients(2)), lr=0.1, weight_decay=0.05)
    torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-5)
    assert not torch.equal(weight[0], start()[0])


def test_row_adagrad_equals_adagrad_on_rows_of_one_number() -> None:
    weight = start()[:, :1].clone()
    torch_weight = nn.Parameter(weight.clone())
    torch_optimiser = torch.optim.Adagrad([torch_weight], lr=0.1, eps=1e-8)
    ours = RowAdagrad(weight, 0.1, epsilon=1e-8)
    for step, grad in enumerate(gradients(), start=1):
        torch_weight.grad = grad[:, :1].clone()
        torch_optimiser.step()
        ours.step(ALL, grad[:, :1], step)
    torch.testing.assert_close(weight, torch_weight.detach(), atol=1e-6, rtol=1e-5)


def test_row_adagrad_divides_a_row_by_the_root_of_its_mean_squares() -> None:
    weight = torch.zeros(2, 2)
    optimiser = RowAdagrad(weight, 0.5, epsilon=0.0)
    optimiser.step(torch.tensor([1]), torch.tensor([[3.0, 4.0]]), 1)
    expected = -0.5 * torch.tensor([3.0, 4.0]) / math.sqrt(12.5)
    torch.testing.assert_close(weight, torch.stack([torch.zeros(2), expected]))


@pytest.mark.parametrize("make", [LazyAdam, RowAdagrad])
def test_rows_outside_the_batch_stay_as_they_are(make: type[LazyAdam]) -> None:
    weight = start()
    run(make(weight, 0.1, l2=0.1), torch.tensor([2, 5]), gradients(2))
    rest = [0, 1, 3, 4]
    assert torch.equal(weight[rest], start()[rest])
    assert not torch.equal(weight[[2, 5]], start()[[2, 5]])


def test_lazy_adam_corrects_its_bias_by_the_global_step() -> None:
    weight = torch.zeros(1, 1)
    LazyAdam(weight, 0.1, epsilon=0.0).step(torch.tensor([0]), torch.ones(1, 1), 10)
    mean, square = 0.1 / (1 - 0.9**10), 0.001 / (1 - 0.999**10)
    assert weight.item() == pytest.approx(-0.1 * mean / math.sqrt(square), rel=1e-4)


@pytest.mark.parametrize("make", [LazyAdam, RowAdagrad])
def test_a_row_that_rests_owes_its_decay_and_pays_in_full_when_read(make: type[LazyAdam]) -> None:
    weight = start()
    optimiser = make(weight, 0.1, weight_decay=0.5)
    factor = 1.0
    for step, rate in enumerate((0.1, 0.2, 0.4), start=1):
        optimiser.learning_rate = rate
        optimiser.step(torch.tensor([0]), torch.ones(1, D), step)
        factor *= 1 - rate * 0.5
    assert torch.equal(weight[1:], start()[1:])
    optimiser.decay.apply_pending(torch.tensor([3]))
    torch.testing.assert_close(weight[3], start()[3] * factor)
    assert torch.equal(weight[4], start()[4])
    optimiser.decay.flush()
    torch.testing.assert_close(weight[1:], start()[1:] * factor)


def test_workers_that_read_different_rows_keep_the_same_table() -> None:
    tables = []
    for read in (torch.tensor([0, 1]), torch.tensor([2])):
        weight = start()
        optimiser = LazyAdam(weight, 0.1, weight_decay=0.5)
        optimiser.step(torch.tensor([0]), torch.ones(1, D), 1)
        optimiser.step(torch.tensor([0]), torch.ones(1, D), 2)
        optimiser.decay.apply_pending(read)
        optimiser.step(torch.tensor([0, 1, 2]), torch.ones(3, D), 3)
        tables.append(weight)
    assert torch.equal(tables[0], tables[1])


@pytest.mark.parametrize(
    "settings",
    [
        OptimiserSettings(table="adam", table_l2=0.1, table_weight_decay=0.2),
        OptimiserSettings(table="adagrad", table_l2=0.1, table_weight_decay=0.2),
        OptimiserSettings(table="dense_adam", table_l2=0.1),
    ],
    ids=lambda settings: settings.table,
)
def test_a_loaded_state_goes_on_to_the_bit(settings: OptimiserSettings) -> None:
    ids = torch.tensor([1, 4])
    whole = start()
    optimiser = build_table_optimiser(settings, whole)
    for step, grad in enumerate(gradients(2), start=1):
        if step == 3:
            rest = whole.clone()
            resumed = build_table_optimiser(settings, rest)
            resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))
        optimiser.step(ids, grad, step)
        if step >= 3:
            resumed.step(ids, grad, step)
    optimiser.decay.flush()
    resumed.decay.flush()
    assert torch.equal(whole, rest)


@pytest.mark.parametrize("table", ["adam", "adagrad", "dense_adam"])
def test_a_step_without_rows_is_a_normal_case(table: str) -> None:
    weight = start()
    optimiser = build_table_optimiser(OptimiserSettings.model_validate({"table": table}), weight)
    optimiser.step(torch.zeros(0, dtype=torch.int64), torch.zeros(0, D), 1)
    assert torch.equal(weight, start())
    with pytest.raises(ValueError, match="the first step is 1"):
        optimiser.step(torch.zeros(0, dtype=torch.int64), torch.zeros(0, D), 0)


def test_the_table_has_a_rate_of_its_own_where_one_is_given() -> None:
    both = OptimiserSettings(learning_rate=0.1)
    own = OptimiserSettings(learning_rate=0.1, table_learning_rate=0.01)
    assert build_table_optimiser(both, start()).learning_rate == 0.1
    assert build_table_optimiser(own, start()).learning_rate == 0.01


@pytest.mark.parametrize(("decay", "kind"), [(0.0, torch.optim.Adam), (0.2, torch.optim.AdamW)])
def test_the_dense_optimiser_is_adam_or_adamw(decay: float, kind: type[torch.optim.Optimizer]) -> None:
    weight = nn.Parameter(start())
    optimiser = build_dense_optimiser(OptimiserSettings(learning_rate=0.1, weight_decay=decay), [weight])
    for grad in gradients():
        weight.grad = grad.clone()
        optimiser.step()
    expected = dense_result(kind, gradients(), lr=0.1, weight_decay=decay)
    torch.testing.assert_close(weight.detach(), expected, atol=1e-6, rtol=1e-5)


def test_rates_warm_up_and_fall_to_the_final_share() -> None:
    settings = OptimiserSettings(schedule="cosine", warmup_steps=2, final_rate=0.1)
    factors = [rate_factor(settings, step, 10) for step in range(1, 11)]
    assert factors[:2] == [0.5, 1.0]
    assert factors[-1] == pytest.approx(0.1)
    assert factors[5] == pytest.approx(0.55)
    assert all(a >= b for a, b in itertools.pairwise(factors[1:]))
    assert rate_factor(OptimiserSettings(), 7, 10) == 1.0
    assert rate_factor(OptimiserSettings(schedule="linear"), 5, 10) == 0.5
