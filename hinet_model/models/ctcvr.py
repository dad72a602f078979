"""Product of a funnel: P(order) = P(click) * P(order | click), on top of any model."""

from __future__ import annotations

import torch
from torch import Tensor

from hinet_model.data.batch import Batch
from hinet_model.models.model import ScenarioModel
from hinet_model.nn.embedding import FusedEmbedding


class CtcvrProduct(ScenarioModel):
    """A model whose answer to one task is conditional on another, multiplied out.

    The later task is trained over all impressions, on the product, as in ESMM: its own network learns the
    conditional probability without ever being shown clicked rows alone.

    Args:
        model: Any model.
        ctr_task: Column of the task that comes first.
        ctcvr_task: Column of the task that presupposes it.

    Shape:
        batch of B rows  ->  ``(B, N)`` logits; that of ``ctcvr_task`` is never above that of ``ctr_task``

    Source: Entire Space Multi-Task Model (SIGIR 2018), equation 1 (the product) and equation 3 (its loss).
    """

    def __init__(self, model: ScenarioModel, ctr_task: int, ctcvr_task: int) -> None:
        super().__init__()
        self.model = model
        self.ctr_task, self.ctcvr_task = ctr_task, ctcvr_task

    @property
    def embedding(self) -> FusedEmbedding:  # type: ignore[override]
        """The model's table."""
        return self.model.embedding

    def scenario_attention(self) -> Tensor | None:
        """The model's attention table."""
        return self.model.scenario_attention()

    def forward(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        columns = list(self.model(batch, rows).unbind(dim=1))
        columns[self.ctcvr_task] = product_logit(columns[self.ctr_task], columns[self.ctcvr_task])
        return torch.stack(columns, dim=1)


def product_logit(first: Tensor, second: Tensor) -> Tensor:
    """Logit of ``sigmoid(first) * sigmoid(second)``, without ever forming a probability.

    The odds of the product are ``1 / (e^-a + e^-b + e^-(a+b))``, so the logit is a negative log-sum-exp: it does
    not overflow, and since a log-sum-exp is at least its largest term, it is at most ``first`` to the bit.
    """
    return -torch.logsumexp(torch.stack([-first, -second, -first - second]), dim=0)
