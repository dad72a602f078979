"""Row shard: which rows of the embedding table one of several workers holds, and what they start from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK_NUMBERS = 1 << 20
_GRAIN = 16
"""torch draws a normal tensor on the CPU in groups of 16 numbers, and one below 16 by another method."""


@dataclass(frozen=True)
class RowShard:
    """The rows whose id leaves ``place`` when it is divided by ``count``; row ``id`` is the shard's ``id // count``-th.

    By remainder, not by range: the rows of every feature, and the frequent ones among them, spread evenly whatever
    the order of a vocabulary, and nobody needs a list of who owns what.

    Args:
        place: Which of the shards, the rank of the worker that holds it.
        count: Shards that make the table, one per worker.
    """

    place: int = 0
    count: int = 1

    def num_rows(self, num_embeddings: int) -> int:
        """Rows of this shard, of a table with so many."""
        return len(range(self.place, num_embeddings, self.count))

    def owners(self, ids: Tensor) -> Tensor:
        """Place of the shard that holds each id."""
        return ids % self.count

    def positions(self, ids: Tensor) -> Tensor:
        """Where each id stands in the shard that holds it."""
        return ids // self.count

    def of(self, whole: Tensor) -> Tensor:
        """This shard's rows of a whole table, as a view."""
        return whole[self.place :: self.count]


WHOLE = RowShard()
"""The table in one piece."""


@torch.no_grad()
def draw_rows(
    weight: Tensor,
    num_embeddings: int,
    shard: RowShard,
    std: float,
    generator: torch.Generator,
    block_numbers: int = _BLOCK_NUMBERS,
) -> None:
    """Fill a shard with its rows of the table that one call of ``normal_`` would draw, a block at a time.

    The whole table is drawn, so that the generator ends where it would have, and never held.

    Args:
        weight: The shard's rows, on the CPU. ``(shard.num_rows(num_embeddings), D)``
        num_embeddings: Rows of the whole table.
        shard: Which of them are kept.
        std: Standard deviation.
        generator: Of the CPU; what it draws next is the same for every shard.
        block_numbers: About how many numbers are drawn at a time.
    """
    dim = weight.shape[1]
    step = max(_GRAIN, block_numbers // dim // _GRAIN * _GRAIN)
    start = 0
    while start < num_embeddings:
        stop = min(start + step, num_embeddings)
        if (num_embeddings - stop) * dim < _GRAIN:
            stop = num_embeddings  # a rest of less than a group would be drawn by the other method
        block = weight.new_empty(stop - start, dim).normal_(std=std, generator=generator)
        first = (shard.place - start) % shard.count
        kept = block[first :: shard.count]
        place = (start + first) // shard.count
        weight[place : place + len(kept)] = kept
        start = stop
