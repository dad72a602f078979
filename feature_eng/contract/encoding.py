"""The section ``encoder`` of a contract: what a build's encoder keeps of the one before."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from feature_eng.contract.section import Section
from feature_eng.contract.values import Positive


class Encoding(Section):
    """Where a build's encoder begins.

    Args:
        begins: ``nothing``: it is fitted anew. ``previous``: it keeps every index, boundary, mean and deviation of the
            newest training table's encoder; values that are new, ``min_count`` times in train, get new indices.
        forget_after: Builds in a row that a value must be missing from train until its index is free for a new one;
            never when left out. A build of the same rows again does not count.
    """

    begins: Literal["nothing", "previous"] = Field(default="nothing", alias="from")
    forget_after: Positive | None = None

    @model_validator(mode="after")
    def _forgets_what_it_kept(self) -> Encoding:
        if self.forget_after is not None and self.begins != "previous":
            raise ValueError("'forget_after' goes with 'from: previous'")
        return self
