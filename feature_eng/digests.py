"""Digests of rows: equal for equal rows, in whatever order and files they lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType

from feature_eng.contract import quoted


def digest_of(rows: DataFrame, names: Iterable[str]) -> Column:
    """An aggregate: the sum of all rows' hashes, ``decimal(38, 0)``; it says nothing of their order.

    Args:
        rows: Whose columns are hashed.
        names: Of the columns; their order counts.
    """
    parts = (part for name in names for part in _parts(rows, name))
    return F.sum(F.xxhash64(*parts).cast("decimal(38, 0)"))


def _parts(rows: DataFrame, name: str) -> Iterator[Column]:
    """What Spark hashes of a column, so that values of other columns cannot stand for it.

    Spark's hash passes over nulls and runs lists together: a value that moved to the column beside it, null before,
    would leave the hash of the row as it was.
    """
    value = F.col(quoted(name))
    yield value.isNull()
    dtype = rows.schema[name].dataType
    if isinstance(dtype, ArrayType):
        yield F.size(value)
        if dtype.containsNull:
            yield F.when(F.size(value) != F.size(F.array_compact(value)), F.to_json(value))
    yield value
