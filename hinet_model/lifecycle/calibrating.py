"""Calibrating: fit a calibration of each cell on a model's scores of validation rows, on Spark.

Scores are counted in the score bins of `hinet_model.lifecycle.judging.ranks` (2,048 an octave), and each cell is
fitted on its counts where they are summed: the driver gets the fitted curves.

Sources: Platt (1999), with his smoothed targets; isotonic regression: Zadrozny and Elkan (KDD 2002).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hinet_model.lifecycle.judging.contest import label_columns
from hinet_model.lifecycle.judging.counting import Columns, score_counts, summed_counts
from hinet_model.lifecycle.judging.ranks import Floats, bin_middle
from hinet_model.serving.calibration import Calibration, Isotonic, Method, Platt, log_odds
from hinet_model.serving.on_spark import SCENARIO_INDEX, score_side_by_side, ship, side_by_side_column
from hinet_model.serving.scorer import GOLDEN_FILE, Scorer, golden_rows

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

LEAST_OF_A_CLASS = 50
"""Positives, and negatives, that a cell needs to be fitted."""


def calibrate(
    folder: Path, rows: DataFrame, method: Method, described: Mapping[str, Any], least: int = LEAST_OF_A_CLASS
) -> Calibration:
    """Fit a calibration and save it in the model folder; the golden rows are scored anew with it.

    Args:
        folder: Model folder, without a calibration.
        rows: Validation rows: raw columns of the model, and its labels.
        method: How.
        described: The rows, for the record.
        least: Positives, and negatives, that a cell needs; one with fewer keeps its probabilities.
    """
    scorer = Scorer.load(folder)
    shipment = ship(rows.sparkSession, folder, folder.name)
    labels = label_columns(scorer.task_names)
    columns = Columns(
        strata=(SCENARIO_INDEX,),
        labels=labels,
        scores=tuple((side_by_side_column(0, task),) for task in scorer.task_names),
        user=SCENARIO_INDEX,
    )
    scored = score_side_by_side(rows, [shipment], labels)
    fitted = (
        score_counts(scored, columns)
        .groupBy("cell")
        .applyInArrow(_fit(method, least), "cell int, found string")
    )
    found = {row["cell"]: json.loads(row["found"]) for row in fitted.toArrow().to_pylist()}
    cells: dict[tuple[str, str], Platt | Isotonic] = {}
    skipped: dict[str, str] = {}
    for stratum, scenario in enumerate(scorer.scenario_names):
        for place, task in enumerate(scorer.task_names):
            one = found.get(columns.cell(stratum, place), "no validation rows")
            if isinstance(one, str):
                skipped[f"{scenario}/{task}"] = one
            elif method == "platt":
                cells[scenario, task] = Platt(**one)
            else:
                cells[scenario, task] = Isotonic(tuple(one["prob"]), tuple(one["calibrated"]))
    calibration = Calibration(method, cells, skipped, described)
    calibration.save(folder)
    scorer.calibration = calibration
    pq.write_table(scorer.golden(golden_rows(folder)), folder / GOLDEN_FILE)
    return calibration


def _fit(method: Method, least: int) -> Callable[[pa.Table], pa.Table]:
    def fit(table: pa.Table) -> pa.Table:
        bins, counts = summed_counts(table)
        fitted = fit_cell(method, bin_middle(bins), counts[:, 1], counts[:, 2], least)
        content = fitted if isinstance(fitted, str) else asdict(fitted)
        return pa.table(
            {"cell": pa.array([table["cell"][0].as_py()], pa.int32()), "found": [json.dumps(content)]}
        )

    return fit


def fit_cell(
    method: Method, prob: Floats, negative: Floats, positive: Floats, least: int
) -> Platt | Isotonic | str:
    """Fit one cell.

    Args:
        method: How.
        prob: Distinct probabilities, ascending. ``(B,)``
        negative, positive: Weight of the negatives and positives that have them. ``(B,)``
        least: Weight that each class needs.

    Returns:
        The fit, or why there is none.
    """
    negatives, positives = float(negative.sum()), float(positive.sum())
    if min(negatives, positives) < least:
        return f"{positives:g} positives and {negatives:g} negatives; wanted {least} of each"
    if method == "platt":
        return _platt(log_odds(prob), negative, positive)
    # Loading it takes most of a second, on every executor too, and few models are calibrated so.
    from sklearn.isotonic import IsotonicRegression

    weight = negative + positive
    # A probability of 0 or 1 would cost infinitely much the first time it is wrong.
    margin = 0.5 / (negatives + positives + 1)
    regression = IsotonicRegression(y_min=margin, y_max=1 - margin, out_of_bounds="clip")
    regression.fit(prob, positive / weight, sample_weight=weight)
    return Isotonic(tuple(regression.X_thresholds_.tolist()), tuple(regression.y_thresholds_.tolist()))


def _platt(logit: Floats, negative: Floats, positive: Floats) -> Platt:
    from scipy.optimize import minimize

    negatives, positives = negative.sum(), positive.sum()
    of_positive, of_negative = (positives + 1) / (positives + 2), 1 / (negatives + 2)
    weight = negative + positive
    target = positive * of_positive + negative * of_negative

    def loss(parameters: Floats) -> tuple[float, Floats]:
        slope, intercept = parameters
        z = slope * logit + intercept
        gap = weight / (1 + np.exp(-z)) - target
        value = (weight * np.logaddexp(0, z) - target * z).sum() / weight.sum()
        return float(value), np.array([(gap * logit).sum(), gap.sum()]) / weight.sum()

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS", options={"gtol": 1e-9})
    return Platt(float(found.x[0]), float(found.x[1]))
