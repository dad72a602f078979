"""The section ``drift`` of a contract: how far a build may lie from the one before."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from feature_eng.contract.section import Section

Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=1)]


class Drift(Section):
    """Limits between a build and the one before; a build beyond one stops before anyone trains on it.

    What has no limit is shown and stored all the same.

    Args:
        rows: Most that the rows of a scenario may be multiplied or divided by.
        labels: The same of the share of label 1, of each task and scenario.
        nulls: Most that the share of nulls of a feature's column may rise or fall by.
        unknown: The same of values that the encoder does not know.
        psi: Greatest population stability index of a feature.
    """

    rows: Ratio | None = None
    labels: Ratio | None = None
    nulls: Share | None = None
    unknown: Share | None = None
    psi: Annotated[float, Field(gt=0)] | None = None
