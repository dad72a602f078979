"""A calibration is plain data with the model, applied wherever it scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from model_folders import encoder_state, raw_rows, save_small_model

from hinet_model.serving.calibration import CALIBRATION_FILE, Calibration, Isotonic, Platt, log_odds
from hinet_model.serving.pyfunc import HinetPyfunc
from hinet_model.serving.scorer import Scorer, ScorerError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_small_model(tmp_path / "model")


@pytest.fixture
def rows() -> pa.Table:
    return raw_rows(encoder_state())


CALIBRATION = Calibration(
    "platt",
    {("young", "like"): Platt(0.5, -1.0)},
    {"old/like": "no validation rows"},
    {"split": "validation"},
)


def test_only_the_cell_that_has_one_is_calibrated(folder: Path, rows: pa.Table) -> None:
    scorer = Scorer.load(folder)
    plain, encoded = scorer.score(rows), scorer.encode(rows)
    scorer.calibration = CALIBRATION
    found = scorer.score(rows)
    young = encoded["scenario_index"] == 0
    np.testing.assert_array_equal(found[~young], plain[~young])
    np.testing.assert_array_equal(found[:, 0], plain[:, 0])
    wanted = 1 / (1 + np.exp(-(0.5 * log_odds(plain[young, 1]) - 1)))
    np.testing.assert_allclose(found[young, 1], wanted, rtol=1e-6)
    np.testing.assert_array_equal(scorer.score_encoded(encoded, calibrated=False), plain)


@pytest.mark.parametrize(
    "calibration",
    [CALIBRATION, Calibration("isotonic", {("old", "click"): Isotonic((0.1, 0.5), (0.2, 0.3))}, {}, {})],
)
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, calibration: Calibration) -> None:
    assert Calibration.load(tmp_path) is None
    calibration.save(tmp_path)
    assert Calibration.load(tmp_path) == calibration


def test_an_isotonic_curve_is_linear_between_its_points_and_constant_beyond() -> None:
    curve = Isotonic((0.2, 0.4), (0.1, 0.5))
    np.testing.assert_allclose(curve.apply(np.array([0.0, 0.2, 0.3, 0.4, 1.0])), [0.1, 0.1, 0.3, 0.5, 0.5])


def test_a_calibration_that_the_golden_rows_do_not_know_is_refused(folder: Path) -> None:
    CALIBRATION.save(folder)
    with pytest.raises(ScorerError, match="golden row"):
        Scorer.load(folder)


def test_a_damaged_calibration_is_named(folder: Path) -> None:
    (folder / CALIBRATION_FILE).write_text('{"method": "platt"}')
    with pytest.raises(ScorerError, match=r"calibration\.json: not a calibration"):
        Scorer.load(folder)


def test_rest_answers_as_the_scorer_does(folder: Path, rows: pa.Table) -> None:
    served = HinetPyfunc()
    served.scorer = Scorer.load(folder)
    served.scorer.calibration = CALIBRATION
    whole = rows.slice(0, 1)
    answer = served.predict(None, whole.to_pandas())
    np.testing.assert_allclose(answer[["click_prob", "like_prob"]], served.scorer.score(whole), rtol=1e-6)
