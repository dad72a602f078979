"""HiNet: a scenario layer that shares and tells apart, under a task layer per scenario.

Source: HiNet: Novel Multi-Scenario & Multi-Task Learning with Hierarchical Information Extraction
(ICDE 2023, arXiv 2303.06095).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field
from torch import Tensor

from foundation.settings import ConfigError
from hinet_model.data.batch import Batch, BatchLayout
from hinet_model.models.counts import counts_of, specific_of
from hinet_model.models.embedded import EmbeddedModel
from hinet_model.models.features import build_norm, columns_of
from hinet_model.models.model import ModelKind
from hinet_model.models.settings import Count, ModelSettings, Rate, Widths
from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.nn.expert_group import ScenarioExtractors
from hinet_model.nn.normalisation import RowNorm, ScenarioNorm
from hinet_model.nn.scenario_attention import ScenarioAttention
from hinet_model.nn.task_layer import TaskLayer


class HiNetSettings(ModelSettings):
    """Keys of HiNet."""

    name: Literal["hinet"] = "hinet"
    sub_experts: Count | dict[str, Count] = 4
    """Sub-experts K of each extractor: one count, or one for `shared` and one per scenario."""
    sub_expert_dims: Widths = Field(default=[128, 64])
    """Widths of a sub-expert's layers, each followed by ReLU."""
    dropout: Rate = 0.0
    """Dropout after every layer of the sub-experts."""
    shared_experts: Count | dict[str, Count] = 2
    """Experts of the task layer that a scenario's tasks share: one count, or one per scenario."""
    specific_experts: Count | dict[str, Count | dict[str, Count]] = 2
    """Experts of the task layer that one (scenario, task) pair owns: one count, or one per task, or those per
    scenario."""
    scenario_embedding_dim: Count = 64
    """Width of `Emb(s_i)`, which feeds the scenario attention and nothing else."""
    gates: bool = True
    """false: the outputs of (sub-)experts are averaged (ablation without gates)."""
    hierarchy: bool = True
    """false: no scenario layer, the task layer reads the features (ablation)."""
    scenario_attention: Literal["full", "top_k", "none"] = "full"
    """none: no attention over the other scenarios, `C = [G, S]` (ablation); top_k: over the `top_k` others
    that matter most, whose extractors alone are computed for a row."""
    top_k: Count = 4
    """Others that a scenario listens to under `scenario_attention: top_k`; at least all others: full."""
    scenario_attention_input: Literal["indicator", "features"] = "indicator"
    """What the attention reads: the indicator makes its weights one table per model; features adds
    `scenario_features`, and every row has weights of its own (not with top_k)."""
    scenario_features: list[str] = Field(default=[])
    """Features of the contract that `scenario_attention_input: features` adds to the indicator."""


@dataclass(frozen=True)
class HiNetSizes:
    """Plain sizes of a HiNet; `hinet_model.models.build` makes them from a configuration.

    Args:
        sub_experts: Of the shared extractor, then of each scenario's; one more than scenarios.
        sub_expert_dims: Widths of a sub-expert's layers.
        shared_experts: Of the task layer, per scenario.
        specific_experts: Of the task layer, per scenario and task.
        expert_dims: Widths of a task-layer expert's layers.
        tower_dims: Hidden widths of a tower.
        scenario_embedding_dim: Width of ``Emb(s_i)``.
        gates: False averages experts and sub-experts.
        hierarchy: False leaves the scenario layer out.
        scenario_attention: False leaves ``A_i`` out.
        top_k: Others that a scenario listens to; None for all.
        attention_columns: Places of the features that the attention reads beside the indicator.
        input_dropout: Rate of dropout on the features.
        dropout: Rate of dropout in the sub-experts.
        expert_dropout: Rate of dropout in the task-layer experts.
        tower_dropout: Rate of dropout in the towers.
    """

    sub_experts: tuple[int, ...]
    sub_expert_dims: tuple[int, ...]
    shared_experts: tuple[int, ...]
    specific_experts: tuple[tuple[int, ...], ...]
    expert_dims: tuple[int, ...]
    tower_dims: tuple[int, ...]
    scenario_embedding_dim: int
    gates: bool = True
    hierarchy: bool = True
    scenario_attention: bool = True
    top_k: int | None = None
    attention_columns: tuple[int, ...] = ()
    input_dropout: float = 0.0
    dropout: float = 0.0
    expert_dropout: float = 0.0
    tower_dropout: float = 0.0


class HiNet(EmbeddedModel):
    """HiNet for any number of scenarios and tasks.

    With one scenario there is no attention and ``C = concat[G, S]``; with two its table is fixed.

    Args:
        embedding: The features of a batch.
        sizes: Sizes and options.
        norm: Normalises the features, if given.

    Shape:
        batch of B rows  ->  ``(B, N)`` logits, of each row's own scenario
    """

    def __init__(
        self, embedding: FusedEmbedding, sizes: HiNetSizes, norm: RowNorm | ScenarioNorm | None = None
    ) -> None:
        super().__init__(embedding, len(sizes.shared_experts), sizes.input_dropout, norm)
        self.attention: ScenarioAttention | None = None
        self.extractors: ScenarioExtractors | None = None
        if sizes.hierarchy:
            # Listening to all others is what full attention does, with less work per row.
            top_k = None if (sizes.top_k or self.num_scenarios) >= self.num_scenarios - 1 else sizes.top_k
            if sizes.scenario_attention and self.num_scenarios > 1:
                self.attention = ScenarioAttention(
                    self.num_scenarios, sizes.scenario_embedding_dim, top_k, sizes.attention_columns
                )
            self.extractors = ScenarioExtractors(
                embedding.out_dim,
                sizes.sub_experts,
                sizes.sub_expert_dims,
                sizes.dropout,
                gates=sizes.gates,
                attention=self.attention is not None,
                top_k=top_k,
            )
        self.task_layer = TaskLayer(
            embedding.out_dim if self.extractors is None else self.extractors.out_dim,
            sizes.shared_experts,
            sizes.specific_experts,
            sizes.expert_dims,
            sizes.tower_dims,
            sizes.expert_dropout,
            sizes.tower_dropout,
            gates=sizes.gates,
        )

    def scenario_attention(self) -> Tensor | None:
        """The attention table ``(M, M)``.

        None for one scenario, where attention is switched off, and where it depends on the row.
        """
        if self.attention is None or self.attention.varies:
            return None
        table: Tensor = self.attention()
        return table

    def logits(self, x_BD: Tensor, batch: Batch) -> Tensor:
        attention = None
        per_row = self.attention is not None and self.attention.varies
        if self.attention is not None:
            attention = self.attention.of_rows(x_BD, batch) if per_row else self.attention()
        x_BD = self.dropped(x_BD)
        if self.extractors is not None:
            x_BD = self.extractors(x_BD, batch.scenario_index, batch.scenario_counts, attention, per_row)
        logits: Tensor = self.task_layer(x_BD, batch.scenario_counts)
        return logits


def hinet_sizes(settings: HiNetSettings, scenarios: Sequence[str], tasks: Sequence[str]) -> HiNetSizes:
    """Translate counts per name into counts per position.

    Raises:
        ConfigError: Names that are missing, or that the data do not have; settings that contradict each other.
    """
    faults: list[str] = []
    sub_experts = counts_of("model.sub_experts", settings.sub_experts, ("shared", *scenarios), faults)
    shared = counts_of("model.shared_experts", settings.shared_experts, scenarios, faults)
    specific = specific_of("model.specific_experts", settings.specific_experts, scenarios, tasks, faults)
    by_features = settings.scenario_attention_input == "features"
    if by_features and settings.scenario_attention != "full":
        faults.append("model.scenario_attention_input: features needs scenario_attention: full")
    if by_features != bool(settings.scenario_features):
        faults.append(
            "model.scenario_features: needs scenario_attention_input: features, and the other way round"
        )
    if faults:
        raise ConfigError(faults)
    return HiNetSizes(
        sub_experts=sub_experts,
        sub_expert_dims=tuple(settings.sub_expert_dims),
        shared_experts=shared,
        specific_experts=specific,
        expert_dims=tuple(settings.expert_dims),
        tower_dims=tuple(settings.tower_dims),
        scenario_embedding_dim=settings.scenario_embedding_dim,
        gates=settings.gates,
        hierarchy=settings.hierarchy,
        scenario_attention=settings.scenario_attention != "none",
        top_k=settings.top_k if settings.scenario_attention == "top_k" else None,
        input_dropout=settings.input_dropout,
        dropout=settings.dropout,
        expert_dropout=settings.expert_dropout,
        tower_dropout=settings.tower_dropout,
    )


def _build(settings: HiNetSettings, layout: BatchLayout, embedding: FusedEmbedding) -> HiNet:
    sizes = hinet_sizes(settings, layout.scenario_names, layout.task_names)
    columns = columns_of("model.scenario_features", settings.scenario_features, layout, embedding)
    norm = build_norm(settings, layout, embedding.out_dim)
    return HiNet(embedding, replace(sizes, attention_columns=columns), norm)


MODEL = ModelKind(HiNetSettings, _build)
