"""Scenario extractors: all sub-experts that read the features, and the sums that a row needs of them.

Shape letters in this file:
    B  rows in the batch         M  scenarios
    D  width of the features     E  sub-experts of all extractors together
    H  width of an answer        C  sums per row: shared, own, others
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hinet_model.nn.gate import SoftmaxGates
from hinet_model.nn.mlp import StackedMLP
from hinet_model.nn.routing import segments_of


class ScenarioExtractors(nn.Module):
    """The scenario layer: ``C_i = concat[G, S_i, A_i]`` for each row of each scenario ``i``.

    ``SEI(x) = sum_k g_k(x) Q_k(x)`` is the block of the shared extractor (``G``) and of one extractor per
    scenario (``S_m``), and ``A_i = sum_m a[i, m] S_m``. Since all three are weighted sums of the same
    sub-experts' answers, they are computed as such: the gates' weights are multiplied with the rows of the
    attention table, and one product sums all answers three times. No ``S_m`` is ever formed.
    Without attention a row needs its own extractor alone, and is sent through no other.

    Args:
        in_dim: Width ``D`` of the features.
        counts: Sub-experts of the shared extractor, then of each scenario's; ``M + 1`` of them.
        dims: Widths of a sub-expert's layers.
        dropout: Rate of dropout after each of its layers.
        gates: False averages sub-experts.
        attention: Whether ``forward`` is given an attention table (else ``C = concat[G, S]``).

    Shape:
        x_BD: ``(B, D)``  ->  ``(B, 3 * H)``, or ``(B, 2 * H)`` without attention

    Source: HiNet (ICDE 2023), sub-expert integration module and scenario-aware attentive network.
    """

    def __init__(
        self,
        in_dim: int,
        counts: Sequence[int],
        dims: Sequence[int],
        dropout: float,
        gates: bool,
        attention: bool,
    ) -> None:
        super().__init__()
        self.counts = list(counts)
        self.attention = attention
        self.sub_experts = StackedMLP(sum(counts), in_dim, dims, dropout)
        self.out_dim = dims[-1] * (3 if attention else 2)
        members = [[[k < count for k in range(max(counts))] for count in counts]]
        # Without attention a segment's gates are computed apart, so that each extractor is its own bank.
        banks = members if attention else [[[True] * count] for count in counts]
        self.gates = SoftmaxGates(in_dim, banks, enabled=gates)
        place = torch.tensor(members[0]).flatten().nonzero().flatten()
        group = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        scenario = torch.arange(len(counts) - 1)
        self.place: Tensor
        self.group: Tensor
        self.fixed: Tensor
        self.register_buffer("place", place, persistent=False)
        self.register_buffer("group", group, persistent=False)
        # fixed[i, 0, e]: is e shared;  fixed[i, 1, e]: is e scenario i's own.
        fixed = torch.stack(
            [(group == 0).expand(len(scenario), -1), group == (scenario + 1).unsqueeze(1)], dim=1
        )
        self.register_buffer("fixed", fixed.float(), persistent=False)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all parameters anew."""
        self.sub_experts.reset_parameters(generator)
        self.gates.reset_parameters(generator)

    def forward(
        self, x_BD: Tensor, scenario_index: Tensor, scenario_counts: Sequence[int], table: Tensor | None
    ) -> Tensor:
        """Extract what each row's scenario needs.

        Args:
            x_BD: Features, rows sorted by scenario.
            scenario_index: Scenario of each row. ``(B,)``.
            scenario_counts: Rows of each scenario.
            table: Attention table ``(M, M)``; None exactly if built without attention.
        """
        if self.attention:
            assert table is not None
            return self._all_sums(x_BD, scenario_index, table)
        return self._routed(x_BD, scenario_counts)

    def _all_sums(self, x_BD: Tensor, scenario_index: Tensor, table: Tensor) -> Tensor:
        answer_EBH = self.sub_experts(x_BD)
        gate_BE = self.gates(x_BD).flatten(1)
        if len(self.place) < gate_BE.shape[1]:
            gate_BE = gate_BE.index_select(1, self.place)
        # The shared extractor is group 0 and gets no attention.
        attention_ME = nn.functional.pad(table, (1, 0)).index_select(1, self.group)
        sums_MCE = torch.cat([self.fixed, attention_ME.unsqueeze(1)], dim=1)
        weight_BCE = gate_BE.unsqueeze(1) * sums_MCE.index_select(0, scenario_index)
        return torch.bmm(weight_BCE, answer_EBH.transpose(0, 1)).flatten(1)

    def _routed(self, x_BD: Tensor, scenario_counts: Sequence[int]) -> Tensor:
        layers = self.sub_experts.split(self.counts)
        weights = self.gates.split()

        def integrate(rows: Tensor, group: int) -> Tensor:
            answer_EnH = self.sub_experts(rows, layers[group])
            gate_n1E = self.gates(rows, group, weights[group])
            return torch.bmm(gate_n1E, answer_EnH.transpose(0, 1)).squeeze(1)

        own = [
            integrate(x_BD[start:stop], scenario + 1)
            for scenario, start, stop in segments_of(scenario_counts)
        ]
        return torch.cat([integrate(x_BD, 0), torch.cat(own)], dim=1)
