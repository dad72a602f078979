"""The loss: what a row, a scenario and a task weigh."""

from __future__ import annotations

import math

import pytest
import torch
from batches import make_batch, make_columns, make_layout, take

from foundation.settings import ConfigError
from hinet_model.config import LossSettings
from hinet_model.objective.losses import MultiTaskLoss, loss_weights, scenario_alphas, scenario_weights

ROWS = (200, 300, 500)


def test_proportion_weighs_scenarios_by_rows_and_every_row_by_one() -> None:
    assert scenario_alphas("proportion", ROWS) == pytest.approx((0.2, 0.3, 0.5))
    assert scenario_weights("proportion", ROWS) == (1.0, 1.0, 1.0)


def test_uniform_weighs_scenarios_alike_and_a_row_by_one_over_m_p() -> None:
    assert scenario_alphas("uniform", ROWS) == pytest.approx((1 / 3,) * 3)
    assert scenario_weights("uniform", ROWS) == pytest.approx((1 / 0.6, 1 / 0.9, 1 / 1.5))


def test_a_scenario_without_training_rows_weighs_nothing_and_the_rest_sum_to_one() -> None:
    assert scenario_alphas("uniform", (5, 0, 5)) == (0.5, 0.0, 0.5)
    assert scenario_weights("uniform", (5, 0, 15)) == pytest.approx((2.0, 0.0, 2 / 3))


def test_sqrt_weighs_scenarios_by_the_root_of_their_rows() -> None:
    assert scenario_alphas("sqrt", (400, 900, 2500)) == pytest.approx((0.2, 0.3, 0.5))
    assert scenario_weights("sqrt", (900, 100)) == pytest.approx((0.75 / 0.9, 0.25 / 0.1))


def test_fixed_weights_are_scaled_to_a_sum_of_one() -> None:
    assert scenario_alphas("fixed", ROWS, (1, 1, 2)) == pytest.approx((0.25, 0.25, 0.5))
    assert scenario_weights("fixed", ROWS, (1, 1, 2)) == pytest.approx((0.25 / 0.2, 0.25 / 0.3, 1.0))
    assert scenario_alphas("fixed", (5, 0, 5), (1, 7, 3)) == pytest.approx((0.25, 0.0, 0.75))


def test_weights_are_read_by_name_and_every_wrong_name_is_refused_at_once() -> None:
    settings = LossSettings(scheme="fixed", scenario_weights={"b": 3, "a": 1}, task_weights={"like": 0.5})
    weights = loss_weights(settings, ["a", "b"], ["click", "like"], (50, 50))
    assert weights.alphas == pytest.approx((0.25, 0.75))
    assert weights.row_factors == pytest.approx((0.5, 1.5))
    assert weights.tasks == (1.0, 0.5)
    wrong = LossSettings(scheme="fixed", scenario_weights={"a": 1, "c": 1}, task_weights={"lik": 1})
    with pytest.raises(ConfigError) as error:
        loss_weights(wrong, ["a", "b"], ["click", "like"], (50, 50))
    assert len(error.value.faults) == 3
    assert "loss.scenario_weights: no weight for 'b'" in str(error.value)


def test_the_calibrator_weighs_what_a_task_is_likelier_than_the_one_before_it() -> None:
    batch = make_batch(make_layout(3, 3), [0, 2])
    logits = torch.logit(torch.tensor([[0.5, 0.7, 0.1], [0.2, 0.1, 0.5]])).requires_grad_()
    plain, cells = MultiTaskLoss((1.0, 1.0, 2.0), (1.0, 3.0, 5.0))(logits, batch)
    calibrated, same_cells = MultiTaskLoss((1.0, 1.0, 2.0), (1.0, 3.0, 5.0), 0.6)(logits, batch)
    excess = 1.0 * 3.0 * (0.7 - 0.5) + 2.0 * 5.0 * (0.5 - 0.1)
    assert (calibrated - plain).item() == pytest.approx(0.6 * excess / 2)
    assert torch.equal(cells, same_cells)
    (gradient,) = torch.autograd.grad(calibrated - plain, logits)
    assert gradient.sign().tolist() == [[-1, 1, 0], [0, -1, 1]]


def test_a_factor_multiplies_its_task_alone_and_task_losses_add_up() -> None:
    batch = make_batch(make_layout(), [0, 1, 2, 2])
    logits = torch.linspace(-2, 2, 8).view(4, 2)
    loss = MultiTaskLoss((1.0, 2.0, 0.5), (1.0, 3.0))
    whole, cells = loss(logits, batch)
    first, second = (loss(logits, batch, torch.tensor(only))[0] for only in ([1.0, 0.0], [0.0, 1.0]))
    torch.testing.assert_close(first + second, whole)
    torch.testing.assert_close(loss(logits, batch, torch.tensor([2.0, 0.5]))[0], 2 * first + second / 2)
    torch.testing.assert_close(loss.task_losses(cells, 4).float(), torch.stack([first, second]))


def test_an_unknown_scheme_and_an_empty_split_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown loss scheme 'propotion'"):
        scenario_alphas("propotion", ROWS)
    with pytest.raises(ValueError, match="no shares"):
        scenario_alphas("uniform", (0, 0))


def test_the_gradient_of_a_scenario_under_uniform_is_one_over_m_p_times_that_under_proportion() -> None:
    layout = make_layout()
    scenarios = [0] * 20 + [1] * 30 + [2] * 50
    batch = make_batch(layout, scenarios)
    gradients = {}
    for scheme in ("proportion", "uniform"):
        logits = torch.linspace(-2, 2, 200).view(100, 2).requires_grad_()
        MultiTaskLoss(scenario_weights(scheme, ROWS), (1.0, 1.0))(logits, batch)[0].backward()
        gradients[scheme] = logits.grad
    for scenario, share in enumerate((0.2, 0.3, 0.5)):
        rows = batch.scenario_index == scenario
        torch.testing.assert_close(
            gradients["uniform"][rows], gradients["proportion"][rows] / (3 * share), atol=1e-8, rtol=1e-6
        )


def test_the_loss_is_the_sum_over_rows_divided_by_the_global_batch() -> None:
    layout = make_layout()
    columns = make_columns(layout, [0, 2])
    columns["label__t0"][:] = [1, 0]
    columns["label__t1"][:] = [0, 0]
    batch, _ = layout.to_batch(columns, global_rows=8)
    loss, cells = MultiTaskLoss((1.0, 1.0, 2.0), (1.0, 3.0))(torch.zeros(2, 2), batch)
    log2 = math.log(2)
    assert loss.item() == pytest.approx((log2 + 3 * log2 + 2 * log2 + 6 * log2) / 8)
    torch.testing.assert_close(cells, torch.tensor([[log2, log2], [0, 0], [log2, log2]]))


def test_parts_of_a_global_batch_add_up_to_the_whole() -> None:
    layout = make_layout()
    columns = make_columns(layout, [0, 1, 2, 2, 1, 0, 0])
    loss = MultiTaskLoss(scenario_weights("uniform", ROWS), (1.0, 0.5))

    def of(rows: list[int]) -> torch.Tensor:
        batch, order = layout.to_batch(take(columns, rows), global_rows=7)
        logits = torch.linspace(-1, 1, 14).view(7, 2)[rows][order]
        return loss(logits, batch)[0]

    torch.testing.assert_close(of([0, 1, 2]) + of([3, 4, 5, 6]) + of([]), of(list(range(7))))


@pytest.mark.parametrize("scenarios", [[], [1, 1]])
def test_an_absent_scenario_and_an_empty_batch_have_a_finite_loss_and_gradient(scenarios: list[int]) -> None:
    batch = make_batch(make_layout(), scenarios)
    logits = torch.zeros(len(scenarios), 2, requires_grad=True)
    loss, cells = MultiTaskLoss(scenario_weights("uniform", ROWS), (1.0, 1.0))(logits, batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(cells).all()
    assert torch.isfinite(logits.grad).all()
    assert torch.equal(cells[0], torch.zeros(2))


def test_a_huge_logit_does_not_overflow() -> None:
    batch = make_batch(make_layout(), [0, 1])
    loss, _ = MultiTaskLoss((1.0,) * 3, (1.0, 1.0))(torch.tensor([[1e4, -1e4], [1e4, -1e4]]), batch)
    assert torch.isfinite(loss)
