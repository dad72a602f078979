"""Evaluations written down by hand, for tests of what is decided by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hinet_model.lifecycle.evaluation import CHALLENGER, CHAMPION, Evaluation
from hinet_model.lifecycle.judging.judgements import Judgement
from hinet_model.lifecycle.judging.measures import Measure

LINEAGE = {"table_id": "t", "delta_version": "3", "contract_fingerprint": "f", "contract": "small"}


def cell(
    name: str, auc: float | None, champion: float | None = None, *, se: float = 0.002, rows: int = 10_000,
    positives: int = 4000, pcoc: float = 1.0, training_rows: int = 100_000,
) -> Judgement:  # fmt: skip
    """A cell ``scenario/task``; ``se`` is the standard error of the difference to the champion."""
    scenario, _, task = name.partition("/")
    measures: dict[str, Mapping[str, Measure]] = {
        CHALLENGER: {
            "auc": Measure(auc, se=0.01),
            "pcoc": Measure(pcoc),
            "gauc": Measure(auc),
            "ece": Measure(0.02),
        }
    }
    differences = {}
    if champion is not None:
        measures[CHAMPION] = {"auc": Measure(champion)}
        change = Measure(None) if auc is None else Measure(auc - champion, se=se)
        differences = {"auc": change, "auc_by_user": replace(change, se=3 * se)}
    return Judgement("cell", scenario, task, rows, positives, 500, 0, training_rows, measures, differences)


def evaluation(cells: Sequence[Judgement], champion: str | None = None, **changed: Any) -> Evaluation:
    """An evaluation of these cells, admissible unless changed."""
    change = Measure(0.01, se=0.001)
    overall = Judgement("overall", "*", "*", 1, 1, 1, 0, 1, {}, {"auc": change} if champion else {})
    fields: dict[str, Any] = {
        "model": "small",
        "challenger": "2",
        "champion": champion,
        "made_at": "2024-05-01T12:00:00+00:00",
        "rows": {"training_table_id": "t", "training_version": "3", "contract_fingerprint": "f"},
        "seen": {CHALLENGER: {"rows": 0, "how": "h"}, CHAMPION: {"rows": 0, "how": "h"}},
        "methods": {},
        "judgements": (*cells, overall),
    }
    return Evaluation(**{**fields, **changed})
