"""The product of a funnel where labels are missing: who learns from which row."""

from __future__ import annotations

import numpy as np
import torch
from batches import make_columns, make_layout
from fixed_answers import Answers

from hinet_model.models.ctcvr import CtcvrProduct
from hinet_model.objective.losses import MultiTaskLoss


def test_a_label_of_the_product_teaches_both_factors_and_a_missing_one_neither() -> None:
    layout = make_layout()
    columns = make_columns(layout, [0, 1, 1, 2])
    columns["label__t0"] = np.array([1, -1, -1, 0], dtype=np.float32)
    columns["label__t1"] = np.array([-1, 1, 0, -1], dtype=np.float32)
    batch, _ = layout.to_batch(columns)
    logits = torch.tensor([[0.3, -0.2], [0.5, 0.1], [-0.4, 0.8], [1.0, 2.0]], requires_grad=True)
    loss, _ = MultiTaskLoss((1.0,) * 3, (1.0, 1.0))(CtcvrProduct(Answers(logits), 0, 1)(batch), batch)
    prob = torch.sigmoid(logits.detach())
    product = prob[:, 0] * prob[:, 1]
    expected = -(prob[0, 0].log() + product[1].log() + (1 - product[2]).log() + (1 - prob[3, 0]).log()) / 4
    torch.testing.assert_close(loss.detach(), expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient != 0).tolist() == [[True, False], [True, True], [True, True], [True, False]]
