"""Faults of whole jobs: ``jobs/train.py``, as a user starts it, is signalled, killed, or loses what lies around it.

examples:
    python -m benchmarks.chaos_jobs
    python -m benchmarks.chaos_jobs --only "SIGTERM to the driver"

The second half of ``make chaos``. What each job ends with, how soon its workers are gone, what MLflow says of the
run, and the weights and rows that the run, or ``--resume``, ends with stand in the table. The seed draws the epoch
after which the fault comes.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import psutil
from mlflow import MlflowClient

from benchmarks.chaos import Row, end, met, say
from benchmarks.chaos_places import full, mounted, read_only
from benchmarks.chaos_runs import Jobs, mlflow_server
from benchmarks.spark_clusters import standalone_cluster, words_of

_GONE_SECONDS = 10.0
"""Until all workers are gone: told to end, or without a driver, or without the JVM that would end them."""
_WITHOUT_MLFLOW = 60.0
"""Seconds after which a job that is to start says at the latest that there is no MLflow."""

_PATIENT = ("--set", "watchdog.stall_seconds=900")
"""Of a job whose workers will be held up."""

_KILLED_WHILE_REGISTERING = """
import os, runpy, signal, sys
from mlflow import MlflowClient
create = MlflowClient._create_model_version
def creating(*arguments, **others):
    create(*arguments, **others)
    os.kill(os.getpid(), signal.SIGKILL)
MlflowClient._create_model_version = creating
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

Meet = Callable[[Jobs, str, int], Row]


def _signalled(
    jobs: Jobs, name: str, epoch: int, number: signal.Signals, code: int, status: str, group: bool = False
) -> Row:
    job = jobs.start(name)
    job.wait_for(rf"epoch {epoch}/\d+ done")
    (os.killpg if group else os.kill)(job.process.pid, number)
    gone = job.seconds_until_gone()
    ended, left = job.end()
    found = jobs.run_of(name)[1]
    fits = ended == code and found == status and gone < _GONE_SECONDS and not left and job.quiet()
    fits = fits and (number == signal.SIGKILL or "go on from step-" in job.said)
    jobs.go_on(name)
    happened = f"exit {ended}, run {found}; workers gone after {gone:.1f} s, {left} processes left; --resume"
    return jobs.row(name, epoch, gone, happened, fits)


def _jvm_killed(jobs: Jobs, name: str, epoch: int) -> Row:
    job = jobs.start(name)
    job.wait_for(rf"epoch {epoch}/\d+ done")
    job.jvm().kill()
    gone = job.seconds_until_gone()
    ended, left = job.end()
    found = jobs.run_of(name)[1]
    fits = ended == 4 and found == "FAILED" and gone < _GONE_SECONDS and not left and job.quiet()
    fits = fits and "go on from step-" in job.said
    jobs.go_on(name)
    happened = f"exit {ended}: {job.error()}; workers gone after {gone:.1f} s, run {found}; --resume"
    return jobs.row(name, epoch, gone, happened, fits)


def _signalled_at_start(jobs: Jobs, name: str, epoch: int) -> Row:
    job = jobs.start(name)
    job.wait_for("starting 2 workers")
    os.kill(job.process.pid, signal.SIGTERM)
    at = time.monotonic()
    ended, left = job.end()
    seconds, found = time.monotonic() - at, jobs.run_of(name)[1]
    fits = ended == 143 and found == "KILLED" and not left and job.quiet()
    happened = f"exit {ended} after {seconds:.1f} s, run {found}, {left} processes left; started again"
    again = jobs.start(f"{name}, again")
    ended, _ = again.end()
    return jobs.row(name, 0, seconds, happened, fits and ended == 0, of=f"{name}, again")


def _killed_while_registering(jobs: Jobs, name: str, epoch: int) -> Row:
    job = jobs.start(name, code=_KILLED_WHILE_REGISTERING)
    ended, left = job.end()
    jobs.go_on(name)
    version = MlflowClient(jobs.flow.tracking_uri).get_model_version_by_alias("small", "challenger")
    run_id, status = jobs.run_of(name)
    fits = ended == -signal.SIGKILL and version.run_id == version.tags.get("run_id") == run_id
    fits = fits and status == "FINISHED" and not left
    happened = f"exit {ended}; --resume registers a version anew, tagged, the challenger; run {status}"
    return jobs.row(name, jobs.epochs, None, happened, fits)


def _two_at_one_run(jobs: Jobs, name: str, epoch: int) -> Row:
    first = jobs.start(name, *_PATIENT)
    first.wait_for(rf"epoch {epoch}/\d+ done")
    with first.held():
        second = jobs.start(name, "--resume", jobs.run_of(name)[0])
        refused, _ = second.end()
    ended, left = first.end()
    last = second.error()
    fits = refused == 2 and ended == 0 and not left and "another process" in last and second.quiet()
    return jobs.row(name, epoch, None, f"the second: exit {refused}, {last}; the first: exit {ended}", fits)


def _executor_killed(jobs: Jobs, name: str, epoch: int) -> Row:
    with standalone_cluster(jobs.folder / f"cluster-{time.time():.0f}") as cluster:
        job = jobs.start(name, cluster=cluster)
        job.wait_for(rf"epoch {epoch}/\d+ done")
        executors = [
            child
            for process in cluster.processes[1:]
            for child in psutil.Process(process.pid).children(recursive=True)
            if any("CoarseGrainedExecutorBackend" in word for word in words_of(child))
        ]
        executors[0].kill()
        at = time.monotonic()
        job.wait_for(r"restart 1 of 2|training failed")
        noticed = time.monotonic() - at
        ended, _ = job.end()
    happened = "goes on by itself, on an executor anew" if ended == 0 else f"exit {ended}: {job.error()}"
    return jobs.row(name, epoch, noticed, happened, ended == 0)


def _no_mlflow_at_start(jobs: Jobs, name: str, epoch: int) -> Row:
    with mlflow_server(jobs.folder / "server") as server:
        server.kill()
        started = time.monotonic()
        job = jobs.start(name, *server.settings)
        ended, left = job.end()
        seconds = time.monotonic() - started
    fits = ended == 2 and not left and seconds < _WITHOUT_MLFLOW and job.quiet()
    return Row(name, 0, seconds, f"exit {ended}: {job.error()}", None, None, 0.0, fits)


def _no_mlflow_later(jobs: Jobs, name: str, epoch: int, back: bool) -> Row:
    """The server is killed after an epoch; it is back some epochs later, or when the job has ended."""
    with mlflow_server(jobs.folder / f"server-{time.time():.0f}") as server:
        job = jobs.start(name, *server.settings, *_PATIENT)
        job.wait_for(rf"epoch {epoch}/\d+ done")
        server.kill()
        if back:
            job.wait_for(rf"epoch {epoch + 3}/\d+ done")
            with job.held():
                server.start()
        ended, left = job.end()
        backlog = list(job.logs().parent.glob("*backlog*"))
        if not back:
            server.start()
            jobs.deliver(*server.settings)
        run_id, status = jobs.run_of(name, server.uri)
        losses = MlflowClient(server.uri).get_metric_history(run_id, "train/loss")
        version = MlflowClient(server.uri).get_model_version_by_alias("small", "challenger")
        fits = ended == 0 and status == "FINISHED" and len(losses) == jobs.epochs and version.run_id == run_id
        fits = fits and not left and job.quiet() and bool(backlog) != back
        said = "a backlog waits" if backlog else "all delivered"
        happened = (
            f"exit {ended}, {said}; then {len(losses)} of {jobs.epochs} epochs, a challenger, run {status}"
        )
        return jobs.row(name, epoch, None, happened, fits, uri=server.uri)


def _disk(
    jobs: Jobs, name: str, epoch: int, spoil: Callable[[Path], Callable[[], None]], logs_apart: bool
) -> Row:
    """Checkpoints lie on a disk of their own, which takes nothing any more after an epoch."""
    with mounted(jobs.folder / "disk") as disk:
        place = ["--set", f"checkpoint.folder={disk}"]
        if logs_apart:  # no disk turns read-only while a log is open on it
            place += ["--set", f"checkpoint.scratch={jobs.folder / 'scratch'}"]
        job = jobs.start(name, *place)
        job.wait_for(rf"epoch {epoch}/\d+ done")
        mend = spoil(disk)
        ended, left = job.end()
        mend()
        fits = ended == 4 and not left and job.quiet() and "--resume" in job.said
        jobs.go_on(name, *place)
        happened = f"exit {ended}: {job.error()}; --resume"
        return jobs.row(name, epoch, None, happened, fits, checkpoints=disk)


def _read_only_at_start(jobs: Jobs, name: str, epoch: int) -> Row:
    with mounted(jobs.folder / "disk") as disk:
        mend = read_only(disk)
        started = time.monotonic()
        job = jobs.start(name, "--set", f"checkpoint.folder={disk}")
        ended, left = job.end()
        seconds = time.monotonic() - started
        mend()
    fits = ended == 2 and not left and job.quiet()
    return Row(name, 0, seconds, f"exit {ended}: {job.error()}", None, None, 0.0, fits)


KINDS: dict[str, Meet] = {
    "SIGTERM to the driver": partial(_signalled, number=signal.SIGTERM, code=143, status="KILLED"),
    "SIGTERM to the driver and its JVM": partial(
        _signalled, number=signal.SIGTERM, code=143, status="KILLED", group=True
    ),
    "SIGTERM while workers start": _signalled_at_start,
    "Ctrl-C": partial(_signalled, number=signal.SIGINT, code=130, status="KILLED", group=True),
    "kill -9 of the driver": partial(_signalled, number=signal.SIGKILL, code=-9, status="RUNNING"),
    "kill -9 of the JVM of the driver": _jvm_killed,
    "driver killed between registering and tagging": _killed_while_registering,
    "two at one run": _two_at_one_run,
    "an executor killed on a standalone cluster": _executor_killed,
    "disk full": partial(_disk, spoil=full, logs_apart=False),
    "output turns read-only": partial(_disk, spoil=read_only, logs_apart=True),
    "output read-only at the start": _read_only_at_start,
    "MLflow down at the start": _no_mlflow_at_start,
    "MLflow down in the middle": partial(_no_mlflow_later, back=True),
    "MLflow down at the end": partial(_no_mlflow_later, back=False),
}


def rehearse(folder: Path, seeds: Sequence[int], only: Sequence[str]) -> list[Row]:
    """One job after the other."""
    jobs, rows = Jobs(folder), []
    say(f"undisturbed: {jobs.seconds:.0f} s, {jobs.epochs} epochs")
    for seed in seeds:
        for name in only:
            epoch = random.Random(f"{seed} {name}").randint(2, 5)
            try:
                rows.append(met(name, epoch, partial(KINDS[name], jobs, name, epoch)))
            finally:
                jobs.clear()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos_jobs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--table", type=Path, help="file that the table is written to")
    parser.add_argument("--folder", type=Path, help="a new folder, kept; a temporary one where left out")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        rows = rehearse(folder.resolve(), given.seeds, given.only)
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    end(rows, given.table)


if __name__ == "__main__":
    main()
