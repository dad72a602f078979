"""Figures of a training run: learning curves per cell, the loss, the scenario attention.

Every function returns a matplotlib figure drawn without a display; whoever asks for one saves it.
Colour follows the scenario in every figure, so that a scenario is found again from one to the next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Series = Sequence[tuple[float, float]]
"""Points ``(x, y)`` of one curve, x in steps or epochs."""

STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#3b4048",
    "xtick.color": "#5a606a",
    "ytick.color": "#5a606a",
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "figure.facecolor": "white",
}
# Okabe and Ito's palette: told apart with every common colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
#: Above this many scenarios a legend and numbers in cells hide more than they tell.
_READABLE = 12


def learning_curves(
    auc: Mapping[tuple[str, str], Series], scenario_names: Sequence[str], task_names: Sequence[str]
) -> Figure:
    """Validation AUC over training: one panel per task, one curve per scenario, its best point marked.

    Args:
        auc: ``(scenario, task)`` -> points ``(epoch or step, AUC)``; a cell without points is left out,
            a point that is not finite (AUC not defined) leaves a gap.
        scenario_names: In contract order.
        task_names: In contract order.
    """
    with matplotlib.rc_context(STYLE):
        columns = min(len(task_names), 3)
        lines = math.ceil(len(task_names) / columns)
        figure = Figure(figsize=(4.6 * columns, 3.3 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
        for panel, task in zip(panels, task_names, strict=False):
            for number, scenario in enumerate(scenario_names):
                _curve(panel, auc.get((scenario, task), ()), scenario, COLOURS[number % len(COLOURS)])
            panel.set_title(task)
            panel.set_ylabel("validation AUC")
            panel.set_xlabel("epoch")
            panel.xaxis.get_major_locator().set_params(integer=True)
        for panel in panels[len(task_names) :]:
            panel.set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        if handles and len(scenario_names) <= _READABLE:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
        return figure


def _curve(panel: Axes, points: Series, name: str, colour: str) -> None:
    """Draw one curve and mark its highest point."""
    if not points:
        return
    x, y = np.array(points, dtype=float).T
    panel.plot(x, y, color=colour, marker="o", markersize=3, linewidth=1.6, label=name)
    if np.isfinite(y).any():
        best = int(np.nanargmax(y))
        panel.plot(x[best], y[best], marker="o", markersize=8, markerfacecolor="none", color=colour)
        panel.annotate(
            f"{y[best]:.4f}",
            (x[best], y[best]),
            textcoords="offset points",
            xytext=(0, 7),
            ha="center",
            fontsize=7.5,
            color=colour,
        )


def loss_curve(train: Series, validation: Series = ()) -> Figure:
    """Training loss by step, faint as measured and bold as smoothed, with the validation loss over it.

    Args:
        train: Points ``(step, loss)``.
        validation: Points ``(step, loss)``, on the same axis.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.5), layout="constrained")
        panel = figure.subplots()
        if train:
            x, y = np.array(train, dtype=float).T
            panel.plot(x, y, color=COLOURS[0], alpha=0.25, linewidth=1.0)
            panel.plot(x, _smoothed(y), color=COLOURS[0], linewidth=1.8, label="training (smoothed)")
        if validation:
            x, y = np.array(validation, dtype=float).T
            panel.plot(x, y, color=COLOURS[1], marker="o", markersize=4, linewidth=1.4, label="validation")
        panel.set_title("Loss")
        panel.set_xlabel("step")
        panel.set_ylabel("weighted log-loss per row")
        if train or validation:
            panel.legend()
        return figure


def _smoothed(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Running mean over about a twentieth of the curve, shorter at its ends; no lag, gaps ignored."""
    half = max(1, len(values) // 40)
    known = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    rows = count[high] - count[low]
    return np.where(rows > 0, (total[high] - total[low]) / np.maximum(rows, 1), np.nan)


def scenario_attention(weights: npt.NDArray[Any], scenario_names: Sequence[str]) -> Figure:
    """Heat map of the scenario attention: row = the scenario scored, column = the one it listens to.

    Args:
        weights: The table, ``(M, M)``, zero diagonal, rows summing to one.
        scenario_names: ``M`` names, in contract order.

    Raises:
        ValueError: The table and the names do not fit together.
    """
    num_scenarios = len(scenario_names)
    if weights.shape != (num_scenarios, num_scenarios):
        raise ValueError(f"attention of shape {weights.shape} for {num_scenarios} scenarios")
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        side = min(max(3.4, 0.62 * num_scenarios + 2.0), 14.0)
        figure = Figure(figsize=(side + 1.0, side), layout="constrained")
        panel = figure.subplots()
        own = np.eye(num_scenarios, dtype=bool)
        shown = np.where(own, np.nan, weights)
        colours = matplotlib.colormaps["Blues"].with_extremes(bad="#eceef0")
        image = panel.imshow(shown, cmap=colours, vmin=0.0, vmax=1.0)
        ticks = range(num_scenarios)
        panel.set_xticks(ticks, scenario_names, rotation=40, ha="right", rotation_mode="anchor")
        panel.set_yticks(ticks, scenario_names)
        panel.set_title("Scenario attention")
        panel.set_ylabel("scenario scored")
        panel.set_xlabel("scenario listened to")
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0)
        if num_scenarios <= _READABLE:
            for row, column in np.argwhere(~own):
                weight = float(weights[row, column])
                colour = "white" if weight > 0.55 else "#2b2f36"
                panel.text(column, row, f"{weight:.2f}", ha="center", va="center", fontsize=8, color=colour)
        figure.colorbar(image, ax=panel, shrink=0.8, label="attention weight")
        return figure
