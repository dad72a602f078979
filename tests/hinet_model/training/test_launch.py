"""Workers on real Spark tasks with real Horovod: failures end the run, soon and with their cause."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from pyspark.sql import SparkSession
from thread_world import in_threads

from hinet_model.data.batch import Batch
from hinet_model.training import checkpoint, worker
from hinet_model.training.callbacks import Callback
from hinet_model.training.control import launch
from hinet_model.training.control.launch import LaunchError
from hinet_model.training.control.monitor import TrainingError
from hinet_model.training.control.reports import ReportList
from hinet_model.training.control.restarts import Attempts
from hinet_model.training.control.signals import KeptSignals
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.job import TrainingJob
from hinet_model.training.run import Run
from hinet_model.training.statistics import StepMeasures
from hinet_model.training.worker import train

pytestmark = [
    pytest.mark.spark,
    pytest.mark.distributed,
    pytest.mark.slow,
    # Horovod's own thread dies of the Spark job that a failing worker takes along.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

# The workers' processes cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

Jobs = Callable[..., TrainingJob]

STALL_SECONDS = 8
ENDS_WITHIN = 120
"""Seconds from the launch to the error, at most, even on a busy machine: the start of the workers takes most."""


def broken_worker(job: TrainingJob, fault: Callable[[], None]) -> dict[str, Any]:
    """A worker whose rank 1 meets with a fault after its third step."""

    class Fault(Callback):
        def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
            if run.world.rank == 1 and run.state.global_step == 3:
                fault()

    return worker.main(job, [Fault()])


def raises(job: TrainingJob) -> dict[str, Any]:
    def fault() -> None:
        raise ValueError("the fuse has blown")

    return broken_worker(job, fault)


def finds_a_full_disk(job: TrainingJob) -> dict[str, Any]:
    def fault() -> None:
        raise OSError(28, "No space left on device", "/data/spill")

    return broken_worker(job, fault)


def sleeps_for_ever(job: TrainingJob) -> dict[str, Any]:
    return broken_worker(job, lambda: time.sleep(10_000))


def works_long(job: TrainingJob) -> dict[str, Any]:
    """Rank 0 is busy for far longer than a step may take; its peer waits for it in a collective."""

    class Work(Callback):
        def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
            if run.world.rank == 0 and run.state.global_step == 3:
                run.progress.enter("checkpoint")
                for _ in range(int(2.5 * STALL_SECONDS / 0.2)):
                    time.sleep(0.2)
                    run.progress.alive()

    return worker.main(job, [Work()])


def wait_for_each_other(job: TrainingJob) -> dict[str, Any]:
    """Two ranks wait in different collectives."""

    class Wait(Callback):
        def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
            if run.state.global_step == 3:
                run.progress.enter("gather")
                run.world.broadcast(torch.zeros(1), f"only.rank.{run.world.rank}")

    return worker.main(job, [Wait()])


def is_stopped(job: TrainingJob) -> dict[str, Any]:
    return broken_worker(job, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def has_a_disk_of_its_own(job: TrainingJob) -> dict[str, Any]:
    """Rank 1 finds another folder under the path of the checkpoints, as a host does that shares no storage."""
    own = f"{job.checkpoint_folder}/of-another-host"
    return worker.main(job if os.environ["HOROVOD_RANK"] == "0" else replace(job, checkpoint_folder=own))


def leaves_quietly(job: TrainingJob) -> dict[str, Any]:
    return broken_worker(job, lambda: sys.exit(0))


def failing(spark: SparkSession, job: TrainingJob, entry: launch.Entry) -> str:
    started = time.monotonic()
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingError) as caught:
        launch.run(spark, job, lambda report: None, entry)
    assert time.monotonic() - started < ENDS_WITHIN
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    return str(caught.value)


@pytest.fixture
def two_workers(small_job: Jobs) -> TrainingJob:
    return watched(small_job(workers=2, epochs=50))


def watched(job: TrainingJob) -> TrainingJob:
    limit = float(STALL_SECONDS)
    limits = {"stall_seconds": limit, "judge_seconds": limit, "heartbeat_seconds": 0.2}
    watchdog = job.settings.watchdog.model_copy(update=limits)
    settings = job.settings.model_copy(update={"watchdog": watchdog})
    return TrainingJob(settings, job.snapshot, job.schema, job.checkpoint_folder, job.log_folder)


def test_a_worker_that_raises_ends_the_run_with_rank_traceback_and_log(
    spark: SparkSession, two_workers: TrainingJob
) -> None:
    text = failing(spark, two_workers, raises)
    assert text.startswith("rank 1 of 2 raised ValueError: the fuse has blown")
    assert "in on_step" in text
    said, host_and_path = text.splitlines()[-1].split(": ")
    assert said == "log of rank 1"
    assert "the fuse has blown" in Path(host_and_path.partition(":")[2]).read_text()


def test_a_cause_outside_of_the_code_is_told_in_short_and_at_length_in_the_log(
    spark: SparkSession, two_workers: TrainingJob
) -> None:
    text = failing(spark, two_workers, finds_a_full_disk)
    first, *others = text.splitlines()
    assert first == "rank 1 of 2 raised OSError: [Errno 28] No space left on device: '/data/spill'"
    assert len(others) <= 2, "the peer, and the log"
    assert "Traceback" not in text
    log = Path(others[-1].removeprefix("log of rank 1: ").partition(":")[2])
    assert "Traceback" in log.read_text()


def test_sigterm_lets_the_workers_write_a_checkpoint_and_ends_them(
    spark: SparkSession, two_workers: TrainingJob
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    sent: list[int] = []
    reports: list[Any] = []

    def on_report(report: Any) -> None:
        reports.append(report)
        if report["kind"] == "epoch" and not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        launch.run(spark, two_workers, on_report)
    ended = [report for report in reports if report["kind"] == "finished"]
    assert [report["told_to_end"] for report in ended] == [False, False]
    newest = checkpoint.latest(two_workers.checkpoint_folder)
    assert newest is not None
    assert checkpoint.read_position(newest).global_step == ended[0]["global_step"] > 8
    assert caught.value.code == 143
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_a_signal_that_comes_before_there_are_workers_ends_the_launch_at_once() -> None:
    def launched() -> None:
        with KeptSignals():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        launched()


def test_the_spark_job_that_fails_with_its_workers_leaves_no_traceback_and_others_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda raised: seen.append(str(raised.exc_value)))

    def run_spark() -> None:  # as Horovod calls it
        raise ValueError("of the job")

    def other() -> None:
        raise ValueError("of another thread")

    with launch.job_fails_quietly():
        for target in (run_spark, other):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert seen == ["of another thread"]


def is_lost_once(job: TrainingJob) -> dict[str, Any]:
    """Rank 1 is killed in its eleventh step, but for those that go on."""
    first = not job.resume

    class Fault(Callback):
        def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
            if first and run.world.rank == 1 and run.state.global_step == 11:
                os.kill(os.getpid(), signal.SIGKILL)

    return worker.main(job, [Fault()])


def test_a_run_that_loses_a_worker_goes_on_by_itself_to_the_same_weights(
    spark: SparkSession, small_job: Jobs
) -> None:
    straight = small_job(name="straight", workers=2)
    expected = in_threads(2, lambda world: train(straight, world, ReportList(), Progress()))
    reports: list[Any] = []
    attempts = Attempts(small_job(workers=2, restarts=1), reports.append)
    results = attempts.run(spark, is_lost_once)
    assert [result["weights"] for result in results] == [result["weights"] for result in expected]
    assert attempts.restarts == 1
    assert [report["global_step"] for report in reports if report["kind"] == "begins"] == [0, 8]
    assert 0 < attempts.goodput < 1


_ON_A_CLUSTER = """
import pickle, sys
from pyspark.sql import SparkSession
from hinet_model.training.control import launch, package_check

def session(master):
    settings = {"spark.task.cpus": "2", "spark.ui.enabled": "false", "spark.default.parallelism": "64",
                "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    spark = SparkSession.builder.master(master).config(map=settings).getOrCreate()
    spark.sparkContext.parallelize(range(2), 2).count()
    launch.check_cluster(spark, 2)
    try:
        launch.check_cluster(spark, 3)
    except launch.LaunchError as error:
        print(error)
    return spark

if __name__ == "__main__":
    session("local[5]").stop()
    spark = session("local-cluster[2,3,1024]")
    results = launch.run(spark, pickle.load(open(sys.argv[1], "rb")), lambda report: None)
    print("weights", *(result["weights"] for result in results))
    package_check.digest = lambda: "0" * 64
    try:
        package_check.check(spark, 2)
    except package_check.PackageError as error:
        print(error)
    spark.stop()
"""


def test_executors_of_a_cluster_are_counted_and_compared_and_train_what_local_workers_do(
    small_job: Jobs, tmp_path: Path
) -> None:
    straight = small_job(name="straight", workers=2, epochs=1)
    expected = in_threads(2, lambda world: train(straight, world, ReportList(), Progress()))
    script, job = tmp_path / "on_a_cluster.py", tmp_path / "job.pickle"
    script.write_text(_ON_A_CLUSTER)
    job.write_bytes(pickle.dumps(small_job(workers=2, epochs=1)))
    done = subprocess.run(
        [sys.executable, str(script), str(job)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = "training.workers is 3, but Spark has 2 task slots of 2 cores"
    assert done.stdout.count(said) == 2, done.stdout + done.stderr[-2000:]
    assert f"weights {expected[0]['weights']} {expected[1]['weights']}" in done.stdout, done.stderr[-2000:]
    assert "do not run the driver's hinet_model (another version of it)" in done.stdout


def test_a_worker_that_does_not_see_the_driver_s_checkpoints_ends_the_run_before_its_first_step(
    spark: SparkSession, two_workers: TrainingJob
) -> None:
    text = failing(spark, two_workers, has_a_disk_of_its_own)
    assert text.startswith("rank 1 of 2 raised StoreCheckError: checkpoint.folder: rank 1 on ")
    assert "what the driver wrote there; expected a path on storage that all hosts share" in text
    assert not list(Path(two_workers.checkpoint_folder).glob("**/step-*"))


def test_a_worker_that_sleeps_for_ever_ends_the_run_with_its_rank_and_stack(
    spark: SparkSession, two_workers: TrainingJob
) -> None:
    text = failing(spark, two_workers, sleeps_for_ever)
    assert text.startswith("rank 1 of 2 made no progress for ")
    assert "time.sleep" in text or "sleeps_for_ever" in text or "fault" in text


def test_workers_that_wait_for_each_other_end_the_run_with_their_stacks(
    spark: SparkSession, two_workers: TrainingJob
) -> None:
    text = failing(spark, two_workers, wait_for_each_other)
    assert "made no progress for " in text
    assert "in phase 'gather' (epoch 0, step 2)" in text
    assert "broadcast" in text


def test_a_worker_that_is_stopped_ends_the_run_with_its_rank(
    spark: SparkSession, two_workers: TrainingJob
) -> None:
    text = failing(spark, two_workers, is_stopped)
    assert text.startswith("rank 1 of 2 gave no sign of life for ")


def test_a_worker_that_waits_for_one_at_work_is_left_alone(spark: SparkSession, small_job: Jobs) -> None:
    job = watched(small_job(workers=2, epochs=1))
    results = launch.run(spark, job, lambda report: None, works_long)
    assert [result["epochs"] for result in results] == [1, 1]


def test_a_worker_that_leaves_with_exit_code_zero_is_no_success(
    spark: SparkSession, two_workers: TrainingJob
) -> None:
    text = failing(spark, two_workers, leaves_quietly)
    assert "rank 1" in text


def test_more_workers_than_task_slots_are_refused_at_once(spark: SparkSession, small_job: Jobs) -> None:
    with pytest.raises(LaunchError, match=r"training\.workers is 16, but Spark has \d+ task slots"):
        launch.run(spark, small_job(workers=16, lanes=16), lambda report: None)
