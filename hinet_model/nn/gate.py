"""Gates: decide, row by row, how much to trust each expert.

Shape letters in this file:
    B  rows in the batch           G  gates in a bank
    D  width of the gates' input   W  places for experts, the same for all gates of a bank
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hinet_model.nn.mlp import initialise_linear_

Members = Sequence[Sequence[bool]]
"""``members[g][w]``: whether gate ``g`` of a bank chooses among the expert at place ``w``."""


class SoftmaxGates(nn.Module):
    """Banks of gates; the gates of a bank read the same rows and are one product.

    Each gate is a softmax over one linear score per expert, without a bias. Scores go into the softmax as
    they are: a ReLU in between would tie every expert that scored below zero. Places that are not a gate's
    own get weight zero, so that gates with different numbers of experts still form one bank.

    Args:
        in_dim: Width ``D`` of the rows that the gates read.
        banks: The members of each gate of each bank; every gate needs one member at least.
        enabled: False trusts all members equally, whatever the row says, and has no parameters.

    Shape:
        rows_BD: ``(B, D)``  ->  ``(B, G, W)``, non-negative, every gate's weights summing to 1

    Source: HiNet (ICDE 2023), gates of the sub-expert integration and of the customised gate control.
    """

    def __init__(self, in_dim: int, banks: Sequence[Members], enabled: bool = True) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.enabled = enabled
        self.shapes = [(len(bank), len(bank[0])) for bank in banks]
        self.sizes = [sum(sum(gate) for gate in bank) for bank in banks]
        for position, bank in enumerate(banks):
            member = torch.tensor(bank, dtype=torch.bool).flatten()
            # The score of place p is row `source[p]` of the bank's weights; the row after the last is zero.
            source = torch.where(member, member.cumsum(0) - 1, self.sizes[position])
            penalty = torch.zeros(member.numel()).masked_fill_(~member, float("-inf"))
            self.register_buffer(f"source_{position}", source, persistent=False)
            self.register_buffer(f"penalty_{position}", penalty, persistent=False)
        self.weight = nn.Parameter(torch.empty(sum(self.sizes), in_dim)) if enabled else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights anew."""
        if self.weight is not None:
            initialise_linear_(self.weight, self.in_dim, generator)

    def split(self) -> list[Tensor | None]:
        """The weights of each bank, None where the gates are disabled."""
        if self.weight is None:
            return [None] * len(self.sizes)
        return list(torch.split(self.weight, self.sizes))

    def forward(self, rows_BD: Tensor, bank: int = 0, weight: Tensor | None = None) -> Tensor:
        """Weigh the experts of one bank.

        Args:
            rows_BD: What the gates read.
            bank: Which bank.
            weight: That bank's part of `split`; looked up if not given.
        """
        gates, places = self.shapes[bank]
        penalty: Tensor = self.get_buffer(f"penalty_{bank}")
        if self.weight is None:
            score = penalty.expand(rows_BD.shape[0], -1)
        else:
            weight = self.split()[bank] if weight is None else weight
            assert weight is not None
            if self.sizes[bank] == gates * places:
                score = rows_BD @ weight.t()
            else:
                with_zero = torch.cat([weight, weight.new_zeros(1, self.in_dim)])
                placed = with_zero.index_select(0, self.get_buffer(f"source_{bank}"))
                score = torch.addmm(penalty.to(rows_BD.dtype), rows_BD, placed.t())
        return score.view(-1, gates, places).softmax(dim=-1)
