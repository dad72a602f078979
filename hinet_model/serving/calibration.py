"""Calibration: probabilities of each scenario and task put right after the sigmoid, as plain data with the model.

A calibration is fitted on validation rows (`hinet_model.lifecycle.calibrating`), saved as ``calibration.json`` in
the model folder and applied by the `Scorer`, so that REST, Spark and evaluation give the same. A cell without one
keeps its probabilities.

Where training saw a sample of the negatives, the model itself answers for all rows (`hinet_model.models.sampled`), and
validation rows are never sampled: the calibration is fitted on what is left.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

CALIBRATION_FILE = "calibration.json"
Method = Literal["platt", "isotonic"]
Floats = npt.NDArray[np.floating[Any]]

_SMALLEST = 1e-7


def log_odds(prob: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Logit of a probability that is held 1e-7 from 0 and 1."""
    held = np.clip(np.asarray(prob, dtype=np.float64), _SMALLEST, 1 - _SMALLEST)
    result: npt.NDArray[np.float64] = np.log(held / (1 - held))
    return result


@dataclass(frozen=True)
class Platt:
    """``sigmoid(slope * logit + intercept)``."""

    slope: float
    intercept: float

    def apply(self, prob: Floats) -> Floats:
        """Calibrated probabilities. ``(B,)``"""
        result: Floats = 1 / (1 + np.exp(-(self.slope * log_odds(prob) + self.intercept)))
        return result


@dataclass(frozen=True)
class Isotonic:
    """Linear between points that never fall; constant beyond the first and the last."""

    prob: tuple[float, ...]
    calibrated: tuple[float, ...]

    def apply(self, prob: Floats) -> Floats:
        """Calibrated probabilities. ``(B,)``"""
        result: Floats = np.interp(prob, self.prob, self.calibrated)
        return result


@dataclass(frozen=True)
class Calibration:
    """Of a model.

    Attributes:
        method: ``platt`` or ``isotonic``.
        cells: (scenario, task) -> what is applied there.
        skipped: ``<scenario>/<task>`` -> why the cell has none.
        fitted_on: The rows: table, version, split.
    """

    method: Method
    cells: Mapping[tuple[str, str], Platt | Isotonic]
    skipped: Mapping[str, str]
    fitted_on: Mapping[str, Any]

    def apply(
        self,
        probs: Floats,
        scenario_index: npt.NDArray[Any],
        scenarios: tuple[str, ...],
        tasks: tuple[str, ...],
    ) -> npt.NDArray[np.float32]:
        """Calibrate probabilities.

        Args:
            probs: ``(B, N)``, columns in task order.
            scenario_index: Of each row. ``(B,)``
            scenarios, tasks: Names in their order.
        """
        found = np.array(probs, dtype=np.float32)
        for (scenario, task), cell in self.cells.items():
            rows = np.flatnonzero(scenario_index == scenarios.index(scenario))
            column = tasks.index(task)
            found[rows, column] = cell.apply(probs[rows, column].astype(np.float64))
        return found

    def save(self, folder: Path) -> None:
        """Write ``calibration.json``."""
        content = {
            "method": self.method,
            "cells": [{"scenario": s, "task": t, **asdict(cell)} for (s, t), cell in self.cells.items()],
            "skipped": dict(self.skipped),
            "fitted_on": dict(self.fitted_on),
        }
        (folder / CALIBRATION_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Calibration | None:
        """Read ``calibration.json``; ``None`` where the model has none.

        Raises:
            ValueError: It is damaged.
        """
        path = folder / CALIBRATION_FILE
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            cells: dict[tuple[str, str], Platt | Isotonic] = {}
            for cell in content["cells"]:
                key = cell["scenario"], cell["task"]
                if content["method"] == "platt":
                    cells[key] = Platt(float(cell["slope"]), float(cell["intercept"]))
                else:
                    cells[key] = Isotonic(
                        tuple(map(float, cell["prob"])), tuple(map(float, cell["calibrated"]))
                    )
            return cls(content["method"], cells, content["skipped"], content["fitted_on"])
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ValueError(f"{path}: not a calibration: {type(error).__name__} {error}") from error
