"""Warm start: the weights of an earlier model that a run begins with, as they travel to its workers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from foundation import stores
from hinet_model.models.model import ScenarioModel, table_name

FILE = "warm_start.pt"
"""Name of the weights beside a run's checkpoints."""


@dataclass(frozen=True)
class WarmStart:
    """Weights to begin with.

    Args:
        dense: All but the table, by name.
        ids: Rows of the table that begin as rows of the earlier one. ``(K,)``
        rows: Those. ``(K, D)``
        refitted: Number features whose mean, deviation or boundaries are other ones now: scores move by that.
    """

    dense: Mapping[str, Tensor]
    ids: Tensor
    rows: Tensor
    refitted: tuple[str, ...] = ()

    def save(self, folder: stores.Place) -> None:
        """Write to a run's folder of checkpoints, for the workers."""
        content = io.BytesIO()
        torch.save({"dense": dict(self.dense), "ids": self.ids, "rows": self.rows}, content)
        stores.write_bytes(stores.join(folder, FILE), content.getvalue())

    @classmethod
    def load(cls, folder: stores.Place) -> WarmStart:
        """Read what :meth:`save` wrote."""
        content = io.BytesIO(stores.read_bytes(stores.join(folder, FILE)))
        return cls(**torch.load(content, map_location="cpu", weights_only=True))

    @torch.no_grad()
    def apply(self, model: ScenarioModel) -> None:
        """Let a model, or a worker's shard of it, begin with these weights."""
        table = table_name(model)
        found = model.load_state_dict(dict(self.dense), strict=False)
        assert not found.unexpected_keys, found
        assert set(found.missing_keys) == {table}, found
        shard, weight = model.embedding.shard, model.embedding.weight
        mine = shard.owners(self.ids) == shard.place
        weight[shard.positions(self.ids[mine]).to(weight.device)] = self.rows[mine].to(weight.device)
