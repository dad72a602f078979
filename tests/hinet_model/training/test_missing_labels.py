"""Labels that are missing and rows with weights, in training: every scheme passes over them, whatever the workers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_two_workers import ROWS, STEPS, train
from thread_world import in_threads

from feature_eng.snapshot import CellCount, SnapshotRef
from hinet_model.config import LossSettings, OptimiserSettings, TrainingSettings
from hinet_model.data.batch import Batch, BatchLayout
from hinet_model.models.registry import read_settings
from hinet_model.objective.balance import DynamicWeightAverage, GradNorm, Uncertainty
from hinet_model.objective.cell_statistics import SplitStatistics
from hinet_model.settings import RunSettings
from hinet_model.training.assemble import DataShape, build_loss
from hinet_model.training.dist.world import LocalWorld
from hinet_model.training.job import TrainingJob
from hinet_model.training.statistics import StepStatistics, Wishes

BALANCES = ["none", "uncertainty", "dwa", "gradnorm", "pcgrad"]


def settings_of(scheme: str, balance: str) -> RunSettings:
    fixed = {"scenario_weights": {"home": 1, "search": 2, "channel": 3}} if scheme == "fixed" else {}
    return RunSettings(
        model=read_settings(
            {"name": "shared_bottom", "embedding_dim": 8, "expert_dims": [8], "tower_dims": [4]}
        ),
        loss=LossSettings.model_validate(
            {"scheme": scheme, "balance": balance, "calibrator_weight": 0.3, **fixed}
        ),
        optimiser=OptimiserSettings(learning_rate=0.01),
        training=TrainingSettings(workers=1, log_every_steps=100),
    )


@pytest.fixture
def data(
    small_job: Callable[..., TrainingJob], small_snapshot: SnapshotRef
) -> tuple[BatchLayout, dict[str, np.ndarray]]:
    """Rows with weights, some 0; `like` has no label in the first step, none in one scenario, and misses some."""
    layout = BatchLayout.from_schema({**small_job().schema, "row_weights": True})
    table = pq.read_table(small_snapshot.files_of("train")[0].path)
    columns = {name: table[name].to_numpy()[: STEPS * ROWS].copy() for name in table.column_names}
    random = np.random.default_rng(2)
    columns["row_weight"] = (random.integers(0, 4, STEPS * ROWS) / 2).astype(np.float32)
    like = columns["label__like"]
    like[:ROWS] = -1
    like[columns["scenario_index"] == 1] = -1
    like[random.random(len(like)) < 0.3] = -1
    columns["label__click"][random.random(len(like)) < 0.1] = -1
    return layout, columns


@pytest.mark.parametrize(
    ("scheme", "balance"),
    [
        *(("proportion", balance) for balance in BALANCES),
        ("uniform", "none"),
        ("sqrt", "none"),
        ("fixed", "none"),
    ],
)
def test_two_workers_have_the_weights_of_one_where_labels_are_missing(
    scheme: str, balance: str, data: tuple[BatchLayout, dict[str, np.ndarray]]
) -> None:
    settings = settings_of(scheme, balance)
    one = train(LocalWorld(), settings, *data)
    results = in_threads(2, lambda world: train(world, settings, *data))
    assert all(math.isfinite(loss) for loss in one[2])
    for name, tensor in one[0].items():
        assert torch.isfinite(tensor).all(), name
        torch.testing.assert_close(results[0][0][name], tensor, atol=2e-5, rtol=1e-4, msg=name)
    assert results[0][2] == pytest.approx(one[2], rel=1e-5)
    if balance in ("uncertainty", "dwa", "gradnorm"):
        assert results[0][1] == pytest.approx(one[1], rel=1e-4)
        assert one[1] != (1.0, 1.0), "the balance never moved: nothing was tested"


@pytest.mark.parametrize("balance", BALANCES)
def test_what_stands_in_a_row_without_label_changes_nothing(
    balance: str, data: tuple[BatchLayout, dict[str, np.ndarray]]
) -> None:
    """A row that misses all labels, or weighs 0, might as well hold other features."""
    layout, columns = data
    silent = (columns["row_weight"] == 0) | ((columns["label__like"] < 0) & (columns["label__click"] < 0))
    other = {**columns, "year": np.where(silent, 9, columns["year"]).astype(np.float32)}
    settings = settings_of("uniform", balance)
    first, second = (train(LocalWorld(), settings, layout, given) for given in (columns, other))
    assert silent.any()
    assert first[1] == second[1]
    assert first[2] == pytest.approx(second[2], rel=1e-6)
    for name, tensor in first[0].items():
        torch.testing.assert_close(second[0][name], tensor, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("balance", BALANCES)
def test_a_task_without_any_label_leaves_its_tower_and_its_weight_where_they_began(
    balance: str, data: tuple[BatchLayout, dict[str, np.ndarray]]
) -> None:
    layout, columns = data
    columns = {**columns, "label__like": np.full_like(columns["label__like"], -1)}
    state, factors, losses = train(LocalWorld(), settings_of("proportion", balance), layout, columns)
    assert all(loss > 0 for loss in losses)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert factors is None or factors[1] == 1.0


def losses(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_schemes_pass_over_a_step_without_labels() -> None:
    uncertainty = Uncertainty(2, rate=0.1)
    uncertainty.after_step(losses(0.7, 0.0))
    assert uncertainty.log_variances == pytest.approx([0.02, 0.0])
    average = DynamicWeightAverage(2, temperature=2.0)
    for step in [(0.8, 0.4), (0.6, 0.0)]:
        average.after_step(losses(*step))
    average.after_epoch()
    assert average.epochs == [pytest.approx([0.7, 0.4])]
    norm = GradNorm(2, rate=0.1, alpha=1.0)
    gradients = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    norm.combine(gradients, losses(0.6, 0.0), step=0)
    assert norm.factors == pytest.approx((1.0, 1.0))
    assert norm.first == [0.6, 0.0]
    norm.combine(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), losses(0.6, 0.4), step=1)
    assert norm.first == [0.6, 0.4]
    # Norms 5 and 1, progress 1 and 1: target 3 for both.
    assert norm.factors == pytest.approx((2 * 0.5 / 1.6, 2 * 1.1 / 1.6))


def test_means_of_cells_are_of_the_labels_that_are_there_by_their_weights(
    data: tuple[BatchLayout, dict[str, np.ndarray]],
) -> None:
    layout, columns = data
    batch: Batch = layout.to_batch(columns)[0]
    statistics = StepStatistics(3, 2)
    vector = torch.zeros(statistics.size)
    loss = build_loss(settings_of("uniform", "none"), DataShape(layout, (50, 30, 20), 1))
    logits = torch.zeros(batch.num_rows, 2)
    value, cells = loss(logits, batch)
    statistics.write(vector, batch, value, cells, Wishes())
    means = statistics.cell_means(vector.double())
    assert means[0] == pytest.approx([math.log(2)] * 2)
    assert math.isnan(means[1, 1])
    assert statistics.label_sums(vector)[1, 1] == 0
    weight, label, scenario = (columns[name] for name in ("row_weight", "label__like", "scenario_index"))
    assert statistics.label_sums(vector)[0, 1].item() == weight[(label >= 0) & (scenario == 0)].sum()


def test_validation_judges_a_cell_by_the_rows_that_have_a_label() -> None:
    statistics = SplitStatistics(2, 2)
    scenario = np.array([0, 0, 0, 1])
    labels = np.array([[1, -1], [0, 1], [-1, 0], [1, -1]], dtype=np.float32)
    probs = np.array([[0.9, 0.9], [0.2, 0.7], [0.99, 0.4], [0.6, 0.1]], dtype=np.float32)
    statistics.add(scenario, labels, probs)
    cells = [
        cell.metrics(place, task)
        for place in (0, 1)
        for task, cell in enumerate(statistics.of_scenario(place))
    ]
    assert [(cell.rows, cell.positives, cell.auc) for cell in cells] == [
        (2, 1, 1.0),
        (2, 1, 1.0),
        (1, 1, None),
        (0, 0, None),
    ]
    assert cells[0].log_loss == pytest.approx(-(math.log(0.9) + math.log(0.8)) / 2)
    assert cells[3].log_loss is None


def test_a_run_takes_proportions_from_the_rows_before_sampling(small_job: Callable[..., TrainingJob]) -> None:
    job = small_job()
    rows = job.snapshot.scenario_rows["train"]
    cells = [
        CellCount(name, split, count, (count,) * 2, (1, 1), weight=float(count), trained_weight=float(count))
        for name, count in zip(job.schema["scenario_names"], rows, strict=True)
        for split in ("train", "unsampled")
        if split == "train" or name == "home"
    ]
    snapshot = replace(job.snapshot, cells=tuple(cells))
    assert SnapshotRef.from_json(snapshot.to_json()) == snapshot
    assert snapshot.trained_weights() == rows
    assert snapshot.whole_weights() == (2 * rows[0], rows[1], rows[2])
    layout = BatchLayout.from_schema(job.schema)
    data = DataShape(layout, rows, 1, snapshot.whole_weights(), snapshot.trained_weights())
    weight = build_loss(settings_of("proportion", "none"), data).weight_MN[:, 0]
    # Half of the rows of home are left: each weighs twice what one of the others does.
    assert (weight[0] / weight[1]).item() == pytest.approx(2)
    assert (weight * torch.tensor(rows)).sum().item() == pytest.approx(sum(rows))
