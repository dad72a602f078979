"""Digests of rows: equal for equal rows, in whatever order and files they lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StructType

from feature_eng.contract import quoted


def digest_of(rows: DataFrame, names: Iterable[str]) -> Column:
    """An aggregate: the sum of all rows' hashes, ``decimal(38, 0)``; it says nothing of their order.

    Args:
        rows: Whose columns are hashed.
        names: Of the columns; their order counts.
    """
    parts = (part for name in names for part in hashable(F.col(quoted(name)), rows.schema[name].dataType))
    return F.sum(F.xxhash64(*parts).cast("decimal(38, 0)"))


def hashable(value: Column, dtype: DataType) -> Iterator[Column]:
    """What Spark is to hash of a column, so that values of other columns cannot stand for it.

    Spark's hash passes over nulls and runs lists together: a value that moved to the column beside it, null before,
    would leave the hash of the row as it was.
    """
    yield value.isNull()
    if isinstance(dtype, StructType):
        for field in dtype.fields:
            yield from hashable(value.getField(field.name), field.dataType)
        return
    nested = dtype.elementType if isinstance(dtype, ArrayType) else dtype
    if isinstance(nested, ArrayType | MapType | StructType):
        yield F.to_json(value)
        return
    if isinstance(dtype, ArrayType):
        yield F.size(value)
        if dtype.containsNull:
            yield F.when(F.size(value) != F.size(F.array_compact(value)), F.to_json(value))
    yield value
