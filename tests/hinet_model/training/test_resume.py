"""A run that goes on: its curves, means, best model and identity are those of a run that never stopped."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from thread_world import in_threads

from foundation import stores
from hinet_model.config import LossSettings
from hinet_model.data.batch import Batch
from hinet_model.training import checkpoint, checkpoint_files, position
from hinet_model.training.callbacks import Callback
from hinet_model.training.checkpoint import OtherRunError, best_or_last, name_of
from hinet_model.training.checkpoint_files import CheckpointError
from hinet_model.training.control.reports import ReportList
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.dist.world import LocalWorld
from hinet_model.training.job import TrainingJob
from hinet_model.training.recording import RunRecorder, best_weights
from hinet_model.training.run import Run
from hinet_model.training.statistics import StepMeasures
from hinet_model.training.worker import train

Jobs = Callable[..., TrainingJob]
STEPS_PER_EPOCH = 8


def run(job: TrainingJob, *callbacks: Callback) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    reporter = ReportList()
    return train(job, LocalWorld(), reporter, Progress(), callbacks), reporter.reports


class StopAt(Callback):
    """The driver asks to stop after so many steps; the next one carries the wish to all workers."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
        if run.state.global_step >= self._step:
            assert isinstance(run.reporter, ReportList)
            run.reporter.stop_requested = True


def numbers(entry: dict[str, Any]) -> dict[str, Any]:
    """What an epoch measured, without the clock's share."""
    clock = ("seconds", "rows_per_second", "data_wait_share")
    return {name: value for name, value in entry.items() if name not in clock}


def test_a_mean_over_the_last_epochs_holds_no_epoch_of_a_shorter_run(small_job: Jobs) -> None:
    straight, _ = run(small_job(name="straight", epochs=7, average_epochs=2))
    run(small_job(name="broken", epochs=4, average_epochs=2))
    rest = small_job(name="broken", epochs=7, average_epochs=2, resume=True)
    resumed, _ = run(rest)
    # From the fifth epoch on both are validated alike: as they are, then as the mean of the last two.
    aucs, expected = ([entry["mean_auc"] for entry in result["history"]] for result in (resumed, straight))
    assert aucs[4:] == expected[4:]
    assert len(set(aucs[3:])) == 4, "one and the same mean was validated epoch after epoch"
    ours = checkpoint.read(Path(rest.checkpoint_folder) / name_of(7 * STEPS_PER_EPOCH))[0]["average"]
    assert (ours["count"], ours["first_epoch"]) == (2, 5)


def test_a_mean_that_has_begun_in_the_longer_run_too_is_gone_on_with(small_job: Jobs) -> None:
    straight, _ = run(small_job(name="straight", epochs=6, average_epochs=4))
    run(small_job(name="broken", epochs=4, average_epochs=2))
    rest, _ = run(small_job(name="broken", epochs=6, average_epochs=4, resume=True))
    assert [numbers(entry) for entry in rest["history"]][3:] == [
        numbers(entry) for entry in straight["history"]
    ][3:]


class Figures:
    """Keeps what a tracker would send."""

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        pass

    def log_points(self, points: Any) -> None:
        pass

    def log_figure(self, figure: Figure, artifact: str) -> None:
        self.figures[artifact] = figure


def curves(job: TrainingJob, reports: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Points of all curves that are drawn of a run's reports."""
    tracker: Any = Figures()
    names: Any = SimpleNamespace(scenario_names=("home", "search", "channel"), task_names=("click", "like"))
    recorder = RunRecorder(tracker, job.settings, names)
    for report in json.loads(json.dumps(reports)):
        recorder.record(report)
    recorder.log_figures()
    return {
        name: [line.get_xydata().tolist() for axes in figure.axes for line in axes.lines]
        for name, figure in tracker.figures.items()
    }


@pytest.mark.parametrize("stop_after", [STEPS_PER_EPOCH, STEPS_PER_EPOCH + 3])
def test_curves_history_and_train_loss_span_a_resume_in_the_midst_of_an_epoch_too(
    small_job: Jobs, stop_after: int
) -> None:
    straight = small_job({"dropout": 0.2}, name="straight", epochs=3)
    result, reports = run(straight)
    run(small_job({"dropout": 0.2}, name="broken", epochs=3), StopAt(stop_after - 1))
    rest = small_job({"dropout": 0.2}, name="broken", epochs=3, resume=True)
    resumed, later_reports = run(rest)
    assert [numbers(entry) for entry in resumed["history"]] == [numbers(entry) for entry in result["history"]]
    assert all(entry["seconds"] > 0 and entry["rows"] == 2003 for entry in resumed["history"])
    drawn, expected = curves(rest, later_reports), curves(straight, reports)
    assert drawn == expected
    assert [x for x, _ in drawn["figures/train_loss.png"][0]] == list(range(1, 3 * STEPS_PER_EPOCH + 1))


def test_a_run_whose_checkpoints_are_on_an_object_store_goes_on_to_the_same_weights(
    small_job: Jobs, object_store: str
) -> None:
    straight = small_job(name="straight", epochs=3)
    run(straight)
    folder = f"{object_store}/checkpoints"
    broken = replace(small_job(name="broken", epochs=2), checkpoint_folder=f"{folder}/run")
    run(broken)
    rest = replace(small_job(epochs=3, resume=True), checkpoint_folder=f"{folder}/run")
    run(rest)
    names = [stores.name_of(place) for place in checkpoint.newest_first(rest.checkpoint_folder)]
    assert names == [path.name for path in map(Path, checkpoint.newest_first(straight.checkpoint_folder))]
    assert checkpoint.newest_run(folder) == "run"
    newest, expected = (
        checkpoint.latest(rest.checkpoint_folder),
        checkpoint.latest(straight.checkpoint_folder),
    )
    assert newest is not None
    assert expected is not None
    weights, ours = checkpoint.read(expected)[0]["model"], checkpoint.read(newest)[0]["model"]
    assert all(torch.equal(ours[name], tensor) for name, tensor in weights.items())


def test_a_crash_right_after_a_checkpoint_leaves_the_best_model_marked(
    small_job: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = small_job(name="straight", epochs=4)
    best = run(straight)[0]["best_epoch"]
    assert best > 0
    step = STEPS_PER_EPOCH * (best + 1)
    finish = checkpoint.finish

    def crash(begun: str, *others: Any) -> str:
        written = finish(begun, *others)
        if Path(written).name == name_of(step):
            raise KeyboardInterrupt
        return written

    monkeypatch.setattr(checkpoint, "finish", crash)
    broken = small_job(name="broken", epochs=4)
    with pytest.raises(KeyboardInterrupt):
        run(broken)
    folder = Path(broken.checkpoint_folder)
    assert best_or_last(folder) == str(folder / name_of(step))
    weights, epoch = best_weights(folder)
    expected, _ = best_weights(Path(straight.checkpoint_folder))
    assert epoch == best
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_epochs_without_validation_are_told_with_their_losses(small_job: Jobs) -> None:
    result, reports = run(small_job(epochs=4, validate_every_epochs=2))
    epochs = [report for report in reports if report["kind"] == "epoch"]
    assert [len(report["losses"]) for report in epochs] == [STEPS_PER_EPOCH] * 4
    assert [len(report["cells"]) for report in epochs] == [0, 6, 0, 6]
    assert [report["mean_auc"] is None for report in epochs] == [True, False, True, False]
    assert [entry["epoch"] for entry in result["history"]] == [0, 1, 2, 3]


class HeldBytes(Callback):
    """Bytes of all tensors that are alive, after some steps."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        self._steps, self.held = steps, []  # type: ignore[var-annotated]

    def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
        if run.state.step in self._steps:
            gc.collect()
            tensors = [found for found in gc.get_objects() if isinstance(found, torch.Tensor)]
            storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
            self.held.append(sum(storages.values()))


def test_no_step_leaves_tensors_behind(small_job: Jobs) -> None:
    # The moments of the normalisation travel with a step's numbers, which are kept: they must not be.
    held = HeldBytes((20, 60))
    run(small_job({"normalisation": "scenario"}, epochs=1, batch_size=32), held)
    first, last = held.held
    assert last - first < 4096, f"{(last - first) / 40:.0f} bytes a step"


@pytest.mark.parametrize("balance", ["uncertainty", "dwa", "gradnorm", "pcgrad"])
def test_a_task_that_weighs_nothing_leaves_the_balance_of_the_others_alone(
    balance: str, small_job: Jobs
) -> None:
    job = small_job(epochs=4)
    loss = LossSettings.model_validate(
        {"balance": balance, "task_weights": {"like": 0.0}, "balance_rate": 0.1}
    )
    result, reports = run(replace(job, settings=job.settings.model_copy(update={"loss": loss})))
    losses = [loss for report in reports if report["kind"] == "epoch" for _, loss in report["losses"]]
    assert len(losses) == 4 * STEPS_PER_EPOCH
    assert np.isfinite(losses).all()
    for entry in result["history"]:
        assert np.isfinite(entry["task_weights"]).all()
        assert entry["task_weights"][1] == 0.0


def test_another_setting_is_named_with_both_values(small_job: Jobs) -> None:
    run(small_job(name="run", epochs=1))
    other = small_job({"embedding_dim": 4}, name="run", resume=True, batch_size=128)
    with pytest.raises(OtherRunError) as caught:
        run(other)
    assert str(caught.value).splitlines()[1:] == [
        "model.embedding_dim: is 4, the run began with 8",
        "training.batch_size: is 128, the run began with 256",
    ]


def test_epochs_and_workers_may_differ(small_job: Jobs) -> None:
    run(small_job(name="run", epochs=1))
    rest = small_job(name="run", epochs=2, workers=2, resume=True)
    results = in_threads(2, lambda world: train(rest, world, ReportList(), Progress()))
    assert [result["epochs"] for result in results] == [2, 2]


def test_a_damaged_newest_checkpoint_is_passed_over_and_each_byte_read_once(
    small_job: Jobs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    straight = small_job(name="straight", epochs=3)
    run(straight)
    broken = small_job(name="broken", epochs=2)
    run(broken)
    newest = Path(broken.checkpoint_folder) / name_of(2 * STEPS_PER_EPOCH)
    content = bytearray((newest / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "state.pt").write_bytes(bytes(content))
    reads: list[str] = []
    read = checkpoint_files.read

    def counted(folder: str, manifest: dict[str, Any], name: str, alive: Callable[[], None]) -> Any:
        reads.append(f"{Path(folder).name}/{name}")
        return read(folder, manifest, name, alive)

    monkeypatch.setattr(checkpoint_files, "read", counted)

    class Check(Callback):
        def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
            if run.state.global_step == STEPS_PER_EPOCH + 1:
                names = ("position.json", "state.pt")
                tried = (2 * STEPS_PER_EPOCH, STEPS_PER_EPOCH)
                assert reads == [f"{name_of(step)}/{name}" for step in tried for name in names]

    rest = small_job(name="broken", epochs=3, resume=True)
    result, _ = run(rest, Check())
    assert "state.pt is not what its manifest says; trying the checkpoint before" in caplog.text
    weights = [best_weights(Path(job.checkpoint_folder))[0] for job in (straight, rest)]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    assert [entry["epoch"] for entry in result["history"]] == [0, 1, 2]
    for checkpoint_folder in Path(rest.checkpoint_folder).glob("step-*"):
        (checkpoint_folder / "state.pt").unlink()
    with pytest.raises(CheckpointError, match="nothing to resume"):
        run(rest)


def test_a_profile_is_written_beside_the_log(small_job: Jobs) -> None:
    job = small_job(epochs=2, profile_steps=2)
    run(job)
    trace = json.loads((Path(job.log_folder) / "trace-rank-0.json").read_text())
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert any(name.startswith("aten::") for name in names)
    steps = {name for name in names if name.startswith("ProfilerStep#")}
    assert len(steps) == 2


def test_a_curve_has_every_step_or_means_of_as_many_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position, "CURVE_POINTS", 3)
    assert position.curve([1.0, 2.0, 3.0], first_step=5) == [(5, 1.0), (6, 2.0), (7, 3.0)]
    assert position.curve([1.0, 2.0, 4.0, 6.0, 9.0], first_step=1) == [(1, 1.5), (3, 5.0), (5, 9.0)]
    assert position.curve([], first_step=1) == []
