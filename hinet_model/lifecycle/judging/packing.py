"""Packing: many rows as one value that Spark moves, and back; Arrow columns as numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hinet_model.lifecycle.judging.ranks import Floats


def one_row(schema: str, values: Sequence[Any]) -> pa.RecordBatch:
    """One row of a schema as Spark writes it: ``name type, ...`` of int, double and binary."""
    kinds = {"int": pa.int32(), "double": pa.float64(), "binary": pa.binary()}
    names, types = zip(*(part.split() for part in schema.split(", ")), strict=True)
    arrays = [pa.array([value], kinds[kind]) for value, kind in zip(values, types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=list(names))


def packed(tables: Sequence[pa.Table]) -> pa.RecordBatch:
    """Tables as rows of one column, ``entries``: an Arrow stream each."""
    packed = []
    for table in tables:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        packed.append(sink.getvalue().to_pybytes())
    return pa.RecordBatch.from_arrays([pa.array(packed, pa.binary())], names=["entries"])


def unpacked(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The tables, one by one."""
    for batch in batches:
        for packed in batch.column("entries"):
            yield pa.ipc.open_stream(packed.as_buffer()).read_all()


def chunks(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Batches gathered into tables of about so many rows."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        if batch.num_rows:
            held.append(batch)
        if sum(one.num_rows for one in held) >= rows:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


def runs(values: npt.NDArray[Any]) -> list[slice]:
    """Where equal neighbours lie."""
    bounds = np.r_[0, np.flatnonzero(np.diff(values)) + 1, len(values)]
    return [slice(int(start), int(stop)) for start, stop in pairwise(bounds) if stop > start]


def numbers(table: pa.Table, name: str) -> Floats:
    """A column as doubles, nulls as NaN."""
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)


def booleans(table: pa.Table, name: str) -> npt.NDArray[np.bool_]:
    """A column without nulls as booleans."""
    return np.asarray(table[name].to_numpy(), dtype=bool)
