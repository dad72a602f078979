"""The fused embedding table: the rows of all id features' indices, and a batch's features and their products from them.

Shape letters in this file:
    B  rows in the batch     U  distinct table rows the batch touches
    L  look-ups of a row     D  width of a table row
    F  id features' parts    P  number columns   X  width of all products
    S  slots of a feature    W  width of a feature
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hinet_model.data.batch import Batch
from hinet_model.nn.row_shard import WHOLE, RowShard, draw_rows


class _Run(NamedTuple):
    """What is looked up at once: neighbours of one slot each, or a feature that is pooled and what is added to it.

    Attributes:
        spans: First and last-plus-one look-up of each.
        parts: Rows of the table that make one value of what is pooled.
        pooled: Whether it is.
        field: Number of the first feature.
    """

    spans: list[tuple[int, int]]
    parts: int
    pooled: bool
    field: int


class FusedEmbedding(nn.Module):
    """Look up id features in one table, pool those with several slots, append the numbers, then the products.

    A feature that is wider than a row of the table is made of several, its parts, one behind the other.
    The pooled value is the mean over the slots in use, or their sum weighed by attention; a feature without any is
    zero. Slots that hold an unknown value (index 0) are in use: "unknown" has a row of its own.

    Attention weighs slot ``s`` of a row by the softmax over its slots in use of ``q^T A k_s``, where ``q`` is the
    row's value of another feature and ``A`` belongs to the feature that is pooled; it starts as the scaled dot
    product, ``I / sqrt(W)``.

    Args:
        num_embeddings: Rows of the table.
        dim: Width ``D`` of a row.
        slot_spans: First and last-plus-one look-up of each id feature, in order; they cover ``0..L``, and hold
            all slots of a feature's first part before those of its second.
        pooled: Whether each feature may hold several slots, or none.
        num_numbers: Number columns ``P``.
        std: Standard deviation of the normal distribution that rows start from.
        parts: Rows of the table that make one value of each feature; one each if not given.
        shard: Rows that this worker holds; what it lacks must come to it from outside.
        beside: For each feature the number of the one to whose slots its own are added before they are pooled, or None.
            Both have as many slots, use the same ones, and are of one width; it then has no place of its own.
        products: Numbers of the id features on either side of each product, all of one width: the sum of the
            left ones times the sum of the right ones, number by number.
        queries: For each feature with several slots that attention pools the number of the one-slot feature, of the
            same width, that asks; None for all others.

    Shape:
        rows_UD: ``(U, D)``  ->  ``(B, F * D + P + X)``, ``F`` without the parts of features that are added to others

    Source of the attention: the row's own item asks, as in DIN (KDD 2018); the score is the general one of Luong et
    al. (EMNLP 2015), equation 8.
    """

    def __init__(
        self,
        num_embeddings: int,
        dim: int,
        slot_spans: Sequence[tuple[int, int]],
        pooled: Sequence[bool],
        num_numbers: int,
        std: float,
        parts: Sequence[int] | None = None,
        shard: RowShard = WHOLE,
        products: Sequence[tuple[Sequence[int], Sequence[int]]] = (),
        beside: Sequence[int | None] | None = None,
        queries: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.std = std
        self.spans = [(start, stop, many) for (start, stop), many in zip(slot_spans, pooled, strict=True)]
        self.parts = [1] * len(self.spans) if parts is None else list(parts)
        self.products = [(tuple(left), tuple(right)) for left, right in products]
        self.beside = [None] * len(self.spans) if beside is None else list(beside)
        self.widths = [
            parts * dim if other is None else 0 for parts, other in zip(self.parts, self.beside, strict=True)
        ]
        self.first_number = sum(self.widths)
        self.out_dim = self.first_number + num_numbers
        self.out_dim += sum(self.parts[left[0]] * dim for left, _ in self.products)
        self.queries = [None] * len(self.spans) if queries is None else list(queries)
        # By the number of the feature that is pooled.
        self.attention = nn.ParameterDict(
            {
                str(field): nn.Parameter(torch.empty(self.widths[field], self.widths[field]))
                for field, query in enumerate(self.queries)
                if query is not None
            }
        )
        self.num_embeddings, self.shard = num_embeddings, shard
        self.weight: Tensor = nn.Parameter(torch.empty(shard.num_rows(num_embeddings), dim))

    def without_table(self) -> FusedEmbedding:
        """Give the table up, for one that is always given its rows from outside; returns itself."""
        del self.weight
        self.num_embeddings = 0
        self.weight = torch.empty(0, self.dim)
        return self

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all rows anew; those of a shard are what they would be in the whole table."""
        for matrix in self.attention.values():
            with torch.no_grad():
                nn.init.eye_(matrix).div_(matrix.shape[0] ** 0.5)
        if self.shard.count > 1:
            draw_rows(self.weight, self.num_embeddings, self.shard, self.std, generator)
            return
        with torch.no_grad():
            self.weight.normal_(std=self.std, generator=generator)

    def look_up(self, unique_ids: Tensor) -> Tensor:
        """The rows of distinct ids.

        Raises:
            RuntimeError: This worker holds a shard of the table.
        """
        if self.shard.count > 1:
            raise RuntimeError(
                f"rows were looked up in shard {self.shard.place} of {self.shard.count}; expected them from outside"
            )
        return self.weight.index_select(0, unique_ids)

    def gather(self, unique_ids: Tensor) -> Tensor:
        """The rows of distinct ids as a leaf of its own, whose gradient is then already de-duplicated.

        Args:
            unique_ids: ``(U,)`` int64.

        Returns:
            ``(U, D)``, detached from the table, requiring a gradient.
        """
        with torch.no_grad():
            rows_UD = self.look_up(unique_ids)
        return rows_UD.requires_grad_()

    def forward(self, batch: Batch, rows_UD: Tensor | None = None) -> Tensor:
        """The features of every row of a batch.

        Args:
            batch: Whose ``inverse`` points into ``rows_UD``; ``U`` marks a slot not in use.
            rows_UD: Rows of ``batch.unique_ids``; looked up in the table if not given.
        """
        if rows_UD is None:
            rows_UD = self.look_up(batch.unique_ids)
        num_unique = rows_UD.shape[0]
        padded = torch.cat([rows_UD, rows_UD.new_zeros(1, self.dim)])
        features: list[Tensor] = []
        for run in self._runs():
            slots = [batch.inverse[:, first:last] for first, last in run.spans]
            parts = run.parts
            if self.queries[run.field] is not None:
                features.append(self._attended(run.field, slots, batch.inverse, padded))
            elif run.pooled:
                # The slots of each part are a bag of their own; all parts lack the same slots.
                bags = [each.reshape(-1, each.shape[1] // parts) if parts > 1 else each for each in slots]
                pooled = F.embedding_bag(
                    torch.cat(bags, dim=1) if len(bags) > 1 else bags[0],
                    padded,
                    mode="mean",
                    padding_idx=num_unique,
                )
                # The mean of sums over slots: all features of a bag lack the same slots.
                pooled = pooled * len(bags) if len(bags) > 1 else pooled
                features.append(pooled.view(-1, parts * self.dim))
            else:
                features.append(F.embedding(slots[0], padded).flatten(1))
        features.append(batch.numbers)
        x_BD = torch.cat(features, dim=1)
        if not self.products:
            return x_BD
        products = [self._sum(x_BD, left) * self._sum(x_BD, right) for left, right in self.products]
        return torch.cat([x_BD, *products], dim=1)

    def _attended(self, field: int, slots: Sequence[Tensor], inverse: Tensor, padded_UD: Tensor) -> Tensor:
        """A feature's slots, and what is added to them, weighed by how well each goes with what asks: ``(B, W)``."""
        query = self.queries[field]
        assert query is not None
        first, last, _ = self.spans[query]
        query_BW = F.embedding(inverse[:, first:last], padded_UD).flatten(1)
        parts = self.parts[field]
        # All slots of a part stand before those of the next.
        each = [
            F.embedding(one.view(len(one), parts, one.shape[1] // parts), padded_UD)
            .transpose(1, 2)
            .flatten(2)
            for one in slots
        ]
        slots_BSW = torch.stack(each).sum(dim=0)
        unused_BS = slots[0][:, : slots_BSW.shape[1]] == padded_UD.shape[0] - 1
        scores_BS = torch.einsum("bw,bsw->bs", query_BW @ self.attention[str(field)], slots_BSW)
        # Not minus infinity, which would make a row without any slot in use undefined.
        weights_BS = scores_BS.masked_fill(unused_BS, torch.finfo(scores_BS.dtype).min).softmax(dim=1)
        return torch.einsum("bs,bsw->bw", weights_BS.masked_fill(unused_BS, 0.0), slots_BSW)

    def _sum(self, x_BD: Tensor, fields: Sequence[int]) -> Tensor:
        """The sum of some features of one width."""
        return torch.stack([x_BD[:, self._place(field)] for field in fields]).sum(dim=0)

    def _place(self, field: int) -> slice:
        other = self.beside[field]
        if other is not None:
            return self._place(other)
        first = sum(self.widths[:field])
        return slice(first, first + self.widths[field])

    def _runs(self) -> list[_Run]:
        runs: list[_Run] = []
        for field, ((first, last, many), parts) in enumerate(zip(self.spans, self.parts, strict=True)):
            if self.beside[field] is not None:
                continue
            if runs and not many and not runs[-1].pooled and runs[-1].spans[0][1] == first:
                runs[-1] = runs[-1]._replace(spans=[(runs[-1].spans[0][0], last)], parts=1)
            else:
                added = [
                    span[:2] for span, other in zip(self.spans, self.beside, strict=True) if other == field
                ]
                runs.append(_Run([(first, last), *added], parts, many, field))
        return runs

    def columns_of(self, field: int) -> list[int]:
        """Places of id feature number ``field`` in a row of features, or of the one that it is added to."""
        place = self._place(field)
        return list(range(place.start, place.stop))
