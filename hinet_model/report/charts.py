"""Charts of the report page: where everything stands, in the units of an SVG; a template draws it.

A chart is small, of one cell, and says in words what it shows. Lines are told apart by dashes as well as by colour,
and colours are the page's, so that a chart follows its light and its dark form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 260, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 8, 8, 34
_SCORE_BINS = 30

Points = Sequence[Sequence[float]]
"""Points ``(x, y, ...)`` of one line."""


@dataclass(frozen=True)
class Line:
    """A polyline.

    Args:
        kind: Class of the style sheet.
        points: As SVG has them: ``x,y x,y``.
        dots: Centres of dots along it.
    """

    kind: str
    points: str
    dots: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Chart:
    """One chart.

    Args:
        title: Whose it is; stands above.
        words: What it shows, for whoever does not see it.
        lines: From back to front.
        x_ticks, y_ticks: Place and text.
        x_label, y_label: What the axes measure.
    """

    title: str
    words: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_label: str
    y_label: str

    left, right, top, bottom = _LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM
    width, height = WIDTH, HEIGHT


@dataclass(frozen=True)
class Frame:
    """The plane of a chart: data to places.

    Args:
        x, y: Least and most of each axis.
    """

    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point stands, to a tenth."""
        right = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return (
            round(_LEFT + right * (WIDTH - _LEFT - _RIGHT), 1),
            round(HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM), 1),
        )

    def line(self, kind: str, points: Points, *, dots: bool = False) -> Line:
        """A polyline through points."""
        placed = [self.place(point[0], point[1]) for point in points]
        return Line(kind, " ".join(f"{x},{y}" for x, y in placed), tuple(placed) if dots else ())

    def chart(self, title: str, words: str, lines: Sequence[Line], x_label: str, y_label: str) -> Chart:
        """The chart, with ticks."""
        x_ticks = tuple((self.place(at, self.y[0])[0], text) for at, text in ticks(*self.x))
        y_ticks = tuple((self.place(self.x[0], at)[1], text) for at, text in ticks(*self.y))
        return Chart(title, words, tuple(lines), x_ticks, y_ticks, x_label, y_label)


def ticks(low: float, high: float, most: int = 5) -> list[tuple[float, str]]:
    """Round values between two ends, with as many decimals as tell them apart."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(number * step, f"{number * step:.{decimals}f}") for number in range(first, last + 1)]


def roc(title: str, curves: Mapping[str, Points], words: str) -> Chart | None:
    """ROC curves of one cell; ``None`` where none is defined."""
    drawn = {model: points for model, points in curves.items() if points}
    if not drawn:
        return None
    frame = Frame((0.0, 1.0), (0.0, 1.0))
    lines = [frame.line("chance", [(0, 0), (1, 1)])]
    lines += [frame.line(model, points) for model, points in reversed(drawn.items())]
    return frame.chart(title, words, lines, "false positive rate", "true positive rate")


def reliability(title: str, curves: Mapping[str, Points], words: str) -> Chart | None:
    """Reliability of one cell: rate of positives against the mean probability of each bin."""
    drawn = {model: points for model, points in curves.items() if points}
    if not drawn:
        return None
    top = _round_up(max(max(point[0], point[1]) for points in drawn.values() for point in points))
    frame = Frame((0.0, top), (0.0, top))
    lines = [frame.line("chance", [(0, 0), (top, top)])]
    lines += [frame.line(model, points, dots=True) for model, points in reversed(drawn.items())]
    return frame.chart(title, words, lines, "predicted probability", "observed rate")


def scores(title: str, steps: Points, words: str) -> Chart | None:
    """How the scores of negatives and of positives are spread, each over its own total.

    Args:
        title: Whose.
        steps: Least score, weight of negatives, weight of positives of each step, ascending.
        words: What it shows.
    """
    if not steps:
        return None
    found = np.asarray(steps, dtype=float)
    # Where the last step ends is not known; steps are of about equal weight, so it is not far.
    top = _round_up(min(1.0, float(found[-1, 0]) * 1.05))
    edges = np.r_[found[:, 0], top]
    grid = np.linspace(0.0, top, _SCORE_BINS + 1)
    shares = {}
    for kind, column in (("negatives", 1), ("positives", 2)):
        total = found[:, column].sum()
        if total > 0:
            below = np.interp(grid, edges, np.r_[0.0, found[:, column].cumsum()] / total)
            shares[kind] = np.diff(below)
    frame = Frame((0.0, top), (0.0, _round_up(max(float(share.max()) for share in shares.values()))))
    lines = [frame.line(kind, _stairs(grid, share)) for kind, share in shares.items()]
    return frame.chart(title, words, lines, "probability", "share of rows")


def learning(
    title: str, points: Points, span: tuple[float, float], epochs: float, words: str
) -> Chart | None:
    """AUC of one cell by epoch, on an axis that the cells of a task share."""
    known = [point for point in points if math.isfinite(point[1])]
    if not known:
        return None
    frame = Frame((min(1.0, epochs - 1.0), epochs), span)
    return frame.chart(title, words, [frame.line("challenger", known, dots=True)], "epoch", "validation AUC")


def span_of(values: Sequence[float]) -> tuple[float, float]:
    """An axis that holds all values, with some room, and some width where they are all one."""
    low, high = min(values), max(values)
    room = max(0.06 * (high - low), 0.001)
    return low - room, high + room


@dataclass(frozen=True)
class Strip:
    """The axis that the intervals of a table's column share.

    Args:
        low, high: Ends.
        marks: Values with a stroke of their own: chance, no change, the margin.
    """

    low: float
    high: float
    marks: tuple[float, ...] = ()
    width, height = 120, 16

    @classmethod
    def of(cls, values: Sequence[float | None], marks: Sequence[float] = ()) -> Strip:
        """Wide enough for all values that there are, and for all marks."""
        known = [value for value in (*values, *marks) if value is not None]
        return cls(*span_of(known or [0.0, 1.0]), tuple(marks))

    def at(self, value: float) -> float:
        """Where a value stands."""
        share = (value - self.low) / (self.high - self.low)
        return round(3 + share * (self.width - 6), 1)


def _stairs(grid: npt.NDArray[np.float64], heights: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    steps = [(float(grid[0]), 0.0)]
    for left, right, height in zip(grid[:-1], grid[1:], heights, strict=True):
        steps += [(float(left), float(height)), (float(right), float(height))]
    return [*steps, (float(grid[-1]), 0.0)]


def _round_up(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        round(factor * power, 12)
        for factor in (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
        if factor * power >= value * (1 - 1e-9)
    )
