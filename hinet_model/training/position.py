"""Position: where a run stands, and what it has found so far; read without loading a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

CURVE_POINTS = 10_000
"""Points of a curve that are told at a time; a figure shows no more."""


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


def curve(losses: Sequence[float], first_step: int) -> list[tuple[int, float]]:
    """Points ``(global step, loss)`` of a loss curve: every step, or where they are many the means of as many.

    Args:
        losses: Of consecutive steps.
        first_step: The first one's number, 1 is a run's first.
    """
    width = -(-len(losses) // CURVE_POINTS) or 1
    return [
        (first_step + start, sum(part) / len(part))
        for start in range(0, len(losses), width)
        for part in (losses[start : start + width],)
    ]
