"""Digests of rows: what moved, within a row or between rows, is another digest; what was stored otherwise is not."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark.sql import SparkSession

from feature_eng.digests import digest_of

pytestmark = pytest.mark.spark

ROWS = [
    (1, None, "a", None, [1, 2], [3]),
    (2, 5, None, "b", [], [None, 4]),
    (3, None, None, None, None, [1]),
]
OTHERS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "another value": (0, (1, None, "A", None, [1, 2], [3])),
    "a value that moved to the column beside it": (0, (1, None, None, "a", [1, 2], [3])),
    "an element that moved to the list beside it": (0, (1, None, "a", None, [1], [2, 3])),
    "an order of elements": (0, (1, None, "a", None, [2, 1], [3])),
    "a null elsewhere in a list": (1, (2, 5, None, "b", [], [4, None])),
    "an empty list for none": (2, (3, None, None, None, [], [1])),
}


def digest(spark: SparkSession, rows: list[tuple[Any, ...]]) -> int:
    schema = "number int, other int, word string, more string, items array<int>, more_items array<int>"
    frame = spark.createDataFrame(rows, schema)
    return int(frame.agg(digest_of(frame, sorted(frame.columns))).collect()[0][0])


def test_rows_in_another_order_have_the_same_digest(spark: SparkSession) -> None:
    assert digest(spark, ROWS) == digest(spark, ROWS[::-1])
    assert digest(spark, ROWS) != digest(spark, [*ROWS, ROWS[0]])


@pytest.mark.parametrize("what", OTHERS)
def test_what_differs_in_a_row_is_seen(spark: SparkSession, what: str) -> None:
    place, row = OTHERS[what]
    assert digest(spark, [*ROWS[:place], row, *ROWS[place + 1 :]]) != digest(spark, ROWS)
