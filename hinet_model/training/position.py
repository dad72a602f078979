"""Position: where a run stands, and what it has found so far; read without loading a tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Best:
    """The best validation of a run so far.

    Args:
        epoch: Its epoch, 0-based.
        value: Its mean AUC over the cells.
        checkpoint: Name of the checkpoint that holds what was validated.
    """

    epoch: int
    value: float
    checkpoint: str


@dataclass(frozen=True)
class Position:
    """Where training goes on, and what was measured on the way.

    Args:
        epoch: Epoch of the next step, 0-based.
        step: Its step within the epoch.
        global_step: Optimiser steps taken so far.
        identity: What must be equal for the numbers to go on as they would have, by the name of the setting.
        best: The best validation so far; None before the first.
        bad_validations: Validations since the best one.
        history: One entry per epoch, for curves that span a restart.
    """

    epoch: int
    step: int
    global_step: int
    identity: dict[str, str]
    best: Best | None = None
    bad_validations: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
