"""Sampled negatives: what the loss sees, what the model answers, and that the answers are calibrated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import make_batch, make_layout
from fixed_answers import Answers
from torch import Tensor, nn

from hinet_model.config import LossSettings
from hinet_model.data.batch import Batch, BatchLayout, NegativeSampling
from hinet_model.models.build import build_model
from hinet_model.models.model import ScenarioModel
from hinet_model.models.sampled import SampledNegatives
from hinet_model.models.shared_bottom import SharedBottomSettings
from hinet_model.objective.losses import MultiTaskLoss, loss_weights


def test_answers_are_those_of_all_rows_for_the_sampled_task_and_for_one_that_presupposes_it() -> None:
    click = torch.tensor([0.3, 0.05, 0.5, 1e-6, 0.999], dtype=torch.float64)
    order = torch.tensor([0.1, 0.001, 0.5, 1e-9, 0.2], dtype=torch.float64)
    kept = torch.tensor([0.1, 0.1, 0.1, 1.0, 1.0], dtype=torch.float64)
    # Of rows with label 1 all are kept, of all rows this share.
    share = click + kept * (1 - click)
    answers = Answers(torch.logit(torch.stack([order / share, click / share], dim=1)))
    batch = make_batch(make_layout(2), [0, 0, 0, 1, 1])
    model = SampledNegatives(answers, NegativeSampling(task=1, kept_negatives=(0.1, 1.0)))
    corrected = torch.sigmoid(model.eval()(batch))
    torch.testing.assert_close(corrected, torch.stack([order, click], dim=1), rtol=1e-6, atol=0)
    # A scenario that keeps all negatives is answered to the bit.
    assert torch.equal(model(batch)[3:], answers.logits_BN[3:])
    assert torch.equal(model.train()(batch), answers.logits_BN)


def test_logits_however_large_stay_finite_and_order_stays_below_click() -> None:
    logits = torch.tensor([[-90.0, 90.0], [90.0, -90.0], [0.0, 0.0], [60.0, 60.0]])
    model = SampledNegatives(Answers(logits.requires_grad_()), NegativeSampling(0, (1e-6, 0.5)))
    found = model.eval()(make_batch(make_layout(2), [0, 0, 1, 1]))
    assert torch.isfinite(found).all()
    assert (found[:, 1] <= logits[:, 1]).all()


def test_a_built_model_answers_by_the_layout_and_its_weights_are_those_of_the_model_itself() -> None:
    layout = make_layout()
    sampled = replace(layout, sampling=NegativeSampling(0, (0.1, 0.5, 1.0)))
    settings = SharedBottomSettings(expert_dims=[8], tower_dims=[4])
    plain, corrected = build_model(settings, layout, 3), build_model(settings, sampled, 3)
    batch = make_batch(layout, [0, 1, 2])
    assert torch.equal(plain.train()(batch), corrected.train()(batch))
    shift = (corrected.eval()(batch) - plain.eval()(batch))[:, 0]
    torch.testing.assert_close(shift, torch.tensor([0.1, 0.5, 1.0]).log())
    assert set(corrected.state_dict()) == {f"model.{name}" for name in plain.state_dict()}


class Logistic(ScenarioModel):
    """A logistic regression on one number, with an intercept for each scenario."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.intercept_M = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        return (self.slope * batch.numbers[:, 0] + self.intercept_M[batch.scenario_index]).unsqueeze(1)


@pytest.mark.parametrize("correction", ["weights", "shift", "none"])
@pytest.mark.parametrize("scheme", ["proportion", "uniform"])
def test_the_mean_answer_over_all_rows_is_the_base_rate_of_each_scenario(
    correction: str, scheme: str
) -> None:
    random = np.random.default_rng(5)
    num_rows, kept = 60_000, np.array([0.1, 0.5])
    scenario = np.sort(random.integers(0, 2, num_rows)).astype(np.int32)
    number = random.normal(size=num_rows).astype(np.float32)
    rate = 1 / (1 + np.exp(-(number + np.array([-3.5, -2.0])[scenario])))
    label = (random.random(num_rows) < rate).astype(np.float32)
    keep = (label == 1) | (random.random(num_rows) < kept[scenario])
    weight = np.where(label == 0, 1 / kept[scenario], 1.0).astype(np.float32)
    if correction != "weights":
        weight[:] = 1.0
    layout = BatchLayout.from_schema(
        {
            "fields": [
                {"name": "x", "kind": "number", "slots": 1, "size": 0, "columns": ["x"], "shares": None}
            ],
            "scenario_names": ["a", "b"],
            "task_names": ["click"],
            "row_weights": True,
            "shift": {"task": 0, "kept_negatives": kept.tolist()} if correction == "shift" else None,
        }
    )
    columns = {"scenario_index": scenario, "x": number, "label__click": label, "row_weight": weight}
    trained, _ = layout.to_batch({name: values[keep] for name, values in columns.items()})
    whole, _ = layout.to_batch(columns)
    rows = np.bincount(scenario[keep], minlength=2)
    weights = loss_weights(
        LossSettings(scheme=scheme), ["a", "b"], ["click"], rows.tolist(),
        whole=np.bincount(scenario).tolist(), trained=np.bincount(scenario[keep], weight[keep]).tolist(),
    )  # fmt: skip
    loss = MultiTaskLoss(weights.row_factors, weights.tasks)
    model: ScenarioModel = Logistic()
    if layout.sampling is not None:
        model = SampledNegatives(model, layout.sampling)
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimiser.zero_grad()
        value = loss(model.train()(trained), trained)[0]
        value.backward()
        return value

    optimiser.step(step)
    answers = torch.sigmoid(model.eval()(whole))[:, 0].detach().numpy()
    means = [answers[scenario == place].mean() / label[scenario == place].mean() for place in (0, 1)]
    if correction == "none":
        assert means[0] > 4
        assert means[1] > 1.5
    else:
        assert means == pytest.approx([1, 1], rel=0.04)
