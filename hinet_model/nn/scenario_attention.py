"""Scenario attention: how much each scenario listens to each of the others.

Shape letters in this file:
    M  scenarios   D  width of a scenario's embedding
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hinet_model.nn.mlp import initialise_linear_


class ScenarioAttention(nn.Module):
    """A table of weights ``a[i, m]``, each row a softmax over the OTHER scenarios.

    ``a_i = softmax(W_a^i Emb(s_i))`` over the ``M - 1`` scenarios other than ``i``, where ``W_a^i`` is
    scenario ``i``'s own. The input is the scenario's indicator alone, so the weights are the same for all
    its rows. With two scenarios the other one has weight 1 whatever the parameters were, so there are none.

    Args:
        num_scenarios: Number ``M`` of scenarios, 2 at least.
        embedding_dim: Width ``D`` of a scenario's embedding.

    Shape:
        ->  ``(M, M)``, zero on the diagonal, non-negative, every row summing to 1

    Source: HiNet (ICDE 2023), scenario-aware attentive network.
    """

    def __init__(self, num_scenarios: int, embedding_dim: int) -> None:
        super().__init__()
        if num_scenarios < 2:
            raise ValueError(f"scenario attention needs two scenarios at least; got {num_scenarios}")
        self.num_scenarios = num_scenarios
        self.embedding_dim = embedding_dim
        others = [[m for m in range(num_scenarios) if m != i] for i in range(num_scenarios)]
        self.others: Tensor
        self.register_buffer("others", torch.tensor(others), persistent=False)
        self.embedding: nn.Parameter | None = None
        self.weight: nn.Parameter | None = None
        if num_scenarios > 2:
            self.embedding = nn.Parameter(torch.empty(num_scenarios, embedding_dim))
            self.weight = nn.Parameter(torch.empty(num_scenarios, num_scenarios - 1, embedding_dim))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw embeddings and weights anew."""
        if self.embedding is not None and self.weight is not None:
            with torch.no_grad():
                self.embedding.normal_(generator=generator)
            initialise_linear_(self.weight, self.embedding_dim, generator)

    def forward(self) -> Tensor:
        if self.embedding is None or self.weight is None:
            return 1.0 - torch.eye(self.num_scenarios, device=self.others.device)
        score = (self.weight * self.embedding.unsqueeze(1)).sum(dim=-1)
        weight = score.softmax(dim=-1)
        table = weight.new_zeros(self.num_scenarios, self.num_scenarios)
        return table.scatter(1, self.others, weight)
