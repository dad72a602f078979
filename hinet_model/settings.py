"""The settings of one training run: all that a file of `conf/train/` may say, its sections put together.

Faults that need two sections are found here. Settings that name a scenario or a task are checked against the data by
`hinet_model.models.build`, which is the first place that knows both.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from foundation.settings import Settings
from hinet_model.config import (
    CheckpointSettings,
    DataSettings,
    LossSettings,
    MlflowSettings,
    OptimiserSettings,
    TrainingSettings,
    WatchdogSettings,
)
from hinet_model.models.hinet import HiNetSettings
from hinet_model.models.registry import AnyModel


class RunSettings(Settings):
    """One training run."""

    data: DataSettings = DataSettings()
    model: AnyModel = HiNetSettings()
    loss: LossSettings = LossSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    training: TrainingSettings = TrainingSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    mlflow: MlflowSettings = MlflowSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    calibration: Literal["none", "platt", "isotonic"] = "none"
    """Fitted per scenario and task on the validation split once training has ended, and saved with the model."""

    @model_validator(mode="after")
    def _gradients_that_workers_hold(self) -> RunSettings:
        if self.training.table == "sharded" and self.loss.balance in ("gradnorm", "pcgrad"):
            raise ValueError(
                f"training.table: sharded cannot go with loss.balance: {self.loss.balance}, which needs the gradient "
                "of the whole table on every worker; expected training.table: replicated, or another balance"
            )
        return self
