"""Whole runs with a sharded table: those of a replicated one, and their checkpoints go on as either."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from pyspark.sql import SparkSession
from thread_world import in_threads

from hinet_model.config import OptimiserSettings
from hinet_model.data.batch import Batch
from hinet_model.nn.row_shard import RowShard
from hinet_model.training import checkpoint, worker
from hinet_model.training.callbacks import Callback
from hinet_model.training.checkpoint_files import CheckpointError
from hinet_model.training.control import launch
from hinet_model.training.control.monitor import TrainingError
from hinet_model.training.control.reports import ReportList
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.dist.world import LocalWorld, World
from hinet_model.training.job import TrainingJob
from hinet_model.training.run import Run
from hinet_model.training.state import weights_digest
from hinet_model.training.statistics import StepMeasures

# The workers' processes cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

Jobs = Callable[..., TrainingJob]
NUM_EMBEDDINGS = 505


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    """Sums in another order must not turn a ReLU on that is off elsewhere: see test_world_sizes.py."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def job(small_job: Jobs) -> Jobs:
    """Makes a job of three epochs, the weights averaged over the last two, whose rows owe decay."""

    def make(name: str, workers: int = 1, table: str = "sharded", resume: bool = False) -> TrainingJob:
        shape = {"workers": workers, "table": table, "epochs": 3, "average_epochs": 2}
        made = small_job(name=name, resume=resume, **shape)
        optimiser = OptimiserSettings(learning_rate=0.02, table_weight_decay=0.05, table_l2=1e-4)
        return replace(made, settings=made.settings.model_copy(update={"optimiser": optimiser}))

    return make


def run(job: TrainingJob, world: World) -> dict[str, Any]:
    return worker.train(job, world, ReportList(), Progress())


def run_until(job: TrainingJob, world: World, epochs: int) -> dict[str, Any]:
    """As if the run had been ended after so many epochs."""

    class EndedError(Exception):
        pass

    class End(Callback):
        def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
            if run.state.global_step == 8 * epochs + 1:
                raise EndedError

    try:
        worker.train(job, world, ReportList(), Progress(), [End()])
    except EndedError:
        return {}
    raise AssertionError("the run came to its end")


def newest(job: TrainingJob) -> Path:
    found = checkpoint.latest(job.checkpoint_folder)
    assert found is not None
    return Path(found)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every tensor and number of a state, by its path."""
    if isinstance(value, dict):
        return {p: leaf for key, part in value.items() for p, leaf in flat(part, f"{path}/{key}").items()}
    return {path: value}


def assert_same_checkpoints(one: Path, other: Path) -> None:
    """Weights, both optimisers' states and the mean of the weights, each whole, are equal."""
    (ours, here), (theirs, there) = checkpoint.read(one), checkpoint.read(other)
    assert (here.epoch, here.global_step) == (there.epoch, there.global_step)
    found, expected = flat(ours), flat(theirs)
    assert found.keys() == expected.keys()
    assert {"/optimisers/table/mean", "/optimisers/table/log_applied"} <= found.keys()
    assert {"/model/embedding.weight", "/average/mean/embedding.weight"} <= found.keys()
    for path, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[path], value, rtol=0, atol=1e-5, msg=path)
    history, same = (position.history for position in (here, there))
    assert [entry["mean_auc"] for entry in history] == pytest.approx([entry["mean_auc"] for entry in same])


def copied(job: TrainingJob, name: str) -> None:
    """The run's checkpoints under another run's name."""
    folder = Path(job.checkpoint_folder)
    shutil.copytree(folder, folder.with_name(name))


def test_a_checkpoint_goes_on_on_any_number_of_workers_sharded_or_replicated(job: Jobs) -> None:
    straight, broken = job("straight", table="replicated"), job("broken", workers=2)
    run(straight, LocalWorld())
    # Two epochs of three: the mean of the weights has begun.
    in_threads(2, lambda world: run_until(broken, world, epochs=2))
    whole = checkpoint.read(newest(broken))[0]
    assert whole["model"]["embedding.weight"].shape[0] == NUM_EMBEDDINGS
    assert sorted(path.name for path in newest(broken).glob("rows-*")) == [
        "rows-00000-of-00002.pt",
        "rows-00001-of-00002.pt",
    ]
    for name, workers, table in (("one", 1, "sharded"), ("four", 4, "sharded"), ("whole", 1, "replicated")):
        copied(broken, name)
        rest = job(name, workers=workers, table=table, resume=True)
        in_threads(workers, lambda world, rest=rest: run(rest, world))  # type: ignore[misc]
        assert_same_checkpoints(newest(rest), newest(straight))


def test_the_digest_that_workers_compare_leaves_out_the_shard_alone() -> None:
    first, second = (torch.nn.Linear(2, 2) for _ in range(2))
    second.load_state_dict(first.state_dict())
    second.weight.data += 1
    without = frozenset({"weight"})
    assert weights_digest(first) != weights_digest(second)
    assert weights_digest(first, without) == weights_digest(second, without)
    second.bias.data += 1
    assert weights_digest(first, without) != weights_digest(second, without)


def test_a_replicated_checkpoint_goes_on_sharded(job: Jobs) -> None:
    straight, broken = job("straight", table="replicated"), job("broken", table="replicated")
    run(straight, LocalWorld())
    run_until(broken, LocalWorld(), epochs=2)
    rest = job("broken", workers=2, resume=True)
    in_threads(2, lambda world: run(rest, world))
    assert_same_checkpoints(newest(rest), newest(straight))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A checkpoint in three shards of a table of seven rows."""
    table = torch.arange(14.0).view(7, 2)
    position = checkpoint.Position(epoch=1, step=0, global_step=5, identity={})
    partial = checkpoint.begin(tmp_path, 5)
    rows: dict[str, Any] = {}
    for place in range(3):
        shard = RowShard(place, 3)
        own = {"model/w": shard.of(table).clone(), "total": shard.of(table)[:, 0].clone()}
        rows |= checkpoint.write_rows(partial, own, shard, num_rows=7)
    return Path(checkpoint.finish(partial, {"model": {"b": torch.ones(1)}}, position, rows))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_shards_are_dealt_anew_to_any_number(written: Path, count: int) -> None:
    table = torch.arange(14.0).view(7, 2)
    for place in range(count):
        shard = RowShard(place, count)
        state, rows, position = checkpoint.read_shard(written, shard)
        assert torch.equal(rows["model/w"], shard.of(table))
        assert torch.equal(rows["total"], shard.of(table)[:, 0])
        assert list(state["model"]) == ["b"]
        assert position.global_step == 5
    assert torch.equal(checkpoint.read(written)[0]["model"]["w"], table)


def test_a_damaged_a_missing_and_a_foreign_shard_are_named(written: Path) -> None:
    file = written / "rows-00001-of-00003.pt"
    content = file.read_bytes()
    file.write_bytes(content[:-200] + bytes([content[-200] ^ 1]) + content[-199:])
    with pytest.raises(CheckpointError, match=r"rows-00001-of-00003\.pt is not what its manifest says"):
        checkpoint.read(written)
    file.unlink()
    assert checkpoint.latest(written.parent) is None
    with pytest.raises(CheckpointError, match=r"rows-00001-of-00003\.pt is missing"):
        checkpoint.read_shard(written, RowShard(0, 2))
    # A manifest that does not know the shard either.
    manifest = json.loads((written / "manifest.json").read_text())
    del manifest[file.name]
    (written / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"expected shard 0 of 2"):
        checkpoint.read(written)


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    rows = checkpoint.write_rows(checkpoint.begin(tmp_path / "elsewhere", 5), {}, RowShard(1, 2), 7)
    position = checkpoint.Position(epoch=1, step=0, global_step=5, identity={})
    with pytest.raises(CheckpointError, match=r"rows-00001-of-00002\.pt .* expected storage that all share"):
        checkpoint.finish(checkpoint.begin(tmp_path, 5), {}, position, rows)
    assert checkpoint.latest(tmp_path) is None


def is_killed_in_the_third_epoch(job: TrainingJob) -> dict[str, Any]:
    """What a real worker runs: it writes down every step, and the last rank is killed after its nineteenth."""
    torch.set_default_dtype(torch.float64)
    notes = Path(job.log_folder) / f"notes-{os.environ['HOROVOD_RANK']}.txt"

    class WriteDown(Callback):
        def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
            parts, step = run.parts, run.state.global_step
            if step == 1:
                meet_odd_exchanges(run.world)
            state = parts.optimisers.table.state_dict().values()
            held = {len(rows) for rows in (parts.model.embedding.weight, *state) if torch.is_tensor(rows)}
            dense = weights_digest(parts.model, {"embedding.weight"})
            with notes.open("a") as file:
                file.write(json.dumps({"loss": measures.loss, "held": sorted(held), "dense": dense}) + "\n")
            if step == 19 and run.world.rank == run.world.size - 1:
                os.kill(os.getpid(), signal.SIGKILL)

    return worker.main(job, [WriteDown()])


def meet_odd_exchanges(world: World) -> None:
    """Rows of which rank r sends r to everybody, none to anybody, and many."""
    for times in (1, 0, 1000):
        counts = [times * world.rank] * world.size
        rows = torch.full((sum(counts), 3), float(world.rank))
        received, received_counts = world.exchange_rows(rows, counts, "odd")
        assert received_counts == [times * rank for rank in range(world.size)]
        expected = torch.repeat_interleave(torch.arange(float(world.size)), torch.tensor(received_counts))
        assert torch.equal(received, expected.unsqueeze(1).expand(-1, 3))


@pytest.mark.spark
@pytest.mark.distributed
@pytest.mark.slow
# Horovod's own thread dies of the Spark job that a failing worker takes along.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_two_real_workers_train_what_one_process_trains_and_it_goes_on_when_they_are_killed(
    spark: SparkSession, job: Jobs
) -> None:
    straight, broken = job("straight", table="replicated"), job("broken", workers=2)
    losses: list[float] = []

    class Losses(Callback):
        def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
            losses.append(measures.loss)

    worker.train(straight, LocalWorld(), ReportList(), Progress(), [Losses()])
    with pytest.raises(
        TrainingError,
        match=r"^rank 1 of 2 ended without a word at epoch \d, step \d+ .*: killed",
    ):
        launch.run(spark, broken, lambda report: None, is_killed_in_the_third_epoch)
    ranks = []
    for rank, num_rows in enumerate((253, 252)):
        lines = (Path(broken.log_folder) / f"notes-{rank}.txt").read_text().splitlines()
        notes = [json.loads(line) for line in lines[:19]]
        np.testing.assert_allclose([note["loss"] for note in notes], losses[:19], rtol=0, atol=1e-5)
        assert [note["held"] for note in notes] == [[num_rows]] * 19
        ranks.append([note["dense"] for note in notes])
    assert ranks[0] == ranks[1]
    assert_same_checkpoints(newest(broken), Path(straight.checkpoint_folder) / "step-000000016")
    rest = job("broken", resume=True)
    run(rest, LocalWorld())
    assert_same_checkpoints(newest(rest), newest(straight))
