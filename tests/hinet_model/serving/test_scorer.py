"""The scorer scores raw rows as the model was saved to, and refuses by name what it cannot score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from model_folders import SETTINGS, encoder_state, raw_rows, save_small_model

from feature_eng.encoder.state import EncoderState
from foundation.settings import ConfigError
from hinet_model.serving.scorer import (
    GOLDEN_FILE,
    MODEL_FILE,
    WEIGHTS_FILE,
    Scorer,
    ScorerError,
    golden_rows,
    same_logits,
    same_probabilities,
    save_model_folder,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture(scope="module")
def scorer(saved: Path) -> Scorer:
    return Scorer.load(saved)


@pytest.fixture
def rows() -> pa.Table:
    return raw_rows(encoder_state())


def test_scores_are_probabilities_one_per_row_and_task(scorer: Scorer, rows: pa.Table) -> None:
    scores = scorer.score(rows)
    assert scores.shape == (5, 2)
    assert ((scores > 0) & (scores < 1)).all()
    assert len(np.unique(scores)) == scores.size, "the small model must tell rows and tasks apart"


def test_scores_come_back_in_input_order(scorer: Scorer, rows: pa.Table) -> None:
    scores = scorer.score(rows)
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        np.testing.assert_allclose(scorer.score(rows.take(pa.array(order))), scores[order], atol=1e-6)


def test_a_row_scores_alone_as_it_does_among_others(scorer: Scorer, rows: pa.Table) -> None:
    scores = scorer.score(rows)
    for i in range(rows.num_rows):
        np.testing.assert_allclose(scorer.score(rows.slice(i, 1))[0], scores[i], atol=1e-6)


def test_small_batches_score_as_one_large_batch(scorer: Scorer, rows: pa.Table) -> None:
    in_twos = Scorer(scorer.state, scorer.model, SETTINGS, batch_rows=2)
    np.testing.assert_allclose(in_twos.score(rows), scorer.score(rows), atol=1e-6)


def test_no_rows_score_to_no_rows(scorer: Scorer, rows: pa.Table) -> None:
    assert scorer.score(rows.slice(0, 0)).shape == (0, 2)


def test_record_batches_and_extra_columns_are_fine(scorer: Scorer, rows: pa.Table) -> None:
    wider = rows.append_column("note", pa.array(["x"] * 5))
    (batch,) = wider.to_batches()
    np.testing.assert_array_equal(scorer.score(batch), scorer.score(rows))


def test_scenario_names_follow_the_rows(scorer: Scorer, rows: pa.Table) -> None:
    assert scorer.scenarios(scorer.encode(rows)) == ["young", "old", "young", "old", "young"]


def test_a_saved_model_scores_as_it_did(saved: Path, scorer: Scorer, rows: pa.Table) -> None:
    golden = pq.read_table(saved / GOLDEN_FILE)
    scores = scorer.score(rows)
    for j, task in enumerate(scorer.task_names):
        probs = 1.0 / (1.0 + np.exp(-golden[f"logit/{task}"].to_numpy().astype(np.float64)))
        np.testing.assert_allclose(probs, scores[:, j], atol=1e-6)
    assert golden_rows(saved).equals(rows)


def test_ids_beyond_double_precision_keep_their_own_row(scorer: Scorer, rows: pa.Table) -> None:
    encoded = scorer.encode(rows)
    assert encoded["user_id"].tolist() == [1, 4, 3, 0, 0]


def test_an_unknown_scenario_is_scored_as_the_stand_in_that_the_model_names(
    scorer: Scorer, rows: pa.Table, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"unknown_scenario": "old"}).model_dump(mode="json")
    weights = scorer.model.state_dict()
    save_model_folder(tmp_path / "model", scorer.state, settings, weights, rows)
    lenient = Scorer.load(tmp_path / "model")
    age = rows.schema.get_field_index("age")
    strange = rows.set_column(age, "age", pa.array([25.0, -7.0, 12.0, None, 29.0], pa.float64()))
    known = rows.set_column(age, "age", pa.array([25.0, 50.0, 12.0, 50.0, 29.0], pa.float64()))
    np.testing.assert_array_equal(lenient.score(strange), scorer.score(known))
    assert lenient.scenarios(lenient.encode(strange)) == ["young", "old", "young", "old", "young"]


def test_a_stand_in_that_is_no_scenario_is_refused(scorer: Scorer, rows: pa.Table, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"unknown_scenario": "olde"}).model_dump(mode="json")
    with pytest.raises(ConfigError, match="did you mean 'old'"):
        save_model_folder(tmp_path / "model", scorer.state, settings, scorer.model.state_dict(), rows)


def test_an_unknown_scenario_is_refused_with_row_and_value(scorer: Scorer, rows: pa.Table) -> None:
    ages = pa.array([25.0, 40.0, 12.0, 150.0, 29.0])
    strange = rows.set_column(rows.schema.get_field_index("age"), "age", ages)
    with pytest.raises(ValueError, match=r"row 3: age = 150\.0.*young, old"):
        scorer.score(strange)


def test_missing_raw_columns_are_all_named_with_a_suggestion(scorer: Scorer, rows: pa.Table) -> None:
    renamed = rows.rename_columns([{"zip": "zip_code", "year": "x"}.get(n, n) for n in rows.column_names])
    with pytest.raises(
        ScorerError, match=r"'zip' is missing; did you mean 'zip_code'\?; raw column 'year' is missing"
    ):
        scorer.score(renamed)


def test_another_score_of_a_golden_row_is_refused_by_name(folder: Path) -> None:
    weights = torch.load(folder / WEIGHTS_FILE, weights_only=True)
    torch.save({name: tensor + 0.5 for name, tensor in weights.items()}, folder / WEIGHTS_FILE)
    with pytest.raises(ScorerError, match=r"golden row 0: logit/click is .* was .* when the model was saved"):
        Scorer.load(folder)


def with_logits(weights: dict[str, torch.Tensor], shift: float) -> dict[str, torch.Tensor]:
    """Weights whose logits are ``shift`` higher: by the biases of the towers' last layers."""
    last = "task_layer.towers.towers.biases.1"
    return {**weights, last: weights[last] + shift}


@pytest.mark.parametrize("level", [0.0, -12.0, 12.0, -40.0])
def test_a_model_that_is_always_nearly_sure_is_checked_as_strictly_as_any(
    scorer: Scorer, rows: pa.Table, tmp_path: Path, level: float
) -> None:
    weights = with_logits(scorer.model.state_dict(), level) if level else scorer.model.state_dict()
    settings = SETTINGS.model_dump(mode="json")
    folder = save_model_folder(tmp_path / "model", scorer.state, settings, weights, rows)
    Scorer.load(folder)
    torch.save(with_logits(weights, 0.1), folder / WEIGHTS_FILE)
    with pytest.raises(ScorerError, match=r"golden row 0: logit/click is"):
        Scorer.load(folder)


def test_logits_are_alike_within_the_rounding_of_other_machines_and_no_more() -> None:
    was = np.array([0.0, 0.0, -20.0, -20.0, 9.0, np.inf, np.inf, np.nan], np.float32)
    now = np.array([0.0009, 0.0011, -20.019, -20.021, 9.0, np.inf, 90.0, np.nan], np.float32)
    assert same_logits(was, now).tolist() == [True, False, True, False, True, True, False, False]


def test_probabilities_are_judged_by_their_odds() -> None:
    logits = np.array([-20.0, -20.0, -20.0, 20.0, 20.0, 0.0, 0.0, -200.0, -1000.0])
    probs = np.array([2.061e-9, 2.0e-9, 0.0, 1.0, 0.9999, 0.5, 0.5005, 0.0, 1e-9])
    expected = [True, False, False, True, False, True, False, True, False]
    assert same_probabilities(logits, probs).tolist() == expected


def test_another_index_of_a_golden_row_is_refused_by_name(folder: Path) -> None:
    golden = pq.read_table(folder / GOLDEN_FILE)
    place = golden.schema.get_field_index("encoded/user_id")
    changed = golden.set_column(place, "encoded/user_id", pa.array([1, 4, 2, 0, 0], pa.int32()))
    pq.write_table(changed, folder / GOLDEN_FILE)
    with pytest.raises(ScorerError, match=r"golden row 2: encoded/user_id is 3, but was 2"):
        Scorer.load(folder)


def test_weights_of_another_model_are_refused(folder: Path) -> None:
    torch.save({"other": torch.zeros(1)}, folder / WEIGHTS_FILE)
    with pytest.raises(ScorerError, match=r"weights\.pt: not the weights of this model"):
        Scorer.load(folder)


def test_weights_with_code_in_them_are_not_run(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("raise SystemExit('ran')",))

    torch.save({"trap": Trap()}, folder / WEIGHTS_FILE)
    with pytest.raises(ScorerError):
        Scorer.load(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("format", 1, "format 1; this code reads format 2"), ("encoder_digest", "0" * 64, "digest")],
)
def test_a_folder_that_does_not_fit_together_is_refused(
    folder: Path, key: str, value: object, message: str
) -> None:
    document = json.loads((folder / MODEL_FILE).read_text())
    (folder / MODEL_FILE).write_text(json.dumps({**document, key: value}))
    with pytest.raises(ScorerError, match=message):
        Scorer.load(folder)


@pytest.mark.parametrize("name", [MODEL_FILE, WEIGHTS_FILE, GOLDEN_FILE])
def test_a_missing_part_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ScorerError, match=name.replace(".", r"\.")):
        Scorer.load(folder)


def test_a_model_is_not_saved_without_golden_rows(tmp_path: Path, rows: pa.Table) -> None:
    state: EncoderState = encoder_state()
    with pytest.raises(ScorerError, match="needs golden rows"):
        save_model_folder(tmp_path / "m", state, SETTINGS.model_dump(), {}, rows.slice(0, 0))


def test_the_thread_count_is_set(saved: Path) -> None:
    before = torch.get_num_threads()
    try:
        Scorer.load(saved, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
