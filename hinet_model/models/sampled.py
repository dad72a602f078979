"""Answers of a model that was trained on a sample of the negatives, corrected to those of all rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hinet_model.data.batch import Batch, NegativeSampling
from hinet_model.models.ctcvr import product_logit
from hinet_model.models.model import ScenarioModel
from hinet_model.nn.embedding import FusedEmbedding


class SampledNegatives(ScenarioModel):
    """A model whose loss sees a share ``k`` of the rows with label 0 of one task.

    In training it answers as the model does. In evaluation mode it answers for all rows: the odds of the sampled
    task are ``k`` times what they are among the rows kept, so its logit moves by ``log k``. Any other task's
    label 1 presupposes the sampled one's (the build of the table has made sure), so of its positives all are
    kept, of all rows the share ``Z = p + k (1 - p)`` with ``p`` the corrected answer: its probability is ``Z``
    times what it is among the rows kept.

    Args:
        model: Any model.
        sampling: The task and the share of each scenario.

    Shape:
        batch of B rows  ->  ``(B, N)`` logits

    Source: Practical Lessons from Predicting Clicks on Ads at Facebook (ADKDD 2014), section 6.3, as odds.
    """

    def __init__(self, model: ScenarioModel, sampling: NegativeSampling) -> None:
        super().__init__()
        self.model = model
        self.task = sampling.task
        self.log_kept_M: Tensor
        kept = torch.tensor(sampling.kept_negatives, dtype=torch.float64).log().float()
        self.register_buffer("log_kept_M", kept, persistent=False)

    @property
    def embedding(self) -> FusedEmbedding:  # type: ignore[override]
        """The model's table."""
        return self.model.embedding

    def scenario_attention(self) -> Tensor | None:
        """The model's attention table."""
        return self.model.scenario_attention()

    def forward(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        logits_BN: Tensor = self.model(batch, rows)
        if self.training:
            return logits_BN
        log_kept_B = self.log_kept_M.to(logits_BN.dtype)[batch.scenario_index]
        columns = list(logits_BN.unbind(dim=1))
        shifted_B = columns[self.task] + log_kept_B
        # Z = p + k (1 - p), by its complement (1 - p)(1 - k): a logit without forming a probability.
        log_rest_B = F.logsigmoid(-shifted_B) + torch.log(-torch.expm1(log_kept_B))
        whole_logit_B = torch.log(-torch.expm1(log_rest_B)) - log_rest_B
        columns = [
            shifted_B if task == self.task else product_logit(column, whole_logit_B)
            for task, column in enumerate(columns)
        ]
        return torch.stack(columns, dim=1)
