"""Curves: what a page draws of a cell, in as many points whatever its rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from hinet_model.lifecycle.judging.measures import CellSums
from hinet_model.lifecycle.judging.ranks import Ranking, bin_start
from hinet_model.lifecycle.judging.sums import Shape


def curves(cell: CellSums, shape: Shape, c: int, ranking: Ranking | None) -> dict[str, Any]:
    """What a page draws of one contestant on one cell: bounded in size, whatever the rows.

    Returns:
        ``roc``: ``[false positive rate, true positive rate]`` from (0, 0) to (1, 1); ``reliability``: ``[mean
        probability, observed rate, weight]`` of each bin; ``scores``: ``[least score, weight of negatives, weight of
        positives]`` of each step.
    """
    if ranking is None:
        return {"roc": [], "reliability": [], "scores": []}
    falling = ranking.steps[::-1].cumsum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = falling / ranking.total
    roc = [[0.0, 0.0], *rates.tolist()] if np.isfinite(rates).all() else []
    in_bin, positive, prob = cell.plain[shape.bins_at(c) :][: 3 * shape.bins].reshape(3, shape.bins)
    held = in_bin > 0
    reliability = np.stack([prob[held] / in_bin[held], positive[held] / in_bin[held], in_bin[held]], axis=1)
    scores = np.concatenate([bin_start(ranking.edges)[:, None], ranking.steps], axis=1)
    return {"roc": roc, "reliability": reliability.tolist(), "scores": scores.tolist()}
