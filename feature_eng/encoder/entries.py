"""Entries: the values of many vocabularies side by side, so that one pass over the rows counts or finds them all."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from feature_eng.encoder.expressions import values_of
from feature_eng.encoder.state import Hash, Lookup, Slots
from feature_eng.events import column

KEY = ("vocabulary", "number", "text")
"""Columns of an entry: the number that stands for a vocabulary, and a value of it as one or the other."""
_ENTRIES = "array<struct<vocabulary: int, number: bigint, text: string>>"


def is_number(kind: str) -> bool:
    """Whether values of a raw column of this kind, a key of ``ARROW_TYPES``, are numbers in an entry, and not text."""
    return kind.removeprefix("list<").removesuffix(">") == "int64"


def entries_of(operation: Lookup | Hash | Slots, vocabulary: int, kind: str) -> Column:
    """A row's values of a vocabulary: an array of entries.

    Args:
        operation: What is done to the raw column.
        vocabulary: Number that stands for the vocabulary.
        kind: The raw column's, a key of ``ARROW_TYPES``.
    """

    def entry(value: Column) -> Column:
        number = value.cast("bigint") if is_number(kind) else F.lit(None).cast("bigint")
        text = F.lit(None).cast("string") if is_number(kind) else value.cast("string")
        return F.struct(F.lit(vocabulary).alias("vocabulary"), number.alias("number"), text.alias("text"))

    if isinstance(operation, Slots):
        return F.coalesce(F.transform(values_of(operation), entry), F.array().cast(_ENTRIES))
    return F.array(entry(column(operation.column)))


def one_by_one(rows: DataFrame, entries: Sequence[Column], *beside: str) -> DataFrame:
    """Every entry of every row by itself, in the columns of `KEY`, and beside it columns of its row."""
    entry = F.explode(F.flatten(F.array(*entries))).alias("entry")
    return rows.select(*beside, entry).select(*beside, "entry.*")


def as_entries(vocabulary: int, values: pa.Array) -> pa.Table:
    """Values of a vocabulary as entries."""
    numbers = pa.types.is_integer(values.type)
    columns = {
        "vocabulary": pa.array([vocabulary] * len(values), pa.int32()),
        "number": values.cast(pa.int64()) if numbers else pa.nulls(len(values), pa.int64()),
        "text": pa.nulls(len(values), pa.string()) if numbers else values.cast(pa.string()),
    }
    return pa.table(columns)
