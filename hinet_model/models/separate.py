"""Separate models: one per scenario or one per task, as the papers ran their baselines, trained side by side.

Shape letters in this file:
    B  rows in the batch   U  distinct table rows   D  width of ONE model's row   N  tasks   K  models
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from hinet_model.data.batch import Batch
from hinet_model.models.model import ScenarioModel
from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.nn.routing import check_counts, segments_of


class SeparateModels(ScenarioModel):
    """``K`` models that share nothing: embeddings are columns of one table, each model's its own.

    A row of the fused table is ``K`` rows of width ``D`` side by side, so that lookup, exchange and table
    optimiser stay those of one model. With an optimiser that works number by number (Adam, not row-wise
    Adagrad) models per task learn what they would learn alone, on the same batches. Models per scenario see
    their own rows of every batch; what lazy Adam does to a row of the table at a step in which only another
    scenario has it (its moments fade) is the difference to training them alone.

    Args:
        embedding: Table of width ``K * D``.
        members: The models, in the order of scenarios or tasks; without tables of their own.
        by: ``per_scenario`` or ``per_task``.
        num_scenarios: Scenarios of a batch.

    Shape:
        batch of B rows  ->  ``(B, N)`` logits, of each row's own scenario
    """

    def __init__(
        self,
        embedding: FusedEmbedding,
        members: Sequence[ScenarioModel],
        by: Literal["per_scenario", "per_task"],
        num_scenarios: int,
    ) -> None:
        super().__init__()
        self.num_scenarios = num_scenarios
        self.by = by
        self.embedding = embedding
        self.members: Sequence[ScenarioModel] = nn.ModuleList(members)  # type: ignore[assignment]
        self.width = embedding.dim // len(members)

    def scenario_attention(self) -> Tensor | None:
        """The mean of the tasks' attention tables; None per scenario, or where there are none."""
        tables = [member.scenario_attention() for member in self.members]
        found = [table for table in tables if table is not None]
        return torch.stack(found).mean(dim=0) if found else None

    def forward(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        check_counts(batch.scenario_counts, self.num_scenarios, batch.num_rows)
        if rows is None:
            rows = self.embedding.look_up(batch.unique_ids)
        columns = torch.split(rows, self.width, dim=1)
        if self.by == "per_task":
            return torch.cat(
                [member(batch, own) for member, own in zip(self.members, columns, strict=True)], dim=1
            )
        return torch.cat(
            [
                self.members[scenario](part_of(batch, start, stop), columns[scenario])
                for scenario, start, stop in segments_of(batch.scenario_counts)
            ]
        )


def part_of(batch: Batch, start: int, stop: int) -> Batch:
    """Rows of one scenario as a batch of a data set that has no other."""
    return replace(
        batch,
        scenario_counts=(stop - start,),
        scenario_index=torch.zeros_like(batch.scenario_index[start:stop]),
        inverse=batch.inverse[start:stop],
        numbers=batch.numbers[start:stop],
        labels=batch.labels[start:stop],
        row_ids=batch.row_ids[start:stop],
        row_weights=None if batch.row_weights is None else batch.row_weights[start:stop],
    )
