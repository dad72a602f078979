"""Scenario attention: how much each scenario listens to each of the others.

Shape letters in this file:
    M  scenarios            D  width of a scenario's embedding
    B  rows in the batch    F  features that it reads beside the indicator
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hinet_model.data.batch import Batch
from hinet_model.nn.mlp import initialise_linear_
from hinet_model.nn.routing import pieces_of, segments_of


class ScenarioAttention(nn.Module):
    """A table of weights ``a[i, m]``, each row a softmax over the OTHER scenarios.

    ``a_i = softmax(W_a^i Emb(s_i))`` over the ``M - 1`` scenarios other than ``i``, where ``W_a^i`` is
    scenario ``i``'s own. The input is the scenario's indicator alone, so the weights are the same for all
    its rows. With two scenarios the other one has weight 1 whatever the parameters were, so there are none.

    With features the weights are those of a row, ``softmax(W_a^i Emb(s_i) + V_a^i f)``: no table then.
    With ``top_k`` the softmax is over the ``k`` others with the highest scores, which stay free to be overtaken:
    a score that is listened to may fall. (With ``k = 1`` the one other has weight 1, and scores never move.)

    Args:
        num_scenarios: Number ``M`` of scenarios, 2 at least.
        embedding_dim: Width ``D`` of a scenario's embedding.
        top_k: Others that a scenario listens to, fewer than ``M - 1``; None for all.
        columns: Places of the features that it reads beside the indicator, in a row of features.

    Shape:
        ->  ``(M, M)``, zero on the diagonal, non-negative, every row summing to 1

    Source: HiNet (ICDE 2023), scenario-aware attentive network.
    """

    def __init__(
        self,
        num_scenarios: int,
        embedding_dim: int,
        top_k: int | None = None,
        columns: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if num_scenarios < 2:
            raise ValueError(f"scenario attention needs two scenarios at least; got {num_scenarios}")
        self.num_scenarios = num_scenarios
        self.embedding_dim = embedding_dim
        self.top_k = top_k
        self.columns = list(columns)
        others = [[m for m in range(num_scenarios) if m != i] for i in range(num_scenarios)]
        self.others: Tensor
        self.register_buffer("others", torch.tensor(others), persistent=False)
        self.embedding: nn.Parameter | None = None
        self.weight: nn.Parameter | None = None
        self.feature_weight: nn.Parameter | None = None
        if num_scenarios > 2:
            self.embedding = nn.Parameter(torch.empty(num_scenarios, embedding_dim))
            self.weight = nn.Parameter(torch.empty(num_scenarios, num_scenarios - 1, embedding_dim))
            if columns:
                self.feature_weight = nn.Parameter(
                    torch.empty(num_scenarios, num_scenarios - 1, len(self.columns))
                )

    @property
    def varies(self) -> bool:
        """Whether the weights depend on the row, so that there is no table."""
        return self.feature_weight is not None

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw embeddings and weights anew."""
        if self.embedding is not None and self.weight is not None:
            with torch.no_grad():
                self.embedding.normal_(generator=generator)
            initialise_linear_(self.weight, self.embedding_dim, generator)
        if self.feature_weight is not None:
            initialise_linear_(self.feature_weight, len(self.columns), generator)

    def forward(self) -> Tensor:
        if self.embedding is None or self.weight is None:
            return 1.0 - torch.eye(self.num_scenarios, device=self.others.device)
        score = (self.weight * self.embedding.unsqueeze(1)).sum(dim=-1)
        others = self.others
        if self.top_k is not None:
            score, places = score.topk(self.top_k, dim=1)
            others = others.gather(1, places)
        weight = score.softmax(dim=-1)
        table = weight.new_zeros(self.num_scenarios, self.num_scenarios)
        return table.scatter(1, others, weight)

    def of_rows(self, x_BD: Tensor, batch: Batch) -> Tensor:
        """The weights of each row, which its features have a say in.

        Args:
            x_BD: Features of the batch.
            batch: Rows sorted by scenario.

        Returns:
            ``(B, M)``, zero for the own scenario, every row summing to 1.
        """
        assert self.embedding is not None
        assert self.weight is not None
        assert self.feature_weight is not None
        score = (self.weight * self.embedding.unsqueeze(1)).sum(dim=-1)
        rows = pieces_of(x_BD[:, self.columns], batch.scenario_counts)
        weights = [
            (score[scenario] + rows[scenario] @ self.feature_weight[scenario].t()).softmax(dim=-1)
            for scenario, _, _ in segments_of(batch.scenario_counts)
        ]
        weight_BO = torch.cat(weights)
        table_BM = weight_BO.new_zeros(batch.num_rows, self.num_scenarios)
        return table_BM.scatter(1, self.others.index_select(0, batch.scenario_index), weight_BO)
