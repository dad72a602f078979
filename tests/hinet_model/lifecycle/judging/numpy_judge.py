"""Judging without Spark: the same numpy functions in one process, cell after cell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hinet_model.lifecycle.judging.measures import CellSums
from hinet_model.lifecycle.judging.ranks import Floats, Ints, Ranking, places_of, score_bins
from hinet_model.lifecycle.judging.sums import Entries, Shape, add_up


def judge_in_memory(
    cell: Ints, user: Ints, positive: Ints, scores: Sequence[Floats], shape: Shape, *,
    weight: Floats | None = None, listed: Ints | None = None, block_rows: int = 10**6,
) -> dict[int, CellSums]:  # fmt: skip
    """The sums of every cell."""
    positive = np.asarray(positive).astype(bool)
    weight = np.ones(len(cell)) if weight is None else np.asarray(weight, dtype=np.float64)
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("placement", "precision", "bin", "step")}
    for score in scores:
        of_score = {name: np.zeros(len(cell)) for name in found}
        for name in np.unique(cell):
            chosen = np.flatnonzero(cell == name)
            ranking = ranking_of(score[chosen], positive[chosen], weight[chosen], shape, block_rows)
            places = places_of(score[chosen], positive[chosen], weight[chosen], ranking)
            values = (places.placement, places.precision, places.bins(shape.bins), places.step)
            for place, value in zip(of_score, values, strict=True):
                of_score[place][chosen] = value
        for name, values in of_score.items():
            found[name].append(values)
    stacked = {name: np.stack(values) for name, values in found.items()}
    entries = Entries(
        cell=np.asarray(cell, dtype=np.int64),
        user=np.asarray(user, dtype=np.int64),
        listed=np.zeros(len(cell), dtype=np.int64) if listed is None else np.asarray(listed, dtype=np.int64),
        positive=positive,
        weight=weight,
        score=np.stack(scores),
        placement=stacked["placement"],
        precision=stacked["precision"],
        bin=stacked["bin"].astype(np.int64),
        step=stacked["step"].astype(np.int64),
    )
    return {name: CellSums.of(sums, shape) for name, sums in add_up(entries, shape).items()}


def ranking_of(score: Floats, positive: Ints, weight: Floats, shape: Shape, block_rows: int) -> Ranking:
    """The ranking of one cell, counted here."""
    bins, owner = np.unique(score_bins(score), return_inverse=True)
    values = (np.ones(len(score)), np.where(positive, 0, weight), np.where(positive, weight, 0))
    counts = np.stack([np.bincount(owner, weights=value, minlength=len(bins)) for value in values], axis=1)
    return Ranking.of(bins, counts, block_rows, shape.steps)
