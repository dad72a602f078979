"""A run that is ended after any step and gone on with: to the bit the one that was never ended; how it is saved.

Each kind of run is ended at three random steps; `HINET_ENDS=20` ends it at as many as that.
"""

from __future__ import annotations

import os
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from thread_world import in_threads

from hinet_model.config import CheckpointSettings, LossSettings, OptimiserSettings
from hinet_model.data.batch import Batch
from hinet_model.training import checkpoint
from hinet_model.training.callbacks import Callback
from hinet_model.training.checkpoint import name_of
from hinet_model.training.control.reports import ReportList
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.dist.world import LocalWorld
from hinet_model.training.job import TrainingJob
from hinet_model.training.recording import best_weights
from hinet_model.training.run import Run
from hinet_model.training.statistics import StepMeasures
from hinet_model.training.worker import train

Jobs = Callable[..., TrainingJob]
EPOCHS, STEPS_PER_EPOCH = 3, 16
ENDS = int(os.environ.get("HINET_ENDS", "3"))
CLOCK = ("seconds", "wait_seconds", "rows_per_second", "data_wait_share")

KINDS: dict[str, dict[str, Any]] = {
    "one worker": {},
    "two workers": {"workers": 2},
    "sharded table": {"workers": 2, "table": "sharded"},
    "averaged weights": {"workers": 2, "average_epochs": 2},
    "gradnorm": {"workers": 2, "balance": "gradnorm"},
}


class EndedError(Exception):
    """Stands for whatever ends a process."""


class EndAt(Callback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
        if run.state.global_step == self._step:
            raise EndedError


def job_of(
    small_job: Jobs,
    name: str,
    balance: str = "none",
    model: dict[str, Any] | None = None,
    resume: bool = False,
    saved: dict[str, Any] | None = None,
    **training: Any,
) -> TrainingJob:
    """A job of three epochs with decay that rows owe, a falling rate and a checkpoint every three steps.

    With dropout where it is one worker's: threads draw from one generator, in whatever order.
    """
    shape = {"epochs": EPOCHS, "batch_size": 128, **training}
    dropout = 0.2 if shape.get("workers", 1) == 1 else 0.0
    job = small_job({"dropout": dropout, **(model or {})}, name=name, resume=resume, **shape)
    settings = job.settings.model_copy(
        update={
            "optimiser": OptimiserSettings(learning_rate=0.02, table_weight_decay=0.05, schedule="cosine"),
            "loss": LossSettings.model_validate({"balance": balance, "balance_rate": 0.1}),
            "checkpoint": CheckpointSettings(**{"every_steps": 3, **(saved or {})}),
        }
    )
    return replace(job, settings=settings)


def run(job: TrainingJob, *callbacks: Callback) -> list[dict[str, Any]]:
    """Train on as many threads as the job has workers; rank 0's reports."""
    reporters = [ReportList() for _ in range(job.settings.training.workers)]

    def work(world: LocalWorld) -> None:
        train(job, world, reporters[world.rank], Progress(), callbacks)

    try:
        in_threads(len(reporters), work)
    finally:
        # A process takes its threads along; here what is being written comes to its end.
        for thread in threading.enumerate():
            if thread.name == "checkpoint":
                thread.join()
    return reporters[0].reports


def whole_state(job: TrainingJob) -> dict[str, Any]:
    """Every tensor and number of the newest checkpoint by its path, but for what a clock said."""
    newest = checkpoint.latest(job.checkpoint_folder)
    assert newest is not None
    state, position = checkpoint.read(newest)

    def flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, part in value.items():
                if key not in CLOCK:
                    yield from flat(part, f"{path}/{key}")
        elif isinstance(value, list):
            for place, part in enumerate(value):
                yield from flat(part, f"{path}/{place}")
        else:
            yield path, value

    return dict(flat({"state": state, "position": vars(position) | {"best": str(position.best)}}, ""))


@pytest.mark.parametrize("kind", KINDS)
def test_ended_at_random_steps_and_gone_on_with_it_is_the_undisturbed_run_to_the_bit(
    kind: str, small_job: Jobs
) -> None:
    straight = job_of(small_job, "straight", **KINDS[kind])
    run(straight)
    expected = whole_state(straight)
    assert expected["/position/global_step"] == EPOCHS * STEPS_PER_EPOCH
    # At the sixth step the checkpoint after the third is whole.
    steps = sorted(random.Random(kind).sample(range(7, EPOCHS * STEPS_PER_EPOCH), ENDS))
    for place, step in enumerate(steps):
        with pytest.raises(EndedError):
            run(job_of(small_job, "broken", resume=place > 0, **KINDS[kind]), EndAt(step))
    rest = job_of(small_job, "broken", resume=True, **KINDS[kind])
    run(rest)
    found = whole_state(rest)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        same = torch.equal(found[path], value) if isinstance(value, torch.Tensor) else found[path] == value
        assert same, path
    ours, theirs = (best_weights(job.checkpoint_folder)[0] for job in (rest, straight))
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


@pytest.mark.parametrize(("workers", "table"), [(1, "replicated"), (4, "sharded"), (4, "replicated")])
def test_ended_in_the_midst_of_an_epoch_it_goes_on_on_other_workers(
    workers: int, table: str, small_job: Jobs
) -> None:
    torch.set_default_dtype(torch.float64)  # or a ReLU on its edge may turn: see test_world_sizes.py
    try:
        kind: dict[str, Any] = {"average_epochs": 2, "model": {"dropout": 0.0}}
        straight = job_of(small_job, "straight", **kind)
        run(straight)
        with pytest.raises(EndedError):
            run(job_of(small_job, "broken", workers=2, table="sharded", **kind), EndAt(29))
        rest = job_of(small_job, "broken", workers=workers, table=table, resume=True, **kind)
        run(rest)
        found, expected = whole_state(rest), whole_state(straight)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[path], value, rtol=0, atol=1e-4, msg=path)


def test_a_damaged_newest_checkpoint_within_an_epoch_is_named_and_the_one_before_gone_on_from(
    small_job: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    kind = {**KINDS["sharded table"], "saved": {"background": False}}
    straight = job_of(small_job, "straight", **kind)
    run(straight)
    with pytest.raises(EndedError):
        run(job_of(small_job, "broken", **kind), EndAt(14))
    rest = job_of(small_job, "broken", resume=True, **kind)
    newest = Path(rest.checkpoint_folder) / name_of(12)
    file = newest / "rows-00001-of-00002.pt"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    run(rest)
    assert f"{newest}: rows-00001-of-00002.pt is not what its manifest says" in caplog.text
    found, expected = whole_state(rest), whole_state(straight)
    same = [path for path, value in expected.items() if isinstance(value, torch.Tensor)]
    assert all(torch.equal(found[path], expected[path]) for path in same)


def test_weights_are_exported_without_the_decay_that_their_rows_owe(small_job: Jobs) -> None:
    shape = {"max_steps": 21, "epochs": 2, "validate_every_epochs": 2}
    job = job_of(small_job, "short", **shape)
    table: list[torch.Tensor] = []

    class Last(Callback):
        def on_stop(self, run: Run) -> None:
            run.parts.optimisers.flush_decay()
            table.append(run.parts.model.embedding.weight.detach().clone())

    run(job, Last())
    saved = whole_state(job)["/state/model/embedding.weight"]
    assert not torch.equal(saved, table[0]), "no row owed anything"
    assert torch.equal(best_weights(job.checkpoint_folder)[0]["embedding.weight"], table[0])


def test_training_goes_on_while_a_checkpoint_is_written_and_the_next_one_waits(
    small_job: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, at_five = [], threading.Event()
    finish = checkpoint.finish

    def slowly(*arguments: Any) -> str:
        seen.append("begins")
        assert at_five.wait(60), "training stands still"
        written = finish(*arguments)
        seen.append("ends")
        return written

    class AtFive(Callback):
        def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
            if run.state.global_step == 5:
                while not seen:
                    time.sleep(0.01)
                assert seen == ["begins"]
                at_five.set()

    monkeypatch.setattr(checkpoint, "finish", slowly)
    reports = run(job_of(small_job, "run", epochs=1), AtFive())
    assert seen == ["begins", "ends"] * (len(seen) // 2)
    told = [report for report in reports if report["kind"] == "checkpoint"]
    assert [report["global_step"] for report in told] == [3, 6, 9, 12, 15, 16]
    assert all(0 < report["pause_seconds"] <= report["seconds"] for report in told)


def test_what_the_disk_refuses_ends_the_run_with_its_words_and_leaves_the_checkpoint_before(
    small_job: Jobs,
) -> None:
    job = job_of(small_job, "run", epochs=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Refuse(Callback):
        def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
            if run.state.global_step == 5:
                while checkpoint.latest(job.checkpoint_folder) is None:
                    time.sleep(0.01)
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))

    try:
        with pytest.raises(OSError, match="File too large"):
            run(job, Refuse())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoint.latest(job.checkpoint_folder) == f"{job.checkpoint_folder}/{name_of(3)}"


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("table", ["replicated", "sharded"])
def test_minutes_are_counted_by_one_clock_for_all_workers(
    table: str, background: bool, small_job: Jobs
) -> None:
    saved = {"every_steps": None, "every_minutes": 1e-6, "background": background}
    job = job_of(small_job, "run", epochs=1, workers=2, table=table, saved=saved)
    reports = run(job)
    told = [report["global_step"] for report in reports if report["kind"] == "checkpoint"]
    # A step takes the wish to the others: the first checkpoint is that after the second step.
    assert told == list(range(2, STEPS_PER_EPOCH + 1)) if not background else told[0] == 2
    assert told[-1] == STEPS_PER_EPOCH
    names = sorted(path.name for path in Path(job.checkpoint_folder).glob("step-*"))
    assert names == [name_of(step) for step in told[-2:]], "two are kept"
