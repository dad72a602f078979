"""Prefetch: items in order, errors where they are seen, no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from hinet_model.data.prefetch import Prefetch


def numbers(closed: list[bool], fail_at: int = -1) -> Iterator[int]:
    try:
        for number in range(1000):
            if number == fail_at:
                try:
                    raise OSError("the disk")
                except OSError as error:
                    raise ValueError(f"at {number}") from error
            yield number
    finally:
        closed.append(True)


def test_items_come_in_order_and_the_thread_ends() -> None:
    before = threading.active_count()
    assert list(Prefetch(numbers([]), depth=2)) == list(range(1000))
    assert threading.active_count() == before


def test_an_error_comes_after_the_items_before_it_with_its_cause() -> None:
    items = Prefetch(numbers([], fail_at=3), depth=10)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="at 3") as caught:
        next(items)
    assert isinstance(caught.value.__cause__, OSError)
    assert list(items) == []


def test_a_consumer_that_leaves_early_leaves_no_thread() -> None:
    before, closed = threading.active_count(), []
    with Prefetch(numbers(closed), depth=2) as items:
        assert next(items) == 0
    assert threading.active_count() == before
    assert closed == [True]
    assert list(items) == []


def test_no_more_than_depth_items_wait() -> None:
    made: list[int] = []

    def counted() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    with Prefetch(counted(), depth=3) as items:
        next(items)
        time.sleep(0.3)
        assert len(made) <= 5


def test_waiting_is_measured() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.05)
            yield number

    items = Prefetch(slow(), depth=1)
    assert list(items) == [0, 1, 2]
    assert items.wait_seconds >= 0.1
