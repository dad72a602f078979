"""Balance: task weights that move, each against a case worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from hinet_model.config import LossSettings
from hinet_model.objective.balance import (
    DynamicWeightAverage,
    GradNorm,
    PCGrad,
    TaskBalance,
    Uncertainty,
    build_balance,
    effective_weights,
)

NO_LOSSES = torch.zeros(2, dtype=torch.float64)


def losses(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_without_balance_tasks_weigh_what_the_settings_say() -> None:
    balance = build_balance(LossSettings(), 2)
    assert type(balance) is TaskBalance
    assert balance.factors is None
    assert effective_weights(balance, [1.0, 0.5]) == [1.0, 0.5]


def test_uncertainty_follows_the_gradient_of_its_loss() -> None:
    balance = Uncertainty(2, rate=0.1)
    assert balance.factors == (1.0, 1.0)
    balance.after_step(losses(0.7, 0.2))
    # s = 0 - 0.1 (1/2 - exp(0) L): 0.02 and -0.03
    assert balance.log_variances == pytest.approx([0.02, -0.03])
    balance.after_step(losses(0.7, 0.2))
    assert balance.log_variances[0] == pytest.approx(0.02 - 0.1 * (0.5 - math.exp(-0.02) * 0.7))
    assert effective_weights(balance, [2.0, 1.0])[0] == pytest.approx(2 * math.exp(-balance.log_variances[0]))


def test_uncertainty_settles_where_the_variance_is_twice_the_loss() -> None:
    balance = Uncertainty(2, rate=0.1)
    for _ in range(500):
        balance.after_step(losses(0.25, 0.05))
    assert balance.factors == pytest.approx((2.0, 10.0))


def test_dwa_weighs_the_task_whose_loss_fell_less() -> None:
    balance = DynamicWeightAverage(2, temperature=2.0)
    for step in [(0.8, 0.4), (0.6, 0.2)]:
        balance.after_step(losses(*step))
    balance.after_epoch()
    assert balance.epochs == [pytest.approx([0.7, 0.3])]
    assert balance.factors == (1.0, 1.0)
    balance.after_step(losses(0.35, 0.27))
    balance.after_epoch()
    # r = 0.5 and 0.9, over T = 2: softmax of 0.25 and 0.45, times 2
    share = 1 / (1 + math.exp(0.2))
    assert balance.factors == pytest.approx((2 * share, 2 * (1 - share)))
    balance.after_step(losses(0.35, 0.27))
    balance.after_epoch()
    assert balance.factors == pytest.approx((1.0, 1.0))


def test_gradnorm_moves_weights_towards_the_norm_that_each_task_should_have() -> None:
    balance = GradNorm(2, rate=0.1, alpha=1.0)
    gradients = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    combined = balance.combine(gradients, losses(0.6, 0.4), step=0)
    torch.testing.assert_close(combined, torch.tensor([3.0, 5.0]))
    # Norms 5 and 1, target 3 for both at first: w = 1 - 0.1 * 5 and 1 + 0.1 * 1, scaled to a sum of 2.
    assert balance.factors == pytest.approx((2 * 0.5 / 1.6, 2 * 1.1 / 1.6))
    # Progress 1/2 and 1, over their mean: 2/3 and 4/3. Weighted norms 3.125 and 1.375, mean 2.25: targets 1.5 and 3.
    combined = balance.combine(gradients, losses(0.3, 0.4), step=1)
    torch.testing.assert_close(combined, torch.tensor([0.625 * 3, 0.625 * 4 + 1.375]))
    moved = (0.625 - 0.5, 1.375 + 0.1)
    assert balance.factors == pytest.approx(tuple(2 * weight / sum(moved) for weight in moved))


def test_pcgrad_takes_out_what_conflicts_and_leaves_what_does_not() -> None:
    balance = PCGrad()
    agreeing = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    torch.testing.assert_close(balance.combine(agreeing, NO_LOSSES, 0), torch.tensor([2.0, 2.0]))
    conflicting = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    # First minus its part along the second: (1, 0) + 1/2 (-1, 1); second minus its part along the first: (0, 1).
    torch.testing.assert_close(balance.combine(conflicting, NO_LOSSES, 0), torch.tensor([0.5, 1.5]))


def test_pcgrad_is_drawn_from_the_step_alone_and_bears_a_gradient_of_zero() -> None:
    random = torch.Generator().manual_seed(1)
    gradients = torch.randn(4, 5, generator=random)
    assert torch.equal(PCGrad().combine(gradients, NO_LOSSES, 7), PCGrad().combine(gradients, NO_LOSSES, 7))
    answers = [PCGrad().combine(gradients, NO_LOSSES, step) for step in range(8)]
    assert any(not torch.allclose(answers[0], answer) for answer in answers)
    silent = torch.stack([gradients[0], torch.zeros(5)])
    torch.testing.assert_close(PCGrad().combine(silent, NO_LOSSES, 0), gradients[0])


@pytest.mark.parametrize("name", ["none", "uncertainty", "dwa", "gradnorm", "pcgrad"])
def test_a_balance_goes_on_from_its_state(name: str) -> None:
    settings = LossSettings.model_validate({"balance": name})
    gradients = torch.tensor([[3.0, 4.0], [0.0, 1.0]])

    def run(balance: TaskBalance, steps: range) -> None:
        for step in steps:
            balance.combine(gradients, losses(0.5 / (step + 1), 0.4), step)
            balance.after_step(losses(0.5 / (step + 1), 0.4))
            if step % 3 == 2:
                balance.after_epoch()

    straight, first, rest = (build_balance(settings, 2) for _ in range(3))
    run(straight, range(10))
    run(first, range(4))
    rest.load_state_dict(first.state_dict())
    run(rest, range(4, 10))
    assert rest.factors == straight.factors
    assert rest.state_dict() == straight.state_dict()
