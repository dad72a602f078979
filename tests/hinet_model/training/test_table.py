"""A sharded table: rows come, gradients go home, and every number is that of the replicated table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_two_workers import ROWS, STEPS, part
from thread_world import ThreadWorld, in_threads
from torch import Tensor

from feature_eng.snapshot import SnapshotRef
from foundation.settings import ConfigError, validate
from hinet_model.config import LossSettings, OptimiserSettings, TrainingSettings
from hinet_model.data.batch import BatchLayout
from hinet_model.models.model import table_name
from hinet_model.models.registry import read_settings
from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.nn.row_shard import RowShard
from hinet_model.settings import RunSettings
from hinet_model.training.assemble import DataShape, build_parts
from hinet_model.training.control.reports import ReportList
from hinet_model.training.control.watchdog import COLLECTIVE_PHASES, Progress
from hinet_model.training.dist.dense_exchange import merge_rows
from hinet_model.training.dist.table_exchange import ShardedTable
from hinet_model.training.dist.world import LocalWorld, World
from hinet_model.training.job import TrainingJob
from hinet_model.training.loop import StepOptions, Trainer
from hinet_model.training.table_optimisers import build_table_optimiser

NUM_ROWS, DIM = 23, 4
# Ids that ranks share, a rank without any, ids of one owner alone, and of three ranks the last owns none (id % 3 == 2).
BATCHES = [
    [[0, 1, 3, 7, 22], [], [1, 3, 4]],
    [[9], [0, 9, 12], [9, 12]],
    [[], [], []],
    [[1, 4], [4, 7, 10, 13], [0, 1, 4, 21]],
]


def initial_table() -> Tensor:
    return torch.randn(NUM_ROWS, DIM, generator=torch.Generator().manual_seed(0))


def gradients_of(step: int, rank: int, ids: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(len(ids), DIM, generator=generator)


def sharded_table(world: World, settings: OptimiserSettings) -> tuple[ShardedTable, Any, FusedEmbedding]:
    shard = RowShard(world.rank, world.size)
    embedding = FusedEmbedding(NUM_ROWS, DIM, [(0, 1)], [False], 0, 0.01, shard=shard)
    embedding.weight.data.copy_(shard.of(initial_table()))
    optimiser = build_table_optimiser(settings, embedding.weight)
    return ShardedTable(embedding, optimiser, world, Progress()), optimiser, embedding


def assembled(shards: list[Tensor]) -> Tensor:
    whole = shards[0].new_full((sum(len(rows) for rows in shards), *shards[0].shape[1:]), torch.nan)
    for place, rows in enumerate(shards):
        RowShard(place, len(shards)).of(whole).copy_(rows)
    return whole


@pytest.mark.parametrize("size", [1, 3])
def test_rows_and_gradients_are_those_of_plain_indexing(size: int) -> None:
    table = initial_table()

    def work(world: ThreadWorld) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        sharded, _, _ = sharded_table(world, OptimiserSettings())
        found = []
        for step, batch in enumerate(BATCHES):
            ids = torch.tensor(batch[world.rank], dtype=torch.int64)
            leaf = sharded.fetch(ids)
            assert leaf.is_leaf
            assert leaf.requires_grad
            positions, sums = sharded.collect(ids, gradients_of(step, world.rank, batch[world.rank]))
            found.append((leaf.detach(), sharded.look_up(ids), positions, sums))
        return found

    results = in_threads(size, work)
    for step, batch in enumerate(BATCHES):
        expected, touched = torch.zeros(NUM_ROWS, DIM), set()
        for rank in range(size):
            expected.index_add_(
                0, torch.tensor(batch[rank], dtype=torch.int64), gradients_of(step, rank, batch[rank])
            )
            touched |= set(batch[rank])
        for rank in range(size):
            fetched, looked_up, positions, sums = results[rank][step]
            assert torch.equal(fetched, table[batch[rank]])
            assert torch.equal(looked_up, table[batch[rank]])
            own = positions * size + rank
            assert own.tolist() == sorted(row for row in touched if row % size == rank)
            assert torch.equal(sums, expected[own])


def test_a_worker_that_waits_for_rows_is_known_to_wait_for_its_peers() -> None:
    progress, phases = Progress(), []

    class Watched(LocalWorld):
        def exchange_rows(self, rows: Tensor, counts: Sequence[int], name: str) -> tuple[Tensor, list[int]]:
            phases.append((name, progress.phase))
            return super().exchange_rows(rows, counts, name)

    embedding = FusedEmbedding(NUM_ROWS, DIM, [(0, 1)], [False], 0, 0.01)
    optimiser = build_table_optimiser(OptimiserSettings(), embedding.weight)
    table = ShardedTable(embedding, optimiser, Watched(), progress)
    progress.enter("compute")
    table.collect(torch.tensor([3]), table.fetch(torch.tensor([3])).detach())
    assert phases == [(name, "exchange") for name in ("table.ids", "table.rows", "table.gradients")]
    assert progress.phase == "compute"
    assert "exchange" in COLLECTIVE_PHASES


OPTIMISERS = pytest.mark.parametrize(
    "settings",
    [
        {"table": "adam", "table_l2": 0.01, "table_weight_decay": 0.1},
        {"table": "adagrad", "table_l2": 0.01, "table_weight_decay": 0.1},
        {"table": "dense_adam", "table_l2": 0.01},
    ],
    ids=["adam", "adagrad", "dense_adam"],
)


@OPTIMISERS
def test_owners_step_to_the_bit_as_a_whole_table_would(settings: dict[str, Any]) -> None:
    chosen = OptimiserSettings.model_validate({"learning_rate": 0.05, **settings})
    rates = [0.05, 0.04, 0.02, 0.01]

    def work(world: ThreadWorld) -> tuple[list[Tensor], Tensor, dict[str, Any]]:
        sharded, optimiser, embedding = sharded_table(world, chosen)
        fetched = []
        for step, batch in enumerate(BATCHES * 2):
            ids = torch.tensor(batch[world.rank], dtype=torch.int64)
            fetched.append(sharded.fetch(ids).detach())
            optimiser.learning_rate = rates[step % 4]
            rows = sharded.collect(ids, gradients_of(step, world.rank, batch[world.rank]))
            optimiser.step(*rows, step + 1)
        optimiser.decay.flush()
        return fetched, embedding.weight.detach(), optimiser.state_dict()

    results = in_threads(3, work)
    table = initial_table()
    optimiser = build_table_optimiser(chosen, table)
    for step, batch in enumerate(BATCHES * 2):
        for rank, ids in enumerate(batch):
            optimiser.decay.apply_pending(torch.tensor(ids, dtype=torch.int64))
            assert torch.equal(results[rank][0][step], table[ids])
        optimiser.learning_rate = rates[step % 4]
        everyone = torch.tensor([row for ids in batch for row in ids], dtype=torch.int64)
        gradients = torch.cat([gradients_of(step, rank, ids) for rank, ids in enumerate(batch)])
        optimiser.step(*merge_rows(everyone, gradients), step + 1)
    optimiser.decay.flush()
    assert torch.equal(assembled([weight for _, weight, _ in results]), table)
    for name, value in optimiser.state_dict().items():
        shards = [state[name] for _, _, state in results]
        if isinstance(value, Tensor):
            assert torch.equal(assembled(shards), value), name
        else:
            assert shards == [value] * 3, name


@OPTIMISERS
def test_a_rank_may_own_no_row_at_all(settings: dict[str, Any]) -> None:
    def work(world: ThreadWorld) -> tuple[Tensor, Tensor]:
        embedding = FusedEmbedding(2, DIM, [(0, 1)], [False], 0, 0.01, shard=RowShard(world.rank, 3))
        embedding.reset_parameters(torch.Generator().manual_seed(0))
        optimiser = build_table_optimiser(OptimiserSettings.model_validate(settings), embedding.weight)
        table = ShardedTable(embedding, optimiser, world, Progress())
        ids = torch.tensor([0, 1])
        before = table.fetch(ids).detach()
        optimiser.step(*table.collect(ids, torch.ones(2, DIM)), 1)
        optimiser.decay.flush()
        return before, table.look_up(ids)

    results = in_threads(3, work)
    drawn = torch.empty(2, DIM).normal_(std=0.01, generator=torch.Generator().manual_seed(0))
    for before, after in results:
        assert torch.equal(before, drawn)
        assert torch.equal(after, results[0][1])
        assert (after < before).all()


def train_and_score(
    world: LocalWorld, settings: RunSettings, layout: BatchLayout, columns: dict[str, np.ndarray]
) -> tuple[dict[str, Tensor], list[float], np.ndarray]:
    """Weights, losses and scores after two epochs; the last batch scored is empty on rank 0."""
    sharded = settings.training.table == "sharded"
    parts = build_parts(settings, DataShape(layout, (50, 30, 20), 2 * STEPS), world, Progress())
    trainer = Trainer(parts, StepOptions(), ReportList(), Progress())
    losses: list[float] = []
    for epoch in range(2):
        batches = [part(columns, layout, step, world.rank, world.size) for step in range(STEPS)]
        losses += [trainer.step(batch, epoch * STEPS + step).loss for step, batch in enumerate(batches)]
        parts.balance.after_epoch()
    none = layout.to_batch({name: values[:0] for name, values in columns.items()}, global_rows=ROWS)[0]
    parts.optimisers.flush_decay()
    parts.model.eval()
    scored = [*batches[1:], none if world.rank == 0 else batches[0]]
    probs = world.gather(torch.cat([trainer.predict(batch) for batch in scored]), "probs").numpy()
    model = parts.model
    weights = dict(model.state_dict())
    if sharded:
        weights[table_name(model)] = assembled(world.gather_objects(weights[table_name(model)], "whole"))
    return weights, losses, probs


@pytest.mark.parametrize(
    ("model", "balance"),
    [
        ({}, "none"),
        ({}, "uncertainty"),
        ({}, "dwa"),
        ({"name": "star"}, "none"),
        ({"joint": "per_task"}, "none"),
        ({"joint": "per_scenario"}, "none"),
        ({"ctcvr": "product", "ctr_task": "click", "ctcvr_task": "like"}, "none"),
    ],
)
def test_two_workers_with_shards_are_two_with_replicas_to_the_bit(
    model: dict[str, Any],
    balance: str,
    small_job: Callable[..., TrainingJob],
    small_snapshot: SnapshotRef,
) -> None:
    layout = BatchLayout.from_schema(small_job().schema)
    table = pq.read_table(small_snapshot.files_of("train")[0].path)
    columns = {name: table[name].to_numpy()[: STEPS * ROWS] for name in table.column_names}

    def settings(kind: str) -> RunSettings:
        return RunSettings(
            model=read_settings({"embedding_dim": 8, "expert_dims": [8], "tower_dims": [4], **model}),
            loss=LossSettings.model_validate({"balance": balance, "task_weights": {"like": 0.5}}),
            optimiser=OptimiserSettings(learning_rate=0.01, table_weight_decay=0.1, schedule="cosine"),
            training=TrainingSettings.model_validate({"workers": 1, "log_every_steps": 100, "table": kind}),
        )

    replicated = in_threads(2, lambda world: train_and_score(world, settings("replicated"), layout, columns))
    sharded = in_threads(2, lambda world: train_and_score(world, settings("sharded"), layout, columns))
    for (weights, losses, probs), (expected, same_losses, same_probs) in zip(
        sharded, replicated, strict=True
    ):
        assert losses == same_losses
        np.testing.assert_array_equal(probs, same_probs)
        for name, tensor in expected.items():
            assert torch.equal(weights[name], tensor), name
    alone = train_and_score(LocalWorld(), settings("sharded"), layout, columns)
    expected, same_losses, same_probs = train_and_score(LocalWorld(), settings("replicated"), layout, columns)
    assert alone[1] == same_losses
    np.testing.assert_array_equal(alone[2], same_probs)
    assert all(torch.equal(alone[0][name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("balance", ["gradnorm", "pcgrad"])
def test_balances_that_need_the_whole_gradient_are_refused(balance: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"sharded cannot go with loss.balance: {balance}") as caught:
        validate(RunSettings, {"loss": {"balance": balance}, "training": {"table": "sharded"}}, "run.yml")
    assert len(caught.value.faults) == 1
