"""Routing: which contiguous rows of a batch belong to which scenario."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Segment(NamedTuple):
    """Rows ``start`` to ``stop`` (exclusive) of a batch: all rows of one scenario."""

    scenario: int
    start: int
    stop: int


def segments_of(scenario_counts: Sequence[int]) -> list[Segment]:
    """The segments of the scenarios that have rows, in order.

    A batch without rows gives one empty segment of scenario 0, so that what loops over
    segments always has a result to join, with the right widths and gradients of zero.

    Args:
        scenario_counts: Rows of each scenario, known on the host.

    Returns:
        Contiguous segments that cover the batch.
    """
    segments = []
    start = 0
    for scenario, count in enumerate(scenario_counts):
        if count:
            segments.append(Segment(scenario, start, start + count))
        start += count
    return segments or [Segment(0, 0, 0)]


def pieces_of(rows: Tensor, scenario_counts: Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """The rows of each scenario, also of those that have none.

    One split, because each slice of its own would come back as a gradient of the whole batch's size.

    Args:
        rows: Sorted by scenario along ``dim``.
        scenario_counts: Rows of each scenario.
        dim: Axis of the rows.
    """
    pieces: tuple[Tensor, ...] = torch.split(rows, list(scenario_counts), dim)
    return pieces


def check_counts(scenario_counts: Sequence[int], num_scenarios: int, num_rows: int) -> None:
    """Refuse counts that cannot be those of a batch of this model.

    Raises:
        ValueError: Another number of scenarios than the model has, or counts that do not sum to the rows.
    """
    if len(scenario_counts) != num_scenarios:
        raise ValueError(f"the batch counts {len(scenario_counts)} scenarios; the model has {num_scenarios}")
    if sum(scenario_counts) != num_rows:
        raise ValueError(f"scenario_counts sum to {sum(scenario_counts)}; the batch has {num_rows} rows")
