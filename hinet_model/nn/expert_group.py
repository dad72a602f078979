"""Scenario extractors: all sub-experts that read the features, and the sums that a row needs of them.

Shape letters in this file:
    B  rows in the batch         M  scenarios
    D  width of the features     E  sub-experts of all extractors together
    H  width of an answer        C  sums per row: shared, own, others
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hinet_model.nn.block import Block
from hinet_model.nn.gate import SoftmaxGates
from hinet_model.nn.mlp import Layers, StackedMLP
from hinet_model.nn.routed_experts import ExpertGroups, can_route
from hinet_model.nn.routing import Segment, pieces_of, segments_of


class ScenarioExtractors(Block):
    """The scenario layer: ``C_i = concat[G, S_i, A_i]`` for each row of each scenario ``i``.

    ``SEI(x) = sum_k g_k(x) Q_k(x)`` is the block of the shared extractor (``G``) and of one extractor per
    scenario (``S_m``), and ``A_i = sum_m a[i, m] S_m``. Since all three are weighted sums of the same
    sub-experts' answers, they are computed as such: the gates' weights are multiplied with the rows of the
    attention table, and one product sums all answers three times. No ``S_m`` is ever formed.
    Without attention a row needs its own extractor alone, and is sent through no other; with ``top_k`` its own
    and those of the ``k`` scenarios that its own listens to. On a CPU all of it is one compiled operation
    (`routed_experts`), which forms each ``S_m`` only for the rows that need it; what follows it here is the same by
    torch's own operations, for GPUs, bf16, and attention that varies by row.

    Args:
        in_dim: Width ``D`` of the features.
        counts: Sub-experts of the shared extractor, then of each scenario's; ``M + 1`` of them.
        dims: Widths of a sub-expert's layers.
        dropout: Rate of dropout after each of its layers.
        gates: False averages sub-experts.
        attention: Whether ``forward`` is given attention weights (else ``C = concat[G, S]``).
        top_k: Others in a row of the attention table that are not zero; None if all may be.

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
        top_k: int | None = None,
    ) -> None:
        super().__init__()
        self.counts = list(counts)
        self.attention = attention
        self.top_k = top_k if attention else None
        self.sub_experts = StackedMLP(sum(counts), in_dim, dims, dropout)
        self.out_dim = dims[-1] * (3 if attention else 2)
        members = [[[k < count for k in range(max(counts))] for count in counts]]
        # Where rows are routed an extractor's gates are computed apart, so that each is a bank of its own.
        together = attention and top_k is None
        banks = members if together else [[[True] * count] for count in counts]
        self.gates = SoftmaxGates(in_dim, banks, enabled=gates)
        experts = [(number, k) for number, count in enumerate(counts) for k in range(count)]
        place = torch.tensor([number * max(counts) + k for number, k in experts])
        group = torch.tensor([number for number, _ in experts])
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
        self.groups = ExpertGroups.of([[[True] * count] for count in counts])

    def forward(
        self,
        x_BD: Tensor,
        scenario_index: Tensor,
        scenario_counts: Sequence[int],
        attention: Tensor | None,
        per_row: bool = False,
    ) -> Tensor:
        """Extract what each row's scenario needs.

        Args:
            x_BD: Features, rows sorted by scenario.
            scenario_index: Scenario of each row. ``(B,)``.
            scenario_counts: Rows of each scenario.
            attention: The table ``(M, M)``, or weights of each row; None exactly if built without attention.
            per_row: ``attention`` is ``(B, M)``.
        """
        if can_route(x_BD) and not per_row:
            return self._compiled(x_BD, scenario_counts, attention)
        if not self.attention:
            return self._routed(x_BD, scenario_counts)
        assert attention is not None
        if self.top_k is not None:
            return self._routed_top(x_BD, scenario_counts, attention, self.top_k)
        return self._all_sums(x_BD, scenario_index, attention, per_row)

    def _compiled(self, x_BD: Tensor, scenario_counts: Sequence[int], table: Tensor | None) -> Tensor:
        """Every extractor on the rows that need it, gates and the three sums included, as one operation."""
        table = None if table is None else table.to(x_BD.dtype)
        heard = None if table is None else self._heard(table.detach())
        pieces, num_blocks = _extractor_pieces(scenario_counts, heard), 3 if self.attention else 2
        sums = self.sub_experts.route(x_BD, self.groups, pieces, num_blocks, self.gates.weight, table)
        return sums.flatten(1)

    def _heard(self, table: Tensor) -> npt.NDArray[np.bool_]:
        """Whom each scenario listens to. ``(M, M)``"""
        num_scenarios = len(self.counts) - 1
        if self.top_k is None:
            return ~np.eye(num_scenarios, dtype=np.bool_)
        heard = np.zeros((num_scenarios, num_scenarios), dtype=np.bool_)
        np.put_along_axis(heard, table.topk(self.top_k, dim=1).indices.numpy(), True, axis=1)
        return heard

    def _all_sums(self, x_BD: Tensor, scenario_index: Tensor, attention: Tensor, per_row: bool) -> Tensor:
        answer_EBH = self.sub_experts(x_BD)
        gate_BE = self.gates(x_BD).flatten(1)
        if len(self.place) < gate_BE.shape[1]:
            gate_BE = gate_BE.index_select(1, self.place)
        # The shared extractor is group 0 and gets no attention.
        attention_E = nn.functional.pad(attention, (1, 0)).index_select(1, self.group).unsqueeze(1)
        if per_row:
            sums_BCE = torch.cat([self.fixed.index_select(0, scenario_index), attention_E], dim=1)
        else:
            sums_BCE = torch.cat([self.fixed, attention_E], dim=1).index_select(0, scenario_index)
        weight_BCE = gate_BE.unsqueeze(1) * sums_BCE
        return torch.bmm(weight_BCE, answer_EBH.transpose(0, 1)).flatten(1)

    def _routed(self, x_BD: Tensor, scenario_counts: Sequence[int]) -> Tensor:
        layers, weights = self.sub_experts.split(self.counts), self.gates.split()
        pieces = pieces_of(x_BD, scenario_counts)
        own = [
            self._integrate(pieces[scenario], scenario + 1, layers[scenario + 1], weights[scenario + 1])
            for scenario, _, _ in segments_of(scenario_counts)
        ]
        return torch.cat([self._integrate(x_BD, 0, layers[0], weights[0]), torch.cat(own)], dim=1)

    def _routed_top(self, x_BD: Tensor, scenario_counts: Sequence[int], table: Tensor, top_k: int) -> Tensor:
        """Send the rows of each scenario through its own extractor and those it listens to.

        Work is laid out by extractor: all rows that need one are one product, its weights are not copied.
        """
        layers, weights = self.sub_experts.split(self.counts), self.gates.split()
        segments, pieces = segments_of(scenario_counts), pieces_of(x_BD, scenario_counts)
        heard = table.detach().topk(top_k, dim=1).indices.tolist()
        listeners: dict[int, list[Segment]] = {}
        for segment in segments:
            for scenario in (segment.scenario, *heard[segment.scenario]):
                listeners.setdefault(scenario, []).append(segment)
        own: dict[int, Tensor] = {}
        others: dict[int, Tensor] = {}
        for scenario, wanted in sorted(listeners.items()):
            rows = [pieces[i] for i, _, _ in wanted]
            answer = self._integrate(
                rows[0] if len(rows) == 1 else torch.cat(rows),
                scenario + 1,
                layers[scenario + 1],
                weights[scenario + 1],
            )
            for (i, _, _), part in zip(
                wanted, torch.split(answer, [len(part) for part in rows]), strict=True
            ):
                if i == scenario:
                    own[i] = part
                else:
                    weighed = table[i, scenario] * part
                    others[i] = others[i] + weighed if i in others else weighed
        return torch.cat(
            [
                self._integrate(x_BD, 0, layers[0], weights[0]),
                torch.cat([own[scenario] for scenario, _, _ in segments]),
                torch.cat([others[scenario] for scenario, _, _ in segments]),
            ],
            dim=1,
        )

    def _integrate(self, rows: Tensor, group: int, layers: Layers, weight: Tensor | None) -> Tensor:
        """SEI of one extractor. ``(n, H)``"""
        answer_EnH = self.sub_experts(rows, layers)
        gate_n1E = self.gates(rows, group, weight)
        return torch.bmm(gate_n1E, answer_EnH.transpose(0, 1)).squeeze(1)


def _extractor_pieces(scenario_counts: Sequence[int], heard: npt.NDArray[np.bool_] | None) -> Tensor:
    """Which rows an extractor works on, and for which of a row's sums; see `routed_experts`.

    Group 0 is the shared extractor and works for block 0, ``G``; group ``m + 1`` is scenario ``m``'s and works for
    block 1, ``S``, of its own rows, and for block 2, ``A``, of the rows of scenarios that listen to it.
    """
    counts = np.asarray(scenario_counts, dtype=np.int64)
    stops = counts.cumsum()
    own = np.eye(len(counts), dtype=np.bool_)
    needed = (own if heard is None else own | heard) & (counts > 0)[:, None]
    extractor, listener = needed.T.nonzero()
    with_rows = counts.nonzero()[0]
    group = np.concatenate([np.zeros_like(with_rows), extractor + 1])
    scenario = np.concatenate([with_rows, listener])
    is_own = scenario == group - 1
    block = np.where(group == 0, 0, np.where(is_own, 1, 2))
    mix = np.where(block == 2, scenario * len(counts) + group - 1, -1)
    return torch.from_numpy(
        np.stack([group, stops[scenario] - counts[scenario], stops[scenario], block, mix], axis=1)
    )
