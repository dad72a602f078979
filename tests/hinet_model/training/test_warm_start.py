"""A model that begins with an earlier one's weights scores old rows alike, whatever indices values have now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from model_folders import BIG_ID, SETTINGS, encoder_state, raw_rows, save_small_model

from feature_eng.encoder.state import EncoderState, Standardise
from hinet_model.models.build import build_model
from hinet_model.models.features import build_layout
from hinet_model.models.model import table_name
from hinet_model.nn.row_shard import RowShard
from hinet_model.serving.scorer import Scorer, saved_settings
from hinet_model.training import assemble
from hinet_model.training.control.reports import ReportList
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.dist.world import LocalWorld
from hinet_model.training.earlier_model import WarmStartError, warm_start
from hinet_model.training.job import TrainingJob
from hinet_model.training.warm_start import WarmStart


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    return save_small_model(tmp_path / "earlier")


def later_state(order: str) -> EncoderState:
    """Values that are new: behind the old ones, or as they sort among them."""
    grown = {
        "user_id": pa.array([1, 2, 3, BIG_ID, -5, 50], pa.int64()),
        "item_id": pa.array([10, 20, 30, 15], pa.int64()),
        "genres": pa.array(["comedy", "drama", "action"], pa.string()),
        "journey__kinds": pa.array(["carts", "rows", "orders"], pa.string()),
    }
    if order == "anew":
        grown = {name: keys.take(pa.compute.sort_indices(keys)) for name, keys in grown.items()}
    return replace(encoder_state(), vocabularies=grown)


@pytest.mark.parametrize("order", ["grown", "anew"])
def test_scores_of_old_rows_are_unchanged_before_the_first_step(
    earlier: Path, tmp_path: Path, order: str
) -> None:
    state = later_state(order)
    scorer, layout = Scorer.load(earlier), build_layout(SETTINGS, state.model_schema())
    begins_with = warm_start(scorer, saved_settings(earlier), SETTINGS, state, layout)
    assert begins_with.refitted == ()
    begins_with.save(tmp_path)
    model = build_model(SETTINGS, layout, seed=9)
    drawn = model.embedding.weight.detach().clone()
    WarmStart.load(tmp_path).apply(model)
    again = Scorer(state, model, SETTINGS)
    rows = raw_rows(state)
    assert np.array_equal(again.score(rows), scorer.score(rows))
    # Rows of new values stay as they were drawn.
    new = (model.embedding.weight == drawn).all(dim=1)
    assert int(new.sum()) == 2 + 1 + 1 + 1


def test_each_worker_takes_the_rows_of_its_shard(earlier: Path) -> None:
    state = later_state("grown")
    layout = build_layout(SETTINGS, state.model_schema())
    begins_with = warm_start(Scorer.load(earlier), saved_settings(earlier), SETTINGS, state, layout)
    whole = build_model(SETTINGS, layout, seed=9)
    begins_with.apply(whole)
    for place in range(2):
        shard = RowShard(place, 2)
        part = build_model(SETTINGS, layout, 9, shard)
        begins_with.apply(part)
        assert torch.equal(part.embedding.weight, shard.of(whole.embedding.weight))


def test_a_model_of_another_shape_is_refused_by_what_differs(earlier: Path) -> None:
    state = encoder_state()
    other = SETTINGS.model_copy(update={"tower_dims": [4, 4]})
    layout = build_layout(other, state.model_schema())
    with pytest.raises(WarmStartError, match=r"model\.tower_dims is \[4, 4\] here and \[4\] there$"):
        warm_start(Scorer.load(earlier), saved_settings(earlier), other, state, layout)


def test_numbers_that_are_read_otherwise_are_named(earlier: Path) -> None:
    state = encoder_state()
    moved = replace(state, operations={**state.operations, "year": Standardise("year", "none", 1991.0, 10.0)})
    layout = build_layout(SETTINGS, moved.model_schema())
    found = warm_start(Scorer.load(earlier), saved_settings(earlier), SETTINGS, moved, layout)
    assert found.refitted == ("year",)


def test_a_run_begins_with_the_weights_beside_its_checkpoints(small_job: Callable[..., TrainingJob]) -> None:
    earlier = assemble.assemble(small_job(seed=5), LocalWorld(), ReportList(), Progress()).trainer.parts.model
    table = table_name(earlier)
    job = small_job({"warm_start": "models:/small@champion"}, name="later")
    weights = earlier.state_dict()
    ids = torch.arange(len(weights[table]))
    dense = {name: tensor for name, tensor in weights.items() if name != table}
    WarmStart(dense, ids, weights[table]).save(job.checkpoint_folder)
    begun = assemble.assemble(job, LocalWorld(), ReportList(), Progress()).trainer.parts.model
    for name, tensor in begun.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
