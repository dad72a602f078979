"""Metrics: exact, per scenario and task, and None where they are not defined.

An AUC of one class, or of no rows, is not zero and not one half: it does not exist, and is left out of
means. Counts always stand beside a metric, so that a reader sees how much it rests on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]

SMALLEST_PROB = 1e-7
"""Probabilities are held this far from 0 and 1, as float32 scores can reach both."""


# What MLflow allows in a metric's name, less "/", which separates the parts.
_FORBIDDEN = re.compile(r"[^\w.\- :]", re.ASCII)


def metric_name(*parts: str) -> str:
    """``val/auc/<scenario>/<task>`` and the like; characters that MLflow refuses become ``_``."""
    return "/".join(_FORBIDDEN.sub("_", part) for part in parts)


@dataclass(frozen=True)
class CellMetrics:
    """Metrics of one scenario and task.

    Args:
        scenario_index: Position of the scenario.
        task: Position of the task.
        rows: Rows of the cell that have a label.
        positives: Rows whose label is 1.
        auc: Area under the ROC curve; None with one class only.
        log_loss: Mean cross-entropy in nats; None without rows.
        pcoc: Predicted over observed positives; None without positives.
        gauc: Mean AUC within a user, weighted by the user's rows; None where no user has both classes, or
            users were not given.
        gauc_rows: Rows of the users that the GAUC rests on.
        auc_error: How far the AUC may be from the exact one; 0 where it is exact.
    """

    scenario_index: int
    task: int
    rows: int
    positives: int
    auc: float | None
    log_loss: float | None
    pcoc: float | None
    gauc: float | None = None
    gauc_rows: int = 0
    auc_error: float = 0.0


def auc(labels: Floats, scores: Floats) -> float | None:
    """Probability that a positive scores above a negative, a tie counting one half; exact.

    Args:
        labels: 0 or 1. ``(R,)``.
        scores: Any increasing function of the probability, finite. ``(R,)``.

    Returns:
        None unless both classes are there.

    Raises:
        ValueError: A score is not finite.

    Source: the Mann-Whitney statistic, by mid-ranks.
    """
    scores = np.asarray(scores)
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite; a model that gives NaN or infinity has no AUC")
    order = np.argsort(scores, kind="stable")
    positive = np.asarray(labels)[order] > 0.5
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if num_positive == 0 or num_negative == 0:
        return None
    sorted_scores = scores[order]
    first = np.flatnonzero(np.r_[True, sorted_scores[1:] != sorted_scores[:-1]])
    last = np.r_[first[1:], len(sorted_scores)]
    # Twice the mid-rank (1-based) of a run of ties is an integer, so that the sum of ranks is exact.
    double_rank = np.repeat(first + last + 1, last - first)
    double_sum = int(double_rank[positive].sum())
    return (double_sum - num_positive * (num_positive + 1)) / (2 * num_positive * num_negative)


def log_loss(labels: Floats, probs: Floats) -> float | None:
    """Mean cross-entropy in nats of probabilities; None without rows."""
    if len(labels) == 0:
        return None
    prob = np.clip(np.asarray(probs, dtype=np.float64), SMALLEST_PROB, 1 - SMALLEST_PROB)
    positive = np.asarray(labels) > 0.5
    return float(-np.log(np.where(positive, prob, 1 - prob)).mean())


def pcoc(labels: Floats, probs: Floats) -> float | None:
    """Predicted over observed positives, 1 when calibrated; None without positives."""
    observed = float(np.sum(labels, dtype=np.float64))
    return float(np.sum(probs, dtype=np.float64)) / observed if observed else None


def gauc(labels: Floats, scores: Floats, user_index: Ints) -> tuple[float | None, int]:
    """Mean AUC within a user, weighted by rows; users with one class are left out.

    Args:
        labels: 0 or 1. ``(R,)``.
        scores: Finite. ``(R,)``.
        user_index: Any integer per user. ``(R,)``.

    Returns:
        The mean and the rows of the users it rests on; None where no user has both classes.
    """
    order = np.argsort(user_index, kind="stable")
    bounds = np.flatnonzero(np.diff(np.asarray(user_index)[order])) + 1
    total, rows = 0.0, 0
    for of_user in np.split(order, bounds):
        user_auc = auc(labels[of_user], scores[of_user])
        if user_auc is not None:
            total += user_auc * len(of_user)
            rows += len(of_user)
    return (total / rows if rows else None), rows


def evaluate_cells(
    labels: Floats,
    probs: Floats,
    scenario_index: Ints,
    num_scenarios: int | None = None,
    user_index: Ints | None = None,
) -> list[CellMetrics]:
    """Metrics of every scenario and task, scenario by scenario.

    Args:
        labels: 0 or 1; below 0 where a row has no label, which its cell then passes over. ``(R, N)``.
        probs: Predicted probabilities. ``(R, N)``.
        scenario_index: Scenario of each row. ``(R,)``.
        num_scenarios: Scenarios; those without rows get cells too. The largest index plus one if not given.
        user_index: Any integer per user, for the GAUC. ``(R,)``.

    Raises:
        ValueError: Shapes that do not fit each other, or a score that is not finite.
    """
    labels, probs, scenario_index = np.asarray(labels), np.asarray(probs), np.asarray(scenario_index)
    if labels.shape != probs.shape or labels.ndim != 2 or len(scenario_index) != len(labels):
        raise ValueError(
            f"labels {labels.shape}, probs {probs.shape} and scenario_index {scenario_index.shape} do not fit"
        )
    if num_scenarios is None:
        num_scenarios = int(scenario_index.max(initial=-1)) + 1
    cells = []
    for scenario in range(num_scenarios):
        for task in range(labels.shape[1]):
            rows = np.flatnonzero((scenario_index == scenario) & (labels[:, task] >= 0))
            label, prob = labels[rows, task], probs[rows, task]
            cell_gauc, gauc_rows = (None, 0) if user_index is None else gauc(label, prob, user_index[rows])
            cells.append(
                CellMetrics(
                    scenario_index=scenario,
                    task=task,
                    rows=len(rows),
                    positives=int((label > 0.5).sum()),
                    auc=auc(label, prob),
                    log_loss=log_loss(label, prob),
                    pcoc=pcoc(label, prob),
                    gauc=cell_gauc,
                    gauc_rows=gauc_rows,
                )
            )
    return cells


def mean_defined(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are defined; None where none is."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
