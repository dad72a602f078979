"""One, two and four workers, real processes all of them: the same batches, losses and weights."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.sql import SparkSession
from small_table import SCHEMA, TRAIN_ROWS

from feature_eng.snapshot import SnapshotRef
from hinet_model.config import TrainingSettings
from hinet_model.data.batch import Batch
from hinet_model.models.hinet import HiNetSettings
from hinet_model.settings import RunSettings
from hinet_model.training import checkpoint, worker
from hinet_model.training.callbacks import Callback
from hinet_model.training.control import launch
from hinet_model.training.job import TrainingJob
from hinet_model.training.run import Run
from hinet_model.training.statistics import StepMeasures

pytestmark = [pytest.mark.spark, pytest.mark.distributed, pytest.mark.slow]

# The workers' processes cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass
class Outcome:
    """What a run of two epochs left behind."""

    plan_hashes: set[str]
    losses: np.ndarray  # type: ignore[type-arg]
    weights: dict[str, torch.Tensor]
    row_ids: np.ndarray  # type: ignore[type-arg]
    results: list[dict[str, Any]]


def writes_down_its_rows(job: TrainingJob) -> dict[str, Any]:
    # In float32 a sum in another order may turn a ReLU on that is off elsewhere, and Adam makes a step of full
    # length of the first gradient that its unit gets: even one worker differs from itself, the rows of each batch
    # reversed, by up to 1e-4 in a loss and 1e-2 in a weight on 5 of 28 seeds. In float64 no ReLU is that near.
    torch.set_default_dtype(torch.float64)
    row_ids: list[torch.Tensor] = []
    losses: list[float] = []

    class WriteDown(Callback):
        def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
            row_ids.append(batch.row_ids)
            losses.append(measures.loss)

    result = worker.main(job, [WriteDown()])
    np.savez(
        Path(job.log_folder) / f"rank-{os.environ['HOROVOD_RANK']}.npz",
        row_ids=torch.cat(row_ids).numpy(),
        losses=np.array(losses),
    )
    return result


def outcome(spark: SparkSession, snapshot: SnapshotRef, folder: Path, workers: int) -> Outcome:
    settings = RunSettings(
        # No dropout: its draws belong to a rank.
        model=HiNetSettings(
            embedding_dim=8,
            sub_experts=2,
            sub_expert_dims=[16, 8],
            expert_dims=[8],
            tower_dims=[4],
            dropout=0.0,
        ),
        training=TrainingSettings(
            epochs=2, batch_size=128, workers=workers, threads_per_worker=1, window_rows=128
        ),
    )
    where = folder / str(workers)
    job = TrainingJob(settings, snapshot, SCHEMA, str(where), str(where / "logs"))
    results = launch.run(spark, job, lambda report: None, writes_down_its_rows)
    ranks = [np.load(path) for path in sorted((where / "logs").glob("*.npz"))]
    assert len(ranks) == workers
    newest = checkpoint.latest(where)
    assert newest is not None
    return Outcome(
        plan_hashes={result["plan_hash"] for result in results},
        losses=ranks[0]["losses"],
        weights=checkpoint.read(newest)[0]["model"],
        row_ids=np.concatenate([rank["row_ids"] for rank in ranks]),
        results=results,
    )


@pytest.fixture(scope="module")
def outcomes(
    spark: SparkSession, small_snapshot: SnapshotRef, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Outcome]:
    folder = tmp_path_factory.mktemp("world-sizes")
    return {workers: outcome(spark, small_snapshot, folder, workers) for workers in (1, 2, 4)}


def test_the_plan_hash_is_the_same(outcomes: dict[int, Outcome]) -> None:
    assert len(set.union(*(found.plan_hashes for found in outcomes.values()))) == 1


def test_the_losses_of_every_step_are_the_same(outcomes: dict[int, Outcome]) -> None:
    assert len(outcomes[1].losses) == 2 * 16
    for workers in (2, 4):
        np.testing.assert_allclose(outcomes[workers].losses, outcomes[1].losses, rtol=0, atol=1e-5)


def test_the_weights_in_the_end_are_the_same(outcomes: dict[int, Outcome]) -> None:
    for workers in (2, 4):
        for name, expected in outcomes[1].weights.items():
            torch.testing.assert_close(outcomes[workers].weights[name], expected, rtol=0, atol=1e-4, msg=name)


def test_all_workers_of_a_run_hold_the_same_weights_to_the_bit(outcomes: dict[int, Outcome]) -> None:
    for found in outcomes.values():
        assert len({result["weights"] for result in found.results}) == 1


def test_every_training_row_enters_the_loss_exactly_once_an_epoch(
    outcomes: dict[int, Outcome], small_snapshot: SnapshotRef
) -> None:
    (file,) = small_snapshot.files_of("train")
    expected = np.sort(pq.read_table(file.path, columns=["row_id"])["row_id"].to_numpy())
    assert len(np.unique(expected)) == TRAIN_ROWS
    for found in outcomes.values():
        np.testing.assert_array_equal(np.sort(found.row_ids), np.repeat(expected, 2))


def test_the_peak_memory_of_every_worker_is_told(outcomes: dict[int, Outcome]) -> None:
    for found in outcomes.values():
        assert all(2**27 < result["peak_memory_bytes"] < 2**32 for result in found.results)
