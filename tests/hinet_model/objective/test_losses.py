"""The loss: what a row, a scenario and a task weigh."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import make_batch, make_columns, make_layout, take

from foundation.settings import ConfigError
from hinet_model.config import LossSettings
from hinet_model.data.batch import Batch, BatchLayout
from hinet_model.objective.losses import (
    MultiTaskLoss,
    label_weights,
    loss_weights,
    scenario_alphas,
    scenario_weights,
)

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
    labels = torch.tensor([4.0, 4.0])
    torch.testing.assert_close(loss.task_losses(cells, labels).float(), torch.stack([first, second]))


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


def masked(
    layout: BatchLayout,
    scenarios: list[int],
    labels: list[list[float]],
    weights: list[float] | None = None,
    rows: int | None = None,
) -> Batch:
    """A batch of rows in order of their scenarios, with these labels (-1: none) and weights."""
    columns = make_columns(layout, scenarios)
    for task, name in enumerate(layout.label_columns):
        columns[name] = np.array([row[task] for row in labels], dtype=np.float32)
    if weights is not None:
        columns["row_weight"] = np.array(weights, dtype=np.float32)
        layout = replace(layout, has_row_weights=True)
    return layout.to_batch(columns, rows)[0]


def test_a_missing_label_adds_nothing_to_loss_gradient_and_cells_and_leaves_the_divisor_alone() -> None:
    layout = make_layout()
    logits = torch.linspace(-1, 1, 6).view(3, 2).requires_grad_()
    loss = MultiTaskLoss((1.0, 2.0, 1.0), (1.0, 3.0))
    whole = masked(layout, [0, 1, 1], [[1, 0], [0, 1], [1, 1]], rows=8)
    partial = masked(layout, [0, 1, 1], [[1, -1], [-1, 1], [1, 1]], rows=8)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, whole.labels, reduction="none"
    ).detach()
    found, cells = loss(logits, partial)
    assert found.item() == pytest.approx(
        (bce[0, 0] + 2 * 3 * bce[1, 1] + 2 * bce[2, 0] + 6 * bce[2, 1]).item() / 8
    )
    torch.testing.assert_close(
        cells,
        torch.stack(
            [bce[0] * torch.tensor([1, 0]), torch.stack([bce[2, 0], bce[1:, 1].sum()]), torch.zeros(2)]
        ),
    )
    (gradient,) = torch.autograd.grad(found, logits)
    assert (gradient == 0).tolist() == [[False, True], [True, False], [False, False]]


@pytest.mark.parametrize("calibrator_weight", [0.0, 0.5])
def test_a_task_without_labels_has_loss_0_and_the_others_what_they_have_alone(
    calibrator_weight: float,
) -> None:
    layout = make_layout()
    logits = torch.tensor([[0.3, 0.9], [40.0, -200.0]], requires_grad=True)
    batch = masked(layout, [0, 2], [[1, -1], [0, -1]])
    loss = MultiTaskLoss((1.0,) * 3, (1.0, 1.0), calibrator_weight)
    only_second, cells = loss(logits, batch, torch.tensor([0.0, 1.0]))
    assert only_second.item() == 0.0
    assert cells[:, 1].tolist() == [0.0] * 3
    (gradient,) = torch.autograd.grad(loss(logits, batch)[0], logits)
    assert torch.isfinite(gradient).all()
    assert gradient[:, 1].tolist() == [0.0, 0.0]
    first, second = loss.task_losses(cells, label_weights(batch).sum(dim=0)).tolist()
    assert first > 0
    assert second == 0


def test_the_calibrator_compares_only_tasks_whose_labels_are_both_there() -> None:
    layout = make_layout(3, 3)
    logits = torch.logit(torch.tensor([[0.5, 0.7, 0.9], [0.5, 0.7, 0.9], [0.2, 0.4, 0.1]]))
    batch = masked(layout, [0, 0, 1], [[1, 1, 1], [1, -1, 1], [-1, 1, 1]])
    plain, calibrated = (
        MultiTaskLoss((1.0,) * 3, (1.0,) * 3, weight)(logits, batch)[0] for weight in (0.0, 0.6)
    )
    assert (calibrated - plain).item() == pytest.approx(0.6 * (0.2 + 0.2) / 3)


def test_a_row_weighs_what_its_weight_says_and_zero_leaves_it_out() -> None:
    layout = make_layout()
    labels = [[1, 0], [0, -1], [1, 1]]
    logits = torch.linspace(-1, 1, 6).view(3, 2)
    loss = MultiTaskLoss((1.0, 2.0, 1.0), (1.0, 3.0))
    weighted, cells = loss(logits, masked(layout, [0, 1, 2], labels, [2.0, 0.5, 0.0]))
    parts = [
        loss(logits, masked(layout, [0, 1, 2], labels, [float(row == one) for row in range(3)]))
        for one in range(3)
    ]
    torch.testing.assert_close(weighted, 2 * parts[0][0] + 0.5 * parts[1][0])
    torch.testing.assert_close(cells, 2 * parts[0][1] + 0.5 * parts[1][1])
    batch = masked(layout, [0, 1, 2], labels, [2.0, 0.5, 0.0])
    assert label_weights(batch).tolist() == [[2, 2], [0.5, 0], [0, 0]]


def test_weights_make_a_scenarios_loss_its_weighted_mean_whatever_they_sum_to() -> None:
    rows, trained = (2, 1, 1), (8.0, 3.0, 5.0)
    layout = make_layout()
    labels = [[1, 0], [0, 0], [1, 1], [0, 1]]
    weights = [6.0, 2.0, 3.0, 5.0]
    logits = torch.linspace(-1, 1, 8).view(4, 2)
    batch = masked(layout, [0, 0, 1, 2], labels, weights)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none").sum(
        dim=1
    )
    weighted_mean = (torch.tensor(weights) * bce).sum() / 16
    found = MultiTaskLoss(scenario_weights("proportion", rows, (), trained, trained), (1.0, 1.0))(
        logits, batch
    )[0]
    torch.testing.assert_close(found, weighted_mean)
    uniform = MultiTaskLoss(scenario_weights("uniform", rows, (), trained, trained), (1.0, 1.0))(
        logits, batch
    )[0]
    torch.testing.assert_close(uniform, ((6 * bce[0] + 2 * bce[1]) / 8 + bce[2] + bce[3]) / 3)


def test_proportions_are_of_the_rows_before_negatives_are_sampled() -> None:
    rows, whole = (30, 70), (100.0, 100.0)
    assert scenario_weights("proportion", rows, (), whole) == pytest.approx((0.5 / 0.3, 0.5 / 0.7))
    # With weights that make up for the sampling nothing is left to do.
    assert scenario_weights("proportion", rows, (), whole, (50.0, 50.0)) == pytest.approx((1.0, 1.0))
    weights = loss_weights(LossSettings(), ["a", "b"], ["t"], rows, whole)
    assert weights.alphas == pytest.approx((0.5, 0.5))
    # A scenario that nothing is left of weighs nothing.
    assert scenario_weights("uniform", (0, 50), (), whole) == (0.0, 1.0)


def test_masked_and_weighted_parts_of_a_global_batch_add_up_to_the_whole() -> None:
    layout = replace(make_layout(), has_row_weights=True)
    random = np.random.default_rng(0)
    columns = make_columns(layout, [0, 1, 2, 2, 1, 0, 0])
    columns["row_weight"] = random.random(7).astype(np.float32)
    columns["label__t1"][[0, 1, 2, 5]] = -1
    loss = MultiTaskLoss(scenario_weights("uniform", ROWS), (1.0, 0.5), 0.3)

    def of(rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        batch, order = layout.to_batch(take(columns, rows), global_rows=7)
        return loss(torch.linspace(-1, 1, 14).view(7, 2)[rows][order], batch)

    for place in (0, 1):
        parts = of([0, 1, 2])[place] + of([3, 4, 5, 6])[place] + of([])[place]
        torch.testing.assert_close(parts, of(list(range(7)))[place])
