"""Pictures of a study, as figures of matplotlib: one for each view of its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hinet_model.report.figures import COLOURS, STYLE
from hinet_model.studies.comparing import Array
from hinet_model.studies.findings import Findings
from hinet_model.studies.page import attention_tables
from hinet_model.studies.settings import View

_BLUE, _GREY = COLOURS[0], "#9aa5b1"


def save_pictures(findings: Findings, folder: Path) -> list[tuple[str, str]]:
    """Draw every view of a study as SVG.

    Returns:
        What each shows, and its file in the folder.
    """
    saved = []
    # Equal findings make equal files.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "studies", "svg.fonttype": "none"}):
        for view in findings.study.views:
            figure = _DRAWN[view](findings)
            if figure is not None:
                name = f"{findings.facts.name}-{view}.svg"
                figure.savefig(folder / name, metadata={"Date": None})
                saved.append((f"{view} of the study {findings.facts.name}", name))
    return saved


def _ranking(findings: Findings) -> Figure:
    """Each seed a dot, each mean a bar with its interval over seeds and, fainter, over test rows; best on top."""
    rows = findings.variants[::-1]
    figure = Figure(figsize=(7.2, 1.2 + 0.3 * len(rows)), layout="constrained")
    panel = figure.subplots()
    defined = findings.defined
    for height, row in enumerate(rows):
        auc = row.overall.auc
        seeds = findings.standings[row.variant].auc[:, defined].mean(axis=1)
        for half, width, alpha in ((auc.half_rows, 8, 0.25), (auc.half_seeds, 5, 0.6)):
            if np.isfinite(half):
                ends = [auc.value - half, auc.value + half]
                panel.plot(ends, [height, height], color=_GREY, linewidth=width, alpha=alpha)
        colour = COLOURS[1] if row.variant == findings.study.reference else _BLUE
        panel.plot(seeds, [height] * len(seeds), "o", color=colour, markersize=3.5)
        panel.plot([auc.value], [height], "|", color="black", markersize=11)
    panel.set_yticks(range(len(rows)), [row.variant for row in rows])
    panel.set_xlabel("mean test AUC of all cells: seeds, their interval (dark), that over test rows (faint)")
    panel.grid(axis="y", visible=False)
    return figure


def _cells(findings: Findings) -> Figure:
    """Difference of each variant to the reference, cell by cell, as a heat map; dots where it is more than noise."""
    rows = [row for row in findings.variants if row.variant != findings.study.reference]
    values = np.array(
        [[np.nan if one.change is None else 100 * one.change.value for one in row.cells] for row in rows]
    ).reshape(len(rows), len(findings.facts.cells))
    figure = Figure(figsize=(2.6 + 0.62 * values.shape[1], 1.6 + 0.32 * len(rows)), layout="constrained")
    panel = figure.subplots()
    reach = float(np.nanmax(np.abs(values), initial=0.01))
    image = panel.imshow(values, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    for place, row in enumerate(rows):
        for column, one in enumerate(row.cells):
            strong = abs(values[place, column]) > 0.6 * reach
            mark = "•" if one.verdict in ("ahead", "behind") else ""
            panel.text(
                column, place, f"{values[place, column]:+.1f}{mark}", ha="center", va="center", fontsize=7,
                color="white" if strong else "#2b2f36",
            )  # fmt: skip
    names = [f"{scenario} {task}" for scenario, task in findings.facts.cells]
    panel.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    panel.set_yticks(range(len(rows)), [row.variant for row in rows])
    panel.set_title(f"100 x (AUC less that of {findings.study.reference}); •: more than noise")
    panel.grid(visible=False)
    figure.colorbar(image, ax=panel, shrink=0.8)
    return figure


def _curve(findings: Findings) -> Figure:
    """AUC along each axis of the study, with the interval over seeds."""
    axes_of = findings.study.curves
    figure = Figure(figsize=(3.8 * len(axes_of), 3.3), layout="constrained")
    panels = figure.subplots(1, len(axes_of), squeeze=False, sharey=True).ravel()
    done = {row.variant: row for row in findings.variants}
    for panel, (axis, points) in zip(panels, axes_of.items(), strict=True):
        here = [(place, done[name].overall.auc) for name, place in points.items() if name in done]
        here.sort(key=lambda point: point[0])
        x = [place for place, _ in here]
        y = np.array([auc.value for _, auc in here])
        half = np.nan_to_num(np.array([auc.half_seeds for _, auc in here]))
        panel.fill_between(x, y - half, y + half, color=_BLUE, alpha=0.2, linewidth=0)
        panel.plot(x, y, "o-", color=_BLUE, markersize=4)
        panel.set_xlabel(axis)
        panel.set_xticks(x)
    panels[0].set_ylabel("mean test AUC of all cells")
    return figure


def _attention(findings: Findings) -> Figure | None:
    """Learned attention, averaged over seeds, beside the planted similarity."""
    tables = attention_tables(findings)
    if not tables:
        return None
    shown = {f"learned: {name}": np.mean(found, axis=0) for name, found in list(tables.items())[:3]}
    if findings.facts.planted is not None:
        shown["planted similarity"] = findings.facts.planted
    figure = Figure(figsize=(3.7 * len(shown), 3.6), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False).ravel()
    for panel, (title, table) in zip(panels, shown.items(), strict=True):
        _heat_map(panel, np.asarray(table), title, findings.facts.scenarios)
    panels[0].set_ylabel("scenario scored")
    return figure


def _heat_map(panel: Axes, table: Array, title: str, names: Sequence[str]) -> None:
    own = np.eye(len(table), dtype=bool)
    shown = np.where(own, np.nan, table)
    colours = matplotlib.colormaps["Blues"].with_extremes(bad="#eceef0")
    most = float(np.nanmax(shown))
    panel.imshow(shown, cmap=colours, vmin=0.0, vmax=most)
    panel.set_title(title)
    panel.set_xticks(range(len(table)), names)
    panel.set_yticks(range(len(table)), names)
    panel.grid(visible=False)
    if len(table) <= 12:
        for row, column in np.argwhere(~own):
            colour = "white" if table[row, column] > 0.6 * most else "#2b2f36"
            text = f"{table[row, column]:.2f}"
            panel.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)


_DRAWN: dict[View, Callable[[Findings], Figure | None]] = {
    "ranking": _ranking,
    "cells": _cells,
    "curve": _curve,
    "attention": _attention,
    "seesaw": _cells,
}
