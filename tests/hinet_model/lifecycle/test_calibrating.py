"""A calibration is fitted per cell on validation rows, and makes the cell's probabilities right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from model_folders import encoder_state, raw_rows, save_small_model
from pyspark.sql import SparkSession
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from hinet_model.lifecycle.calibrating import calibrate, fit_cell
from hinet_model.serving.calibration import Calibration, Isotonic, Platt, log_odds
from hinet_model.serving.scorer import Scorer


def overconfident(number: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct probabilities that say too much, and how many negatives and positives have each."""
    draw = np.random.default_rng(0)
    logit = np.round(draw.normal(-1, 1, number), 2)
    label = draw.random(number) < 1 / (1 + np.exp(-logit))
    prob, owner = np.unique(1 / (1 + np.exp(-2 * logit - 1)), return_inverse=True)
    return prob, np.bincount(owner, weights=~label), np.bincount(owner, weights=label)


def test_platt_finds_the_slope_and_the_shift() -> None:
    prob, negative, positive = overconfident()
    found = fit_cell("platt", prob, negative, positive, least=50)
    assert isinstance(found, Platt)
    assert (found.slope, found.intercept) == pytest.approx((0.5, -0.5), abs=0.03)
    logit = np.tile(log_odds(prob), 2)[:, None]
    label, weight = np.repeat([0, 1], len(prob)), np.r_[negative, positive]
    reference = LogisticRegression(C=1e9, tol=1e-10, max_iter=1000).fit(logit, label, sample_weight=weight)
    # Platt's targets are not quite 0 and 1.
    assert found.slope == pytest.approx(reference.coef_[0, 0], abs=2e-3)
    assert found.intercept == pytest.approx(reference.intercept_[0], abs=2e-3)


def test_isotonic_is_scikit_learns_but_never_0_or_1() -> None:
    prob, negative, positive = overconfident()
    found = fit_cell("isotonic", prob, negative, positive, least=50)
    assert isinstance(found, Isotonic)
    label, weight = np.repeat([0, 1], len(prob)), np.r_[negative, positive]
    reference = IsotonicRegression(out_of_bounds="clip").fit(np.tile(prob, 2), label, sample_weight=weight)
    wanted = reference.predict(prob)
    np.testing.assert_allclose(found.apply(prob), np.clip(wanted, 0.5 / 20_001, 1 - 0.5 / 20_001), atol=1e-9)
    assert 0 < min(found.calibrated) < max(found.calibrated) < 1


def test_a_cell_with_too_few_of_a_class_keeps_its_probabilities_and_says_why() -> None:
    found = fit_cell("platt", np.array([0.2, 0.4]), np.array([100.0, 90.0]), np.array([3.0, 9.0]), least=50)
    assert found == "12 positives and 190 negatives; wanted 50 of each"


@pytest.mark.spark
@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_calibrated_model_predicts_as_many_positives_as_there_are(
    spark: SparkSession, tmp_path: Path, method: str
) -> None:
    folder = save_small_model(tmp_path / "model")
    draw = np.random.default_rng(1)
    raw = raw_rows(encoder_state())
    many = raw.take(pa.array(draw.integers(0, 5, 4000)))
    label = pa.array([None if x < 0.02 else int(x < 0.2) for x in draw.random(4000)], pa.int32())
    rare = pa.array((draw.random(4000) < 0.001).astype(np.int32))
    table = many.append_column("label__click", label).append_column("label__like", rare)
    found = calibrate(folder, spark.createDataFrame(table), method, {"split": "validation"})
    assert set(found.cells) == {("young", "click"), ("old", "click")}
    assert set(found.skipped) == {"young/like", "old/like"}
    scorer = Scorer.load(folder)
    assert scorer.calibration == found
    labelled = table.filter(label.is_valid())
    scores, index = scorer.score(labelled)[:, 0], scorer.encode(labelled)["scenario_index"]
    for scenario in (0, 1):
        chosen = index == scenario
        rate = labelled["label__click"].to_numpy()[chosen].mean()
        assert scores[chosen].mean() == pytest.approx(rate, rel=0.01)


def test_an_order_is_no_likelier_than_its_click_when_both_are_calibrated(tmp_path: Path) -> None:
    settings = {"ctcvr": "product", "ctr_task": "click", "ctcvr_task": "like"}
    scorer = Scorer.load(save_small_model(tmp_path / "model", **settings))
    rows = raw_rows(encoder_state())
    plain = scorer.score(rows)
    assert (plain[:, 1] <= plain[:, 0]).all()
    lifted = {(scenario, "like"): Platt(1.0, 3.0) for scenario in scorer.scenario_names}
    scorer.calibration = Calibration("platt", lifted, {}, {})
    scores = scorer.score(rows)
    np.testing.assert_array_equal(scores[:, 0], plain[:, 0])
    wanted = 1 / (1 + np.exp(-log_odds(plain[:, 1].astype(np.float64)) - 3.0))
    assert (wanted > plain[:, 0]).any()
    np.testing.assert_allclose(scores[:, 1], np.minimum(wanted, plain[:, 0]), rtol=1e-5)
