"""Sizes of a HiNet that is quick to build, every width another one."""

from __future__ import annotations

from hinet_model.models.hinet import HiNetSettings

SMALL = HiNetSettings(
    embedding_dim=4,
    embedding_std=1.0,
    sub_experts=3,
    sub_expert_dims=[8, 6],
    shared_experts=2,
    specific_experts=2,
    expert_dims=[7, 5],
    tower_dims=[6, 4],
    scenario_embedding_dim=5,
)
