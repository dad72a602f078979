"""Running values: what each row may know of its entity, from facts and the seconds from which they are known.

numpy and Arrow alone, one pass over rows that are sorted by entity and second. A row sees the facts known strictly
before its own second. Kept from batch to batch is what may still matter of the entity that the batch ends in: the
last values of histories, the facts of the longest window, those that are not known yet, and sums of all before them.

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
"""Column with a row's second: at which it asks, and from which those of its facts are known that do not wait."""
ROW = "row__"
"""Column with a row that asks, as a struct; null where there are facts alone."""

Integers = npt.NDArray[np.int64]
# More than any second up to the year 3000, and more than a fact waits that is ever known.
_SECONDS = 1 << 36
_NEVER = -1


@dataclass(frozen=True)
class Running:
    """The function for ``DataFrame.mapInArrow``: sorted facts and rows in, the rows with their features out.

    Args:
        entity: Columns that make an entity; a row with a null among them has none, and sees nothing.
        facts: Name of each feature -> the column with its facts, null where a row brings none. A rate's are labels
            (0 or 1), a history's are the values that it lists, with ``kinds`` as a struct of ``item`` and ``kind``, the
            place of their table.
        features: Name -> feature.
        known_at: Column with facts that wait -> the column with the second from which they are known, at the row's
            own or later; null for never. Facts known at one second keep the order of their rows.
    """

    entity: tuple[str, ...]
    facts: Mapping[str, str]
    features: Mapping[str, Behaviour]
    known_at: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Rows come out in the order in which they came in."""
        kept = _Kept()
        for batch in batches:
            if batch.num_rows:
                answered, kept = self._answered(batch, kept)
                yield answered

    def _answered(self, batch: pa.RecordBatch, kept: _Kept) -> tuple[pa.RecordBatch, _Kept]:
        keys = [batch.column(name) for name in self.entity]
        entity = np.cumsum(_starts(keys)) - 1
        moments = {name: _moments(entity, batch.column(name)) for name in {AT, *self.known_at.values()}}
        moment = moments[AT]
        goes_on = kept.entity is not None and kept.entity == _key(keys, 0)
        asking = np.flatnonzero(batch.column(ROW).is_valid().to_numpy(zero_copy_only=False))
        made: dict[str, pa.Array] = {}
        tails: dict[str, _Tail] = {}
        for column in dict.fromkeys(self.facts.values()):
            readers = {name: one for name, one in self.features.items() if self.facts[name] == column}
            before = kept.tails[column] if goes_on else None
            known = _Known.of(batch.column(column), moments[self.known_at.get(column, AT)], before)
            for name, feature in readers.items():
                found = known.answers(feature, moment[asking])
                made.update(zip(feature.columns(name), found, strict=True))
            tails[column] = known.tail(list(readers.values()), moment[-1])
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
        at: ``(K,)`` seconds from which they are known, in order.
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
    """The facts of one kind that a batch may use, in the order in which they become known.

    Entity and second are one number here, the *moment*: the entity's place in the batch times `_SECONDS`, plus the
    second.

    Args:
        moments: ``(K,)`` from which they are known, in order.
        values: ``(K,)`` facts.
        totals: ``(K + 1,)`` sums of all facts before each, where facts are numbers.
        count, total: Of the entity 0, what came before these facts.
    """

    moments: Integers
    values: pa.Array
    totals: Integers
    count: int
    total: int

    @classmethod
    def of(cls, facts: pa.Array, known_from: Integers, before: _Tail | None) -> _Known:
        """Facts of a batch, null for none, and those kept from the batch before, which are of the entity 0.

        Args:
            facts: ``(N,)``.
            known_from: ``(N,)`` moments, `_NEVER` of facts that no row will know.
            before: What was kept.
        """
        place = np.flatnonzero(facts.is_valid().to_numpy(zero_copy_only=False) & (known_from != _NEVER))
        values, moments, count, total = facts.take(pa.array(place)), known_from[place], 0, 0
        if before is not None:
            values = pa.concat_arrays([before.values, values])
            moments = np.concatenate([before.at, moments])
            count, total = before.count, before.total
        if np.any(moments[1:] < moments[:-1]):
            order = np.argsort(moments, kind="stable")
            values, moments = values.take(pa.array(order)), moments[order]
        totals = np.zeros(len(values) + 1, np.int64)
        if pa.types.is_integer(values.type):
            np.cumsum(values.to_numpy(zero_copy_only=False), out=totals[1:])
        return cls(moments, values, totals, count, total)

    def answers(self, feature: Behaviour, moment: Integers) -> tuple[pa.Array, ...]:
        """``(Q,)`` values of each of a feature's columns for rows that ask at these moments."""
        end = np.searchsorted(self.moments, moment)
        first = self._first(feature, moment)
        # What is no longer listed is of the first entity alone, and beyond every window.
        is_first = ((moment < _SECONDS) & (feature.within is None)).astype(np.int64)
        if isinstance(feature, History):
            return self._last(feature, first, end, moment)
        count = end - first + self.count * is_first
        if isinstance(feature, Count):
            return (pa.array(count),)
        total = self.totals[end] - self.totals[first] + self.total * is_first
        return (pa.array(smoothed(feature, total, count)),)

    def _first(self, feature: Behaviour, moment: Integers) -> Integers:
        """Place of the first fact that counts for rows at these moments."""
        second = moment % _SECONDS
        reach = second if feature.within is None else np.minimum(second, feature.within)
        return cast(Integers, np.searchsorted(self.moments, moment - reach))

    def _last(
        self, feature: History, first: Integers, end: Integers, moment: Integers
    ) -> tuple[pa.Array, ...]:
        """The last values between ``first`` and ``end``, newest first, and beside them their ages and kinds."""
        lengths = np.minimum(end - first, feature.last)
        offsets = np.append(0, np.cumsum(lengths))
        back = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        places = np.repeat(end - 1, lengths) - back
        values = self.values.take(pa.array(places))
        found = [values.field("item") if feature.kinds else values]
        if feature.ages:
            found.append(pa.array(np.repeat(moment, lengths) - self.moments[places]))
        if feature.kinds:
            found.append(pa.array(feature.table, pa.string()).take(values.field("kind")))
        return tuple(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), one) for one in found)

    def tail(self, readers: Sequence[Behaviour], moment: int) -> _Tail:
        """What later rows may need, given the moment of the batch's last row."""
        first, end = np.searchsorted(self.moments, [moment - moment % _SECONDS, moment])
        # Facts of the last second, and later ones, are not yet before any row.
        start = end
        for feature in readers:
            if feature.within is not None:
                start = min(start, self._first(feature, np.array([moment]))[0])
            elif isinstance(feature, History):
                start = min(start, max(first, end - feature.last))
        is_first = moment < _SECONDS
        return _Tail(
            at=self.moments[start:] % _SECONDS,
            # A copy: a slice would keep the whole batch in memory.
            values=self.values.take(pa.array(np.arange(start, len(self.values)))),
            count=int(start - first + self.count * is_first),
            total=int(self.totals[start] - self.totals[first] + self.total * is_first),
        )


def smoothed(rate: Rate, positives: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """``(positives + prior * prior_rows) / (labels + prior_rows)``."""
    values: npt.NDArray[np.float64] = (positives + rate.prior * rate.prior_rows) / (labels + rate.prior_rows)
    return values


def _moments(entity: Integers, seconds: pa.Array) -> Integers:
    """Entities and seconds as one number each; `_NEVER` where there is no second."""
    known = pc.fill_null(seconds.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    # A second beyond all rows' is known to none of them.
    is_any = (known >= 0) & (known < _SECONDS)
    return np.where(is_any, entity * _SECONDS + known, _NEVER)


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
