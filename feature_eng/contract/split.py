"""The section ``split`` of a contract: train, validation and test."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from feature_eng.contract.section import Section

SPLITS: tuple[str, str, str] = ("train", "validation", "test")


class Split(Section):
    """How examples are parted into train, validation and test; fractions in that order."""

    method: Literal["time", "random", "user_disjoint"]
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0

    @field_validator("fractions")
    @classmethod
    def _sum_to_one(cls, fractions: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(fractions) < 0 or fractions[0] == 0 or abs(sum(fractions) - 1) > 1e-9:
            raise ValueError(f"{list(fractions)} are not shares; expected three that sum to 1, train above 0")
        return fractions
