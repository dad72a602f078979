"""Recording: what an epoch's report becomes among the run's metrics."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from hinet_model.config import LossSettings
from hinet_model.training.control.reports import ReportList
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.dist.world import LocalWorld
from hinet_model.training.job import TrainingJob
from hinet_model.training.recording import RunRecorder
from hinet_model.training.worker import train


class Notebook:
    """Keeps what a tracker would send."""

    def __init__(self) -> None:
        self.metrics: dict[int, dict[str, Any]] = {}
        self.weights: tuple[Any, ...] = ()
        self.points: list[Any] = []
        self.calls = 0

    def log_points(self, points: list[Any]) -> None:
        self.points += points
        self.calls += 1

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        self.metrics.setdefault(step, {}).update(metrics)

    def log_loss_weights(self, *weights: Any) -> None:
        self.weights = weights


def test_the_weights_of_tasks_are_recorded_each_epoch_as_they_move(
    small_job: Callable[..., TrainingJob],
) -> None:
    job = small_job(epochs=2)
    loss = LossSettings(scheme="sqrt", balance="uncertainty", balance_rate=0.1, task_weights={"like": 0.5})
    settings = job.settings.model_copy(update={"loss": loss})
    job = TrainingJob(settings, job.snapshot, job.schema, job.checkpoint_folder, job.log_folder)
    reporter = ReportList()
    train(job, LocalWorld(), reporter, Progress())
    notebook: Any = Notebook()
    state: Any = SimpleNamespace(scenario_names=("home", "search", "channel"), task_names=("click", "like"))
    recorder = RunRecorder(notebook, settings, state)
    recorder.log_loss_weights(job.snapshot)
    for report in reporter.reports:
        recorder.record(report)
    scheme, _, rows, alphas, _, tasks = notebook.weights
    assert (scheme, tasks) == ("sqrt", {"click": 1.0, "like": 0.5})
    roots = [count**0.5 for count in rows]
    assert all(abs(alpha - root / sum(roots)) < 1e-9 for alpha, root in zip(alphas, roots, strict=True))
    first, second = (notebook.metrics[epoch] for epoch in (1, 2))
    assert 0 < first["task_weight/like"] != 0.5
    assert first["task_weight/like"] != second["task_weight/like"]
    assert first["task_weight/click"] != second["task_weight/click"]


def test_calibration_is_recorded_and_an_epoch_without_validation_has_its_losses_alone(
    small_job: Callable[..., TrainingJob],
) -> None:
    job = small_job(epochs=2, validate_every_epochs=2)
    reporter = ReportList()
    train(job, LocalWorld(), reporter, Progress())
    notebook: Any = Notebook()
    state: Any = SimpleNamespace(scenario_names=("home", "search", "channel"), task_names=("click", "like"))
    recorder = RunRecorder(notebook, job.settings, state)
    for report in reporter.reports:
        recorder.record(report)
    first, second = (notebook.metrics[epoch] for epoch in (1, 2))
    assert first["train/log_loss/channel/like"] > 0
    assert not [name for name in first if name.startswith("val/") and first[name] is not None]
    cells = [report["cells"] for report in reporter.reports if report["kind"] == "epoch"][-1]
    assert second["val/pcoc/channel/like"] == cells[5]["pcoc"] > 0
    assert second["val/auc/home/click"] == cells[0]["auc"]
    assert "val/auc_error/home/click" not in second


def test_steps_are_recorded_by_global_step_many_to_a_call(small_job: Callable[..., TrainingJob]) -> None:
    job = small_job(epochs=2, log_every_steps=1)
    reporter = ReportList()
    train(job, LocalWorld(), reporter, Progress())
    notebook: Any = Notebook()
    state: Any = SimpleNamespace(scenario_names=("home", "search", "channel"), task_names=("click", "like"))
    recorder = RunRecorder(notebook, job.settings, state)
    for report in reporter.reports:
        recorder.record(report)
    told = [report for report in reporter.reports if report["kind"] == "progress"]
    losses = [(step, loss) for name, loss, step, _ in notebook.points if name == "step/loss"]
    assert losses == [(place + 1, report["loss"]) for place, report in enumerate(told)]
    assert len(losses) == 2 * told[0]["steps"]
    of_steps = {name for name, *_ in notebook.points if name.startswith("step/")}
    assert of_steps == {"step/loss", "step/rows_per_second"}
    assert notebook.calls == 2, "one an epoch, as nothing waits longer than that here"


def test_what_a_worker_uses_is_recorded_by_rank(small_job: Callable[..., TrainingJob]) -> None:
    job = small_job(epochs=2)
    reporter = ReportList()
    train(job, LocalWorld(), reporter, Progress())
    told = [report for report in reporter.reports if report["kind"] == "resources"]
    assert len(told) >= 2, "once an epoch at least"
    notebook: Any = Notebook()
    state: Any = SimpleNamespace(scenario_names=("home", "search", "channel"), task_names=("click", "like"))
    recorder = RunRecorder(notebook, job.settings, state)
    for report in reporter.reports:
        recorder.record({**report, "rank": 3})
    last = {name: value for name, value, step, _ in notebook.points if step == told[-1]["global_step"]}
    assert last["system/rank_3/cpu_percent"] > 0
    assert last["system/rank_3/memory_mib"] == told[-1]["used"]["memory_mib"] > 50
    assert not [name for name in last if "gpu" in name], "no GPU was trained on"
