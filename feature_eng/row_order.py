"""The order of a training table's rows, and the files that it is cut into: each file by one task, none by two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from feature_eng.encoder.spark import partition_columns

_BUCKET_BITS = 16
"""Buckets of the order are counted before rows are moved: so many that few of them hold the end of a file."""
_SEED_OF_PARTITIONING = 42

Integers = npt.NDArray[np.integer[Any]]
Buckets = Mapping[str, tuple[Integers, Integers]]
"""Partition, a split or a day of it -> its buckets in order, and the rows of each."""


def buckets_of(encoded: DataFrame, seed: int) -> Buckets:
    """Count the rows of each partition along their order.

    Args:
        encoded: Rows with ``row_id`` and the partition columns. Read once.
        seed: Of the order.
    """
    counted = (
        encoded.select(_part(encoded).alias("part"), _bucket(_order(seed)).alias("bucket"))
        .groupBy("part", "bucket")
        .agg(F.count("*").alias("rows"))
        .toArrow()
        .sort_by([("part", "ascending"), ("bucket", "ascending")])
    )
    found, start = {}, 0
    # In order, so that each partition is a slice: of thousands of days none is looked for among all.
    for part, length in zip(*pc.value_counts(counted.column("part")).flatten(), strict=True):
        own = counted.slice(start, length.as_py())
        found[part.as_py()] = (own.column("bucket").to_numpy(), own.column("rows").to_numpy())
        start += own.num_rows
    return found


def laid_out(encoded: DataFrame, buckets: Buckets, files_of: Mapping[str, int], seed: int) -> DataFrame:
    """Rows in the order to write them: each file's rows together in one task, in their places.

    A row's file follows from its place among its partition's rows, that is from the places at which its bucket begins
    and ends, and, in a bucket in which a file ends, from the order of the next file's first row.

    Args:
        encoded: The rows. Read twice, shuffled once.
        buckets: As `buckets_of` counts them.
        files_of: Partition -> files, which are equally long but for one row.
        seed: Of the order.
    """
    if not buckets:
        return encoded
    starting, ends = _starts(buckets, files_of)
    spark = encoded.sparkSession
    ordered = encoded.withColumns({"__part": _part(encoded), "__order": _order(seed)})
    ordered = ordered.withColumn("__bucket", _bucket(F.col("__order")))
    first_of_files = _first_of_files(ordered.select("__part", "__bucket", "__order"), ends)
    task_of = (
        spark.createDataFrame(starting)
        .join(first_of_files, on=["__part", "__bucket"], how="left")
        .withColumn("__starts", F.coalesce("__starts", F.array().cast("array<bigint>")))
    )
    begun = F.size(F.filter("__starts", lambda start: start <= F.col("__order")))
    return (
        ordered.join(F.broadcast(task_of), on=["__part", "__bucket"], how="inner")
        .repartition(sum(files_of.values()), F.get("__tasks", begun))
        .sortWithinPartitions(*partition_columns(encoded), "__order", "row_id")
        .select(*encoded.columns)
    )


def _part(encoded: DataFrame) -> Column:
    """The partition that a row goes to, as one text."""
    return F.concat_ws("/", *partition_columns(encoded))


def _order(seed: int) -> Column:
    return F.xxhash64(F.col("row_id"), F.lit(seed).cast("bigint"))


def _bucket(order: Column) -> Column:
    # The top bits, so that buckets are consecutive ranges of the order.
    return (F.shiftright(order, 64 - _BUCKET_BITS) + F.lit(1 << (_BUCKET_BITS - 1))).cast("int")


def _starts(buckets: Buckets, files_of: Mapping[str, int]) -> tuple[pa.Table, pa.Table]:
    """The tasks of the files that lie in each bucket; and in which buckets, after how many rows, another one begins."""
    starting, ends, before = [], [], 0
    tasks = _keys_of_tasks(sum(files_of.values()))
    for part, (bucket, rows) in buckets.items():
        total, files = int(rows.sum()), files_of[part]
        start = np.cumsum(rows) - rows
        file, last = start * files // total, (start + rows - 1) * files // total
        ends_of = np.concatenate([[0], np.cumsum(last - file + 1)])
        inside = _runs(file, last - file + 1)
        listed = pa.ListArray.from_arrays(
            ends_of.astype(np.int32), pa.array(tasks[before + inside], pa.int32())
        )
        starting.append(_of_part(part, bucket, __tasks=listed))
        place, begins = np.repeat(np.arange(len(bucket)), last - file), _runs(file + 1, last - file)
        first = -(-begins * total // files)
        ends.append(_of_part(part, bucket[place], __number=pa.array(first - start[place] + 1, pa.int64())))
        before += files
    return pa.concat_tables(starting), pa.concat_tables(ends)


def _runs(first: Integers, length: Integers) -> Integers:
    """For each of several runs its numbers, one after the other: ``first``, ``first + 1``, ..."""
    shifts: Integers = np.repeat(first - (np.cumsum(length) - length), length)
    return shifts + np.arange(len(shifts))


def _keys_of_tasks(tasks: int) -> Integers:
    """For each of so many tasks a number that Spark's partitioning by hash sends to it: no two files share a task."""
    found = np.full(tasks, -1, np.int64)
    numbers = np.arange(4 * tasks, dtype=np.int64)
    while (found < 0).any():
        task = hashed(numbers) % tasks
        is_free = found[task] < 0
        found[task[is_free]] = numbers[is_free]
        numbers += len(numbers)
    return found


def hashed(numbers: Integers) -> Integers:
    """Spark's hash of integers of 32 bits: MurmurHash3 (Appleby), x86, of one block."""

    def times(values: npt.NDArray[np.uint32], factor: int) -> npt.NDArray[np.uint32]:
        return (values.astype(np.uint64) * factor).astype(np.uint32)

    def turned(values: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint32]:
        return (values << np.uint32(bits)) | (values >> np.uint32(32 - bits))

    block = times(turned(times(numbers.astype(np.uint32), 0xCC9E2D51), 15), 0x1B873593)
    mixed = times(turned(np.uint32(_SEED_OF_PARTITIONING) ^ block, 13), 5) + np.uint32(0xE6546B64)
    mixed ^= np.uint32(4)
    mixed = times(mixed ^ (mixed >> np.uint32(16)), 0x85EBCA6B)
    mixed = times(mixed ^ (mixed >> np.uint32(13)), 0xC2B2AE35)
    return (mixed ^ (mixed >> np.uint32(16))).view(np.int32).astype(np.int64)


def _of_part(part: str, bucket: Integers, **columns: pa.Array) -> pa.Table:
    return pa.table(
        {
            "__part": pa.array([part] * len(bucket), pa.string()),
            "__bucket": bucket.astype(np.int32),
            **columns,
        }
    )


def _first_of_files(ordered: DataFrame, ends: pa.Table) -> DataFrame:
    """For each bucket in which files begin, the order of the first row of each."""
    wanted = F.broadcast(ordered.sparkSession.createDataFrame(ends))
    bucket = ["__part", "__bucket"]
    number = F.row_number().over(Window.partitionBy(*bucket).orderBy("__order"))
    return (
        ordered.join(F.broadcast(wanted.select(*bucket).distinct()), bucket, "left_semi")
        .withColumn("__number", number)
        .join(wanted, [*bucket, "__number"])
        .groupBy(*bucket)
        .agg(F.collect_list("__order").alias("__starts"))
    )
