"""Windows: the rows of a lane that a reader holds, shuffled as the plan says."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hinet_model.data.plan import EpochPlan, Piece

Columns = dict[str, npt.NDArray[Any]]
"""Columns of a table by name, equally long."""


class LaneWindow:
    """The rows of one lane that are at hand: the shuffled window, and rows read for the next.

    Args:
        plan: The epoch's plan.
        lane: Which lane.
        start: First row of the lane that will be added: the beginning of a window.
    """

    def __init__(self, plan: EpochPlan, lane: int, start: int) -> None:
        self._plan = plan
        self._lane = lane
        self._start = self._stop = start  # rows of the lane in the shuffled window
        self._added = start
        self._window: Columns = {}
        self._next: deque[Columns] = deque()

    def is_short_of(self, stop: int) -> bool:
        """Whether rows must be added before rows up to ``stop`` can be cut."""
        window_end = -(-stop // self._plan.window_rows) * self._plan.window_rows
        return stop > self._stop and self._added < min(window_end, self._plan.lane_rows(self._lane))

    def add(self, columns: Columns, piece: Piece) -> None:
        """Take in a row group's part that follows on what was added before."""
        self._next.append({name: values[piece.start : piece.stop] for name, values in columns.items()})
        self._added += piece.stop - piece.start

    def cut(self, start: int, stop: int) -> Iterator[Columns]:
        """Rows ``start .. stop - 1`` of the shuffled lane, in up to as many parts as they touch windows."""
        while start < stop:
            if start >= self._stop:
                self._shuffle_next()
            end = min(stop, self._stop)
            yield {
                name: values[start - self._start : end - self._start] for name, values in self._window.items()
            }
            start = end

    def _shuffle_next(self) -> None:
        window = self._stop // self._plan.window_rows
        order = self._plan.window_order(self._lane, window)
        parts: list[Columns] = []
        missing = len(order)
        while missing:
            part = self._next.popleft()
            rows = len(next(iter(part.values())))
            if rows > missing:
                self._next.appendleft({name: values[missing:] for name, values in part.items()})
                part = {name: values[:missing] for name, values in part.items()}
                rows = missing
            parts.append(part)
            missing -= rows
        self._window = {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
        self._start, self._stop = self._stop, self._stop + len(order)


def joined(parts: list[Columns], dtypes: Mapping[str, str]) -> Columns:
    """The parts one after the other; columns of no rows where there is none."""
    if not parts:
        return {name: np.empty(0, dtype=dtype) for name, dtype in dtypes.items()}
    return {name: np.concatenate([part[name] for part in parts]) for name in dtypes}
