"""Running values: what each row may know of its entity, from facts in the order in which they became known.

numpy and Arrow alone, one pass over rows that are sorted by entity and second. A row sees the facts known strictly
before its own second. Kept from batch to batch is what may still matter of the entity that the batch ends in: the
last values of histories, the facts of the longest window, and sums of all before them.

Letters in this file:
    N  rows of a batch    K  facts of one kind    Q  rows that ask
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_eng.contract.features import Behaviour, Count, History, Rate

AT = "at__"
"""Column with the second from which a row's facts are known, and at which it asks."""
ROW = "row__"
"""Column with a row that asks, as a struct; null where there are facts alone."""

Integers = npt.NDArray[np.int64]
# More than any second up to the year 3000.
_SECONDS = 1 << 36


@dataclass(frozen=True)
class Running:
    """The function for ``DataFrame.mapInArrow``: sorted facts and rows in, the rows with their features out.

    Args:
        entity: Columns that make an entity; a row with a null among them has none, and sees nothing.
        facts: Name of each feature -> the column with its facts, null where a row brings none. A rate's are labels
            (0 or 1), a history's are the values that it lists, with ``kinds`` as a struct of ``item`` and ``kind``, the
            place of their table.
        features: Name -> feature.
    """

    entity: tuple[str, ...]
    facts: Mapping[str, str]
    features: Mapping[str, Behaviour]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Rows come out in the order in which they came in."""
        kept = _Kept()
        for batch in batches:
            if batch.num_rows:
                answered, kept = self._answered(batch, kept)
                yield answered

    def _answered(self, batch: pa.RecordBatch, kept: _Kept) -> tuple[pa.RecordBatch, _Kept]:
        at = batch.column(AT).to_numpy(zero_copy_only=False).astype(np.int64)
        keys = [batch.column(name) for name in self.entity]
        starts = _starts(keys)
        entity = np.cumsum(starts) - 1
        second = np.cumsum(starts | np.append(True, at[1:] != at[:-1])) - 1
        goes_on = kept.entity is not None and kept.entity == _key(keys, 0)
        asking = np.flatnonzero(batch.column(ROW).is_valid().to_numpy(zero_copy_only=False))
        made: dict[str, pa.Array] = {}
        tails: dict[str, _Tail] = {}
        for column in dict.fromkeys(self.facts.values()):
            readers = {name: one for name, one in self.features.items() if self.facts[name] == column}
            before = kept.tails[column] if goes_on else None
            known = _Known.of(batch.column(column), at, entity, second, before)
            for name, feature in readers.items():
                found = known.answers(feature, at[asking], entity[asking], second[asking])
                made.update(zip(feature.columns(name), found, strict=True))
            tails[column] = known.tail(list(readers.values()), at[-1], entity[-1], second[-1])
        rows = batch.column(ROW).take(pa.array(asking))
        names = [field.name for field in rows.type]
        told = [column for name, one in self.features.items() for column in one.columns(name)]
        columns = [*rows.flatten(), *(made[name] for name in told)]
        answered = pa.RecordBatch.from_arrays(columns, names=[*names, *told])
        return answered, _Kept(_key(keys, batch.num_rows - 1), tails)


@dataclass(frozen=True)
class _Tail:
    """Facts of the last entity that later batches may need, and what stands for the others.

    Args:
        at: ``(K,)`` seconds.
        values: ``(K,)`` facts.
        count: Facts of the entity before these.
        total: Sum of those, where facts are numbers.
    """

    at: Integers
    values: pa.Array
    count: int
    total: int


@dataclass(frozen=True)
class _Kept:
    """What is kept from batch to batch; ``entity`` is None where the last row had none."""

    entity: tuple[Any, ...] | None = None
    tails: Mapping[str, _Tail] = field(default_factory=dict)


@dataclass(frozen=True)
class _Known:
    """The facts of one kind that a batch may use, in order: those kept from before, then its own.

    Args:
        at, entity, second: ``(K,)`` second, number of the entity, number of the (entity, second).
        values: ``(K,)`` facts.
        totals: ``(K + 1,)`` sums of all facts before each, where facts are numbers.
        count, total: Of the entity 0, what came before these facts.
    """

    at: Integers
    entity: Integers
    second: Integers
    values: pa.Array
    totals: Integers
    count: int
    total: int

    @classmethod
    def of(
        cls, facts: pa.Array, at: Integers, entity: Integers, second: Integers, before: _Tail | None
    ) -> _Known:
        place = np.flatnonzero(facts.is_valid().to_numpy(zero_copy_only=False))
        values = facts.take(pa.array(place))
        own = (at[place], entity[place], second[place])
        count = total = 0
        if before is not None:
            # Facts of the batch's first second are not before it, the others are.
            earlier = np.where(before.at < at[0], -1, 0)
            kept = (before.at, np.zeros(len(earlier), np.int64), earlier)
            own = tuple(np.concatenate(pair) for pair in zip(kept, own, strict=True))
            values = pa.concat_arrays([before.values, values])
            count, total = before.count, before.total
        totals = np.zeros(len(values) + 1, np.int64)
        if pa.types.is_integer(values.type):
            np.cumsum(values.to_numpy(zero_copy_only=False), out=totals[1:])
        return cls(*own, values, totals, count, total)

    def answers(
        self, feature: Behaviour, at: Integers, entity: Integers, second: Integers
    ) -> tuple[pa.Array, ...]:
        """``(Q,)`` values of each of a feature's columns for rows at these places."""
        end = np.searchsorted(self.second, second)
        first = self._first(feature, entity, at)
        # What is no longer listed is of the first entity alone, and beyond every window.
        is_first = ((entity == 0) & (feature.within is None)).astype(np.int64)
        if isinstance(feature, History):
            return self._last(feature, first, end, at)
        count = end - first + self.count * is_first
        if isinstance(feature, Count):
            return (pa.array(count),)
        total = self.totals[end] - self.totals[first] + self.total * is_first
        return (pa.array(smoothed(feature, total, count)),)

    def _first(self, feature: Behaviour, entity: Integers, at: Integers) -> Integers:
        """Place of the first fact that counts at these seconds."""
        if feature.within is None:
            return cast(Integers, np.searchsorted(self.entity, entity))
        # Entity and second as one number: facts are in its order.
        known = self.entity * _SECONDS + self.at
        opening: Integers = entity * _SECONDS + np.maximum(at - feature.within, 0)
        return cast(Integers, np.searchsorted(known, opening))

    def _last(self, feature: History, first: Integers, end: Integers, at: Integers) -> tuple[pa.Array, ...]:
        """The last values between ``first`` and ``end``, newest first, and beside them their ages and kinds."""
        lengths = np.minimum(end - first, feature.last)
        offsets = np.append(0, np.cumsum(lengths))
        back = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        places = np.repeat(end - 1, lengths) - back
        values = self.values.take(pa.array(places))
        found = [values.field("item") if feature.kinds else values]
        if feature.ages:
            found.append(pa.array(np.repeat(at, lengths) - self.at[places]))
        if feature.kinds:
            found.append(pa.array(feature.table, pa.string()).take(values.field("kind")))
        return tuple(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), one) for one in found)

    def tail(self, readers: Sequence[Behaviour], at: int, entity: int, second: int) -> _Tail:
        """What later rows may need, given the place of the batch's last row."""
        first, end = np.searchsorted(self.entity, entity), np.searchsorted(self.second, second)
        # Facts of the last second are not yet before any row.
        start = end
        for feature in readers:
            if feature.within is not None:
                start = min(start, self._first(feature, np.array([entity]), np.array([at]))[0])
            elif isinstance(feature, History):
                start = min(start, max(first, end - feature.last))
        is_first = entity == 0
        return _Tail(
            at=self.at[start:],
            # A copy: a slice would keep the whole batch in memory.
            values=self.values.take(pa.array(np.arange(start, len(self.values)))),
            count=int(start - first + self.count * is_first),
            total=int(self.totals[start] - self.totals[first] + self.total * is_first),
        )


def smoothed(rate: Rate, positives: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """``(positives + prior * prior_rows) / (labels + prior_rows)``."""
    values: npt.NDArray[np.float64] = (positives + rate.prior * rate.prior_rows) / (labels + rate.prior_rows)
    return values


def _starts(keys: Sequence[pa.Array]) -> npt.NDArray[np.bool_]:
    """Rows with another entity than the row before; one without an entity is alone."""
    starts = np.zeros(len(keys[0]), np.bool_)
    starts[0] = True
    for key in keys:
        if len(key) > 1:
            differs = pc.fill_null(pc.not_equal(key[1:], key[:-1]), True)
            starts[1:] |= differs.to_numpy(zero_copy_only=False)
    return starts


def _key(keys: Sequence[pa.Array], row: int) -> tuple[Any, ...] | None:
    values = tuple(key[row].as_py() for key in keys)
    return None if None in values else values
