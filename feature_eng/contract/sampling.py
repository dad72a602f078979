"""The section ``sampling`` of a contract: which negatives training leaves out, and what makes up for it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from feature_eng.contract.section import Section

KeptShare = Annotated[float, Field(gt=0, le=1)]


class Sampling(Section):
    """Keep a share of the negatives among the training rows; validation and test stay whole.

    Args:
        keep_negatives: Share of the negatives kept, by a seeded hash of the key.
        by_scenario: Shares that differ, by scenario name.
        task: Negatives are the rows whose label of this task is 0; where left out, those with labels of
            which none is 1.
        correction: ``weights``: a kept negative weighs 1 over its share in the loss. ``shift``: the loss is
            left alone, and the model's answers are corrected when it scores: the logit of ``task`` moves by
            the logarithm of the share.
        seed: Of the hash.
    """

    keep_negatives: KeptShare
    by_scenario: dict[str, KeptShare] = Field(default_factory=dict)
    task: str | None = None
    correction: Literal["weights", "shift"] = "weights"
    seed: int = 0
