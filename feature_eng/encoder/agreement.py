"""Do the two interpreters agree? Asked of a sample of real rows before a table is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from feature_eng.dates import ON_DATE
from feature_eng.encoder import expressions
from feature_eng.encoder.state import EncoderState, Standardise


class DisagreementError(RuntimeError):
    """Spark and Arrow encoded a row differently: a fault of this product, never of the data."""


def check_agreement(examples: DataFrame, encoded: DataFrame, state: EncoderState, num_rows: int) -> int:
    """Encode a sample of ``examples`` by Spark's own expressions and compare it with what Arrow made of it.

    Args:
        examples: Raw rows with ``row_id``.
        encoded: The same rows as the table shall hold them. Read twice.
        state: The encoder.
        num_rows: About how many rows to compare.

    Returns:
        Number of rows compared.

    Raises:
        DisagreementError: Names each column that differs, with the first such row.
    """
    is_sampled = _is_sampled(max(1, encoded.count() // num_rows))
    sample = examples.sparkSession.createDataFrame(examples.where(is_sampled).toArrow())
    by_spark = expressions.encode(sample, state).toArrow().sort_by("row_id")
    made = encoded.where(is_sampled).toArrow().sort_by("row_id")
    by_arrow = {
        name: made.column(name).to_numpy() for name in made.column_names if name not in ("split", ON_DATE)
    }
    faults = differences(by_spark, by_arrow, state)
    if faults:
        raise DisagreementError("Spark and Arrow do not encode alike:\n" + "\n".join(faults))
    compared: int = made.num_rows
    return compared


def differences(
    by_spark: pa.Table, by_arrow: Mapping[str, npt.NDArray[Any]], state: EncoderState
) -> list[str]:
    """One line per column that differs, with the first row in which it does; rows in equal order."""
    logarithms = {
        name for name, operation in state.operations.items()
        if isinstance(operation, Standardise) and operation.transform == "log1p"
    }  # fmt: skip
    faults = []
    for name, expected in by_arrow.items():
        found = by_spark.column(name).to_numpy()
        if found.dtype != expected.dtype or found.shape != expected.shape:
            faults.append(
                f"{name}: {found.dtype} {found.shape} by Spark, {expected.dtype} {expected.shape} by Arrow"
            )
            continue
        differs = found != expected
        if name in logarithms:
            differs &= np.nextafter(found, expected) != expected
        if differs.any():
            row = int(np.argmax(differs))
            row_id = by_spark.column("row_id")[row].as_py()
            faults.append(f"{name}: {found[row]!r} by Spark, {expected[row]!r} by Arrow (row_id {row_id})")
    return faults


def _is_sampled(one_in: int) -> Column:
    return F.pmod(F.col("row_id"), F.lit(one_in)) == 0
