"""Training in one process: the same code as on many workers, without Horovod."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from horovod.common.exceptions import HorovodInternalError

from hinet_model.data.batch import Batch
from hinet_model.nn.native import library
from hinet_model.training import assemble, checkpoint, worker
from hinet_model.training.callbacks import Callback
from hinet_model.training.checkpoint import best_or_last
from hinet_model.training.checkpoint_files import CheckpointError
from hinet_model.training.control.reports import ReportList
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.dist.world import LocalWorld
from hinet_model.training.job import TrainingJob
from hinet_model.training.run import NonFiniteLossError, Run
from hinet_model.training.statistics import StepMeasures
from hinet_model.training.worker import train

Jobs = Callable[..., TrainingJob]


class EachStep(Callback):
    """Calls a function after each step."""

    def __init__(self, function: Callable[[Run, Batch, StepMeasures], None]) -> None:
        self.on_step = function  # type: ignore[method-assign]


def run(job: TrainingJob, after_step: Any = None) -> tuple[dict[str, Any], ReportList]:
    reporter = ReportList()
    callbacks = [] if after_step is None else [EachStep(after_step)]
    return train(job, LocalWorld(), reporter, Progress(), callbacks), reporter


def final_weights(job: TrainingJob) -> dict[str, torch.Tensor]:
    newest = checkpoint.latest(Path(job.checkpoint_folder))
    assert newest is not None
    weights: dict[str, torch.Tensor] = checkpoint.read(newest)[0]["model"]
    return weights


def assert_same_weights(one: TrainingJob, other: TrainingJob) -> None:
    ours, theirs = final_weights(one), final_weights(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_the_model_learns_and_every_row_enters_the_loss_once_an_epoch(small_job: Jobs) -> None:
    seen: list[torch.Tensor] = []
    result, reporter = run(small_job(epochs=6), lambda run, batch, measures: seen.append(batch.row_ids))
    losses = [entry["train_loss"] for entry in result["history"]]
    assert losses[-1] < 0.8 * losses[0]
    assert result["history"][-1]["mean_auc"] > 0.6
    row_ids, counts = np.unique(torch.cat(seen).numpy(), return_counts=True)
    assert len(row_ids) == 2003
    assert set(counts) == {6}
    kinds = [report["kind"] for report in reporter.reports]
    assert kinds.count("epoch") == kinds.count("checkpoint") == 6


def test_features_of_several_widths_train_and_resume_as_those_of_one(small_job: Jobs) -> None:
    widths = {"embedding_dims": {"user_id": 16, "genres": 24}}
    straight = small_job(widths, name="straight", epochs=3)
    result, _ = run(straight)
    losses = [entry["train_loss"] for entry in result["history"]]
    assert losses[-1] < 0.9 * losses[0]
    # 200 users of two rows, 300 movies of one, 5 genres of three.
    assert final_weights(straight)["embedding.weight"].shape == (400 + 300 + 15, 8)
    run(small_job(widths, name="broken", epochs=1))
    rest = small_job(widths, name="broken", epochs=3, resume=True)
    run(rest)
    assert_same_weights(straight, rest)


def test_equal_seeds_give_equal_weights_and_another_seed_others(small_job: Jobs) -> None:
    same = [small_job({"dropout": 0.2}, name=name) for name in ("a", "b")]
    other = small_job({"dropout": 0.2}, name="c", seed=1)
    digests = [run(job)[0]["weights"] for job in (*same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_a_run_has_the_same_losses_with_and_without_compiled_experts(
    small_job: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = []
    for switch in ("1", "0"):
        monkeypatch.setenv(library.SWITCH, switch)
        library.available.cache_clear()
        _, reporter = run(small_job({}, name=f"native{switch}", epochs=2))
        curves.append(
            [loss for report in reporter.reports if report["kind"] == "epoch" for _, loss in report["losses"]]
        )
    library.available.cache_clear()
    assert len(curves[0]) >= 12
    # Sums in another order; a ReLU on its edge may turn, and then Adam makes a full step of its unit's first gradient.
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-4)


def test_resuming_after_an_epoch_gives_the_weights_of_a_run_that_never_stopped(small_job: Jobs) -> None:
    straight = small_job({"dropout": 0.2}, name="straight", epochs=3)
    run(straight)
    run(small_job({"dropout": 0.2}, name="broken", epochs=1))
    rest = small_job({"dropout": 0.2}, name="broken", epochs=3, resume=True)
    result, _ = run(rest)
    assert_same_weights(straight, rest)
    assert [entry["epoch"] for entry in result["history"]] == [0, 1, 2]


class StopAt(ReportList):
    """A driver that asks to stop when so many steps have been taken."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def __call__(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
        self.stop_requested = self.stop_requested or run.state.global_step >= self.step


def test_a_run_that_is_asked_to_stop_goes_on_within_the_epoch_to_the_same_weights(small_job: Jobs) -> None:
    settings = {"model": {"dropout": 0.2}, "epochs": 2, "log_every_steps": 1}
    straight = small_job(**settings, name="straight")
    run(straight)
    broken, stop = small_job(**settings, name="broken"), StopAt(3)
    result = train(broken, LocalWorld(), stop, Progress(), [EachStep(stop)])
    assert result["stopped"]
    assert 3 <= result["global_step"] <= 4
    rest = small_job(**settings, name="broken", resume=True)
    run(rest)
    assert_same_weights(straight, rest)


def test_resuming_another_model_is_refused(small_job: Jobs) -> None:
    run(small_job(name="run", epochs=1))
    with pytest.raises(CheckpointError, match="other data, model, optimiser or plan"):
        run(small_job({"embedding_dim": 4}, name="run", resume=True))


def test_resuming_without_a_checkpoint_is_refused(small_job: Jobs) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        run(small_job(name="new", resume=True))


def test_best_and_last_checkpoints_are_kept_apart(small_job: Jobs) -> None:
    job = small_job(epochs=4)
    result, _ = run(job)
    folder = Path(job.checkpoint_folder)
    _, best = checkpoint.read(best_or_last(folder))
    newest = checkpoint.latest(folder)
    assert newest is not None
    assert best.best is not None
    assert best.best.epoch == result["best_epoch"] == best.epoch - 1
    assert checkpoint.read(newest)[1].epoch == 4
    values = [entry["mean_auc"] for entry in result["history"]]
    assert result["best_value"] == max(values)


def test_the_validated_model_is_the_mean_of_the_last_epochs(small_job: Jobs) -> None:
    ends: list[torch.Tensor] = []

    def at_epoch_ends(run: Run, batch: Batch, measures: StepMeasures) -> None:
        if run.state.global_step % 8 == 0:
            ends.append(run.parts.model.embedding.weight.detach().clone())

    job = small_job(epochs=4, average_epochs=3)
    run(job, at_epoch_ends)
    newest = checkpoint.latest(Path(job.checkpoint_folder))
    assert newest is not None
    state, _ = checkpoint.read(newest)
    assert state["average"]["count"] == 3
    torch.testing.assert_close(state["average"]["mean"]["embedding.weight"], torch.stack(ends[1:]).mean(0))
    assert torch.equal(state["model"]["embedding.weight"], ends[3])


def test_averaging_changes_no_step_of_the_run(small_job: Jobs) -> None:
    plain, averaged = (
        small_job(name="plain", epochs=3),
        small_job(name="averaged", epochs=3, average_epochs=2),
    )
    run(plain)
    run(averaged)
    assert_same_weights(plain, averaged)


def test_without_validation_rows_the_last_epoch_is_the_model(small_job: Jobs) -> None:
    job = small_job(epochs=2)
    snapshot = replace(job.snapshot, files=job.snapshot.files_of("train"))
    result, _ = run(replace(job, snapshot=snapshot))
    assert result["best_epoch"] == -1
    assert result["history"][1]["mean_auc"] is None
    assert result["history"][1]["train_loss"] < result["history"][0]["train_loss"]
    assert best_or_last(Path(job.checkpoint_folder)) == checkpoint.latest(Path(job.checkpoint_folder))


def test_patience_ends_a_run_that_gets_no_better(small_job: Jobs) -> None:
    def scramble(run: Run, batch: Batch, measures: StepMeasures) -> None:
        """From the second epoch on, forget everything."""
        if run.state.global_step > 8:
            run.parts.model.embedding.weight.data.zero_()

    result, _ = run(small_job(epochs=9, patience=2), scramble)
    assert result["best_epoch"] == 0
    assert result["epochs"] == 3


def test_a_run_of_so_many_steps_ends_the_epoch_that_they_end_and_takes_no_more_when_gone_on_with(
    small_job: Jobs,
) -> None:
    whole = small_job(epochs=2, name="whole")
    expected, _ = run(whole)
    steps = expected["global_step"]
    for epochs in (5, 2):
        settings: dict[str, Any] = {"epochs": epochs, "max_steps": steps, "name": f"of {epochs} epochs"}
        result, _ = run(small_job(**settings))
        assert (result["global_step"], result["epochs"], result["stopped"]) == (steps, 2, False)
        assert result["best_epoch"] == expected["best_epoch"]
        validated = [[one["mean_auc"] for one in of["history"]] for of in (result, expected)]
        assert validated[0] == validated[1]
        assert_same_weights(whole, small_job(**settings))
        again, _ = run(small_job(**settings, resume=True))
        assert (again["global_step"], again["best_epoch"]) == (steps, expected["best_epoch"])
    further, _ = run(small_job(epochs=5, max_steps=steps + 1, name="of 5 epochs", resume=True))
    assert (further["global_step"], further["epochs"], further["stopped"]) == (steps + 1, 2, True)


def test_a_run_that_patience_has_ended_takes_no_step_when_gone_on_with(small_job: Jobs) -> None:
    def scramble(run: Run, batch: Batch, measures: StepMeasures) -> None:
        if run.state.global_step > 8:
            run.parts.model.embedding.weight.data.zero_()

    ended, _ = run(small_job(epochs=9, patience=2, name="run"), scramble)
    again, _ = run(small_job(epochs=9, patience=2, name="run", resume=True))
    assert (again["global_step"], again["best_epoch"]) == (ended["global_step"], ended["best_epoch"])
    further, _ = run(small_job(epochs=9, patience=3, name="run", resume=True))
    assert further["global_step"] > ended["global_step"]


def test_a_loss_that_is_no_number_ends_the_run_with_the_step(small_job: Jobs) -> None:
    def poison(run: Run, batch: Batch, measures: StepMeasures) -> None:
        if run.state.global_step == 2:
            next(iter(run.parts.model.dense_parameters())).data.fill_(float("nan"))

    with pytest.raises(NonFiniteLossError, match="nan at epoch 0, step 2"):
        run(small_job(log_every_steps=1), poison)


def test_a_scenario_and_task_report_their_own_mean_loss(small_job: Jobs) -> None:
    result, _ = run(small_job(epochs=1))
    cells = np.array(result["history"][0]["train_cell_losses"])
    counts = np.array(small_job().snapshot.scenario_rows["train"])
    # Under proportion weights the loss is the mean over rows, summed over tasks; the last batch is short, so the
    # mean over steps is close to the mean over rows, not equal.
    over_rows = float((cells * counts[:, None]).sum() / counts.sum())
    assert abs(over_rows - result["history"][0]["train_loss"]) < 0.02


def test_the_wait_for_data_is_measured(small_job: Jobs) -> None:
    entry = run(small_job(epochs=1))[0]["history"][0]
    assert 0 < entry["data_wait_share"] < 1
    assert entry["rows"] == 2003
    assert entry["rows_per_second"] > 0


class Diary(Progress):
    """Keeps the phases that were entered."""

    def __init__(self) -> None:
        super().__init__()
        self.entered: list[str] = []

    def enter(self, phase: str) -> None:
        super().enter(phase)
        self.entered.append(phase)


def test_what_takes_long_has_a_phase_and_a_limit_of_its_own(small_job: Jobs) -> None:
    diary = Diary()
    train(small_job(epochs=1), LocalWorld(), ReportList(), diary)
    assert diary.entered.count("first batch") == 2, "of training and of validation"
    assert diary.entered.count("data") > 2
    assert {"judge", "gather"} & set(diary.entered)
    assert diary.entered.count("checkpoint") >= 3, "its beginning, and signs of life in it"
    resumed = Diary()
    train(replace(small_job(epochs=2), resume=True), LocalWorld(), ReportList(), resumed)
    assert "restore" in resumed.entered


def test_a_worker_takes_its_share_of_the_cores_that_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(assemble, "available_cores", lambda: 7)
    monkeypatch.setenv("HOROVOD_LOCAL_SIZE", "2")
    try:
        assemble.set_threads(None, LocalWorld())
        assert torch.get_num_threads() == 3
        assemble.set_threads(2, LocalWorld())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_full_disk_and_a_lost_peer_are_told_without_the_place_in_the_code() -> None:
    outside = [OSError(28, "No space left on device"), HorovodInternalError("has been shut down")]
    assert all(worker._lies_outside(error) for error in outside)
    assert not worker._lies_outside(ValueError("a fault"))
