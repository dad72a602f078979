"""Policy: what a challenger must show before it may become champion; `conf/promotion/*.yml`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from foundation.settings import Settings

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class Floors(Settings):
    """What a metric must reach, champion or not."""

    auc: float | None = Field(default=None, ge=0.0, le=1.0)
    """Least AUC; null sets none."""
    gauc: float | None = Field(default=None, ge=0.0, le=1.0)
    """Least GAUC (mean AUC within a user); null sets none."""


class CalibrationBounds(Settings):
    """What calibration must keep to."""

    pcoc: tuple[float, float] | None = (0.5, 2.0)
    """Least and most of predicted over observed positives; null sets no bounds."""
    ece: float | None = Field(default=None, gt=0.0, le=1.0)
    """Most expected calibration error; null sets none."""

    @model_validator(mode="after")
    def _one_lies_between(self) -> CalibrationBounds:
        if self.pcoc is not None and not 0 <= self.pcoc[0] <= 1 <= self.pcoc[1]:
            raise ValueError(f"pcoc: {list(self.pcoc)} must hold 1, which is perfect calibration")
        return self


class Policy(Settings):
    """What a challenger must show. Every rule holds for every cell (scenario and task), never for their mean alone.

    A cell is *compared* when it has rows, positives and power enough. Its loss must then be shown to be below the
    margin: the lower bound of the paired difference in AUC lies above ``-margin``. All compared cells must show it,
    each at the full confidence: the chance of promoting a challenger that is worse than the margin somewhere is at
    most one less the confidence, however many cells there are (an intersection-union test; Berger, Technometrics 1982).
    """

    margin: float = Field(default=0.01, gt=0.0, le=1.0)
    """AUC that a cell may lose against the champion."""
    confidence: Share = 0.95
    """Of every bound, one-sided."""
    interval: Literal["delong", "by_user"] = "delong"
    """Standard error of a difference: delong takes rows for independent, by_user (bootstrap) takes users for it."""
    min_rows: int = Field(default=100, ge=1)
    """Rows that a cell needs to be judged by itself."""
    min_positives: int = Field(default=25, ge=2)
    """Positives that it needs, and negatives."""
    min_power: Share = 0.8
    """Least chance that a challenger equal to the champion passes; below it, the cell is too small to be compared."""
    too_small: Literal["pool", "refuse"] = "pool"
    """pool: cells that are too small are judged together, by task; as long as the pool is too small as well, the task's
    smallest other cells join it; if all of them do not suffice, the challenger is refused. refuse: it is at once."""
    multiplicity: Literal["holm", "bonferroni", "none"] = "holm"
    """Cells with too little power must not be worse than the margin beyond chance: correction for their number."""
    untrained: Literal["refuse", "name"] = "refuse"
    """What happens to a scenario without training rows: name lists it and goes on."""
    floors: Floors = Floors(auc=0.55)
    """Of every cell that has rows and positives enough, and of every pool (AUC)."""
    cell_floors: dict[str, Floors] = Field(default={})
    """Floors of single cells, by scenario/task, in place of `floors`."""
    calibration: CalibrationBounds = CalibrationBounds()
    """Of every cell that has rows and positives enough."""
    gain: Literal["none", "point", "shown"] = "none"
    """Wanted of the mean AUC over all cells, against a champion: nothing; a rise; a lower bound above 0."""
    weight: str | None = None
    """Column that the evaluation must have weighed rows by (`evaluate.py --weight`); null: by none, all count alike."""
    max_age_days: float | None = Field(default=30.0, gt=0.0)
    """Age at which an evaluation is stale; null never."""
    unknown_training: Literal["refuse", "allow"] = "refuse"
    """What happens where it cannot be found out whether a model was trained on test rows: its data are gone."""
    approval: str | None = Field(default=None, min_length=1, pattern=r"^[\w .-]+$")
    """Tag of the version that a person sets to `approved` (`promote.py --approve`) first; null needs none. A deployment
    job of MLflow names it after its approval task."""
