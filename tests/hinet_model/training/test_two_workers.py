"""Two workers take the steps of one: every balance and running moment, on the same global batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from thread_world import in_threads

from feature_eng.snapshot import SnapshotRef
from hinet_model.config import LossSettings, OptimiserSettings, TrainingSettings
from hinet_model.data.batch import Batch, BatchLayout
from hinet_model.models.registry import read_settings
from hinet_model.settings import RunSettings
from hinet_model.training.assemble import DataShape, build_parts
from hinet_model.training.control.reports import ReportList
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.dist.world import LocalWorld
from hinet_model.training.job import TrainingJob
from hinet_model.training.loop import StepOptions, Trainer

STEPS, ROWS = 4, 96


def part(columns: dict[str, np.ndarray], layout: BatchLayout, step: int, rank: int, size: int) -> Batch:
    """This rank's rows of a step; with two ranks the first has a third of them, and few of one scenario."""
    cut = ROWS // 3
    rows = np.arange(step * ROWS, (step + 1) * ROWS)
    mine = rows if size == 1 else (rows[:cut], rows[cut:])[rank]
    return layout.to_batch({name: values[mine] for name, values in columns.items()}, global_rows=ROWS)[0]


def train(
    world: LocalWorld, settings: RunSettings, layout: BatchLayout, columns: dict[str, np.ndarray]
) -> tuple[dict[str, Any], Any, list[float]]:
    parts = build_parts(settings, DataShape(layout, (50, 30, 20), 2 * STEPS), world, Progress())
    trainer = Trainer(parts, StepOptions(), ReportList(), Progress())
    losses = []
    for epoch in range(3):
        for step in range(STEPS):
            batch = part(columns, layout, step, world.rank, world.size)
            losses.append(trainer.step(batch, epoch * STEPS + step).loss)
        parts.balance.after_epoch()
    return parts.model.state_dict(), parts.balance.factors, losses


@pytest.mark.parametrize(
    ("model", "balance"),
    [
        ("hinet", "none"),
        ("hinet", "uncertainty"),
        ("hinet", "dwa"),
        ("hinet", "gradnorm"),
        ("hinet", "pcgrad"),
        ("star", "none"),
        ("star", "pcgrad"),
        ("aitm", "none"),
        ("aitm", "pcgrad"),
    ],
)
def test_two_workers_have_the_weights_of_one(
    model: str, balance: str, small_job: Callable[..., TrainingJob], small_snapshot: SnapshotRef
) -> None:
    job = small_job()
    layout = BatchLayout.from_schema(job.schema)
    table = pq.read_table(small_snapshot.files_of("train")[0].path)
    columns = {name: table[name].to_numpy()[: STEPS * ROWS] for name in table.column_names}
    settings = RunSettings(
        model=read_settings({"name": model, "embedding_dim": 8, "expert_dims": [8], "tower_dims": [4]}),
        loss=LossSettings.model_validate(
            {
                "scheme": "sqrt",
                "task_weights": {"like": 0.5},
                "balance": balance,
                "calibrator_weight": 0.6 if model == "aitm" else 0.0,
            }
        ),
        optimiser=OptimiserSettings(learning_rate=0.01),
        training=TrainingSettings(workers=1, log_every_steps=100),
    )
    one = train(LocalWorld(), settings, layout, columns)
    results = in_threads(2, lambda world: train(world, settings, layout, columns))
    for name, tensor in one[0].items():
        assert torch.equal(results[0][0][name], results[1][0][name]), name
        torch.testing.assert_close(results[0][0][name], tensor, atol=2e-5, rtol=1e-4, msg=name)
    assert results[0][1] == results[1][1]
    assert results[0][2] == pytest.approx(one[2], rel=1e-5)
    if balance in ("uncertainty", "dwa", "gradnorm"):
        assert results[0][1] == pytest.approx(one[1], rel=1e-4)
        assert one[1] != (1.0, 1.0), "the balance never moved: nothing was tested"
    if model == "aitm":
        loss = settings.loss.model_copy(update={"calibrator_weight": 0.0})
        without = settings.model_copy(update={"loss": loss})
        uncalibrated = train(LocalWorld(), without, layout, columns)
        assert one[2] != pytest.approx(uncalibrated[2], rel=1e-5), "the calibrator never spoke"
    if model == "star":
        assert (one[0]["norm.steps"] > 0).all()
        assert not torch.equal(one[0]["norm.mean"], torch.zeros_like(one[0]["norm.mean"]))
