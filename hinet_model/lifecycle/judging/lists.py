"""Lists: how well the rows that a user saw together are ordered."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hinet_model.lifecycle.judging.ranks import Floats, Ints


def lists_of(listed: Ints, unit: Ints) -> tuple[Ints, Ints]:
    """Unit of each list, and list of each entry: a list is what one unit has under one list hash."""
    order = np.lexsort((listed, unit))
    ordered, owner = listed[order], unit[order]
    begins = np.r_[True, (np.diff(ordered) != 0) | (np.diff(owner) != 0)][: len(order)]
    list_of = np.empty(len(order), dtype=np.int64)
    list_of[order] = np.cumsum(begins) - 1
    return owner[begins], list_of


def list_quality(
    score: Floats, positive: npt.NDArray[np.bool_], list_of: Ints, length: int
) -> tuple[Floats, Floats]:
    """NDCG at a length and reciprocal rank of the first positive, of each list; 0 for a list without positives.

    Among equal scores every order is as good as another: NDCG is the mean over all orders; the first positive of ``q``
    among ``t`` equal ones is expected at place ``(t + 1) / (q + 1)``.

    Args:
        score: Higher is nearer to the top. ``(R,)``
        positive: Whether the label is 1. ``(R,)``
        list_of: List of each row, 0 to ``L - 1``. ``(R,)``
        length: ``k`` of NDCG@k; the reciprocal rank goes by the whole list.

    Returns:
        Two of ``(L,)``.

    Source: McSherry and Najork (ECIR 2008), for ties.
    """
    lists = int(list_of.max(initial=-1)) + 1
    order = np.lexsort((-score, list_of))
    ordered, owner = score[order], list_of[order]
    first = np.flatnonzero(np.r_[True, (np.diff(ordered) != 0) | (np.diff(owner) != 0)][: len(order)])
    size = np.diff(np.r_[first, len(order)])
    hits = np.add.reduceat(positive[order].astype(np.float64), first)
    run_owner = owner[first]
    begins = np.flatnonzero(np.r_[True, np.diff(run_owner) != 0][: len(first)])
    above = first - np.repeat(first[begins], np.diff(np.r_[begins, len(first)]))
    gain = np.r_[0.0, np.cumsum(1 / np.log2(np.arange(length) + 2))]
    dcg = hits / size * (gain[np.minimum(above + size, length)] - gain[np.minimum(above, length)])
    all_hits = np.bincount(list_of, weights=positive, minlength=lists)
    best = gain[np.minimum(all_hits, length).astype(np.int64)]
    with np.errstate(invalid="ignore", divide="ignore"):
        ndcg = np.where(all_hits > 0, np.bincount(run_owner, weights=dcg, minlength=lists) / best, 0.0)
    hit_runs = np.flatnonzero(hits > 0)
    lists_hit, top = np.unique(run_owner[hit_runs], return_index=True)
    run = hit_runs[top]
    reciprocal = np.zeros(lists)
    reciprocal[lists_hit] = 1 / (above[run] + (size[run] + 1) / (hits[run] + 1))
    return ndcg, reciprocal
