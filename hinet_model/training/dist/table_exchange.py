"""Table: a batch's embedding rows to the rank that needs them, and their gradients to whoever trains them.

Replicated, every rank looks its rows up in its own table, and all ranks step with the gradients of all. Sharded,
each rank owns the rows of its `RowShard`, weights and optimiser state alike, and an exchange has three legs:

    before forward    ids         needing rank -> owner
                      rows        owner -> needing rank, where they become the leaf of the step
    after backward    gradients   needing rank -> owner, who merges them in rank order and steps

So neither the table nor its gradient is whole anywhere. No leg is part of autograd: the loop asks for each, every
rank at every step, since a rank without rows in a batch may well own some that its peers wait for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.training.table_optimisers import TableOptimiser
from hinet_model.training.dist.dense_exchange import GradientExchange, merge_rows
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.dist.world import World


class TableExchange(Protocol):
    """Moves rows of the embedding table; all ranks must make the same calls."""

    def fetch(self, ids: Tensor) -> Tensor:
        """Rows that a training step reads, current, as a leaf: of distinct ``ids (U,)``, ``(U, D)``."""
        ...

    def look_up(self, ids: Tensor) -> Tensor:
        """Rows as they are, for scoring: of distinct ``ids (U,)``, ``(U, D)``."""
        ...

    def collect(self, ids: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """What this rank's table optimiser steps with.

        Args:
            ids: Those of the last `fetch`. ``(U,)``
            gradients: Of this rank's leaf. ``(U, D)``

        Returns:
            Distinct rows of this rank's table that the global batch touches, ascending, and their summed
            gradients.
        """
        ...


class ReplicatedTable:
    """Every rank holds the whole table and takes the same step on it.

    Args:
        embedding: The table.
        optimiser: Its optimiser.
        exchange: Gathers the gradients.
    """

    def __init__(
        self, embedding: FusedEmbedding, optimiser: TableOptimiser, exchange: GradientExchange
    ) -> None:
        self._embedding, self._optimiser, self._exchange = embedding, optimiser, exchange

    def fetch(self, ids: Tensor) -> Tensor:
        self._optimiser.decay.apply_pending(ids)
        return self._embedding.gather(ids)

    def look_up(self, ids: Tensor) -> Tensor:
        return self._embedding.look_up(ids)

    def collect(self, ids: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        return self._exchange.gather_rows(ids, gradients)


@dataclass(frozen=True)
class _Route:
    """Who needs what of whom in one batch.

    Args:
        order: This rank's ids, sorted by owner: the place of each among the batch's. ``(U,)``
        needed: How many rows this rank needs of each rank.
        positions: Rows of this rank's shard that others need, one rank's after the other's. ``(R,)``
        asked: How many of them each rank needs.
    """

    order: Tensor
    needed: list[int]
    positions: Tensor
    asked: list[int]


class ShardedTable:
    """Each rank holds the rows of its shard, and trains them alone.

    Args:
        embedding: The shard.
        optimiser: Its optimiser, to which a row goes by its position in the shard.
        world: The workers.
        progress: Where this worker is: it waits for its peers in the midst of a step.
    """

    def __init__(
        self, embedding: FusedEmbedding, optimiser: TableOptimiser, world: World, progress: Progress
    ) -> None:
        self._embedding, self._optimiser = embedding, optimiser
        self._world, self._progress = world, progress
        self._route: _Route | None = None

    def fetch(self, ids: Tensor) -> Tensor:
        self._route = self._ask(ids)
        # Two ranks may ask for one row: it decays once, since all is read before any is written.
        self._optimiser.decay.apply_pending(self._route.positions)
        return self._send(self._route).requires_grad_()

    def look_up(self, ids: Tensor) -> Tensor:
        return self._send(self._ask(ids))

    def collect(self, ids: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        route = self._route
        assert route is not None
        assert len(route.order) == len(ids)
        received, _ = self._exchange(gradients.index_select(0, route.order), route.needed, "table.gradients")
        return merge_rows(route.positions, received)

    def _ask(self, ids: Tensor) -> _Route:
        """Tell every owner which of its rows this rank needs; hear which of its own are needed."""
        shard = self._embedding.shard
        owners = shard.owners(ids)
        # Stable: what an owner gets from one rank is ascending, and gradients merge in the same order every time.
        order = torch.argsort(owners, stable=True)
        needed: list[int] = torch.bincount(owners, minlength=shard.count).tolist()
        asked_ids, asked = self._exchange(ids.index_select(0, order), needed, "table.ids")
        return _Route(order, needed, shard.positions(asked_ids), asked)

    def _send(self, route: _Route) -> Tensor:
        """Give out own rows; return those that this rank needs, in the order of its ids."""
        own = self._embedding.weight.detach().index_select(0, route.positions)
        received, _ = self._exchange(own, route.asked, "table.rows")
        return torch.empty_like(received).index_copy_(0, route.order, received)

    def _exchange(self, rows: Tensor, counts: list[int], name: str) -> tuple[Tensor, list[int]]:
        with self._progress.within("exchange"):
            return self._world.exchange_rows(rows, counts, name)


def build_table_exchange(
    kind: Literal["replicated", "sharded"],
    embedding: FusedEmbedding,
    optimiser: TableOptimiser,
    exchange: GradientExchange,
    world: World,
    progress: Progress,
) -> TableExchange:
    """The configured way of rows and gradients."""
    if kind == "replicated":
        return ReplicatedTable(embedding, optimiser, exchange)
    assert (embedding.shard.place, embedding.shard.count) == (world.rank, world.size)
    return ShardedTable(embedding, optimiser, world, progress)
