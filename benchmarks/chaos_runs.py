"""Runs of whole jobs that `benchmarks.chaos_jobs` disturbs: started, watched, gone on with, and judged."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from mlflow import MlflowClient

from benchmarks.chaos import Row, build
from benchmarks.small_flow import SmallFlow, write_flow
from benchmarks.spark_clusters import ROOT, Cluster, words_of
from foundation.settings import load_settings
from hinet_model.settings import RunSettings
from hinet_model.tracking.tracker import Tracker
from hinet_model.training import checkpoint
from hinet_model.training.position import Position

_SECONDS = 300.0
"""The longest that anything here takes: beyond, it hangs."""
_WORKER = "horovod.spark.task.gloo_exec_fn"


def _hears_ctrl_c() -> None:
    """Whoever is started in the background has it ignored, with all that he starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Job:
    """A training job that runs, and what it has said.

    Args:
        process: Its driver, the first of a group of its own.
        output: File that takes stdout and stderr.
        cluster: Where its executors are, if they are not the driver's own.
    """

    process: subprocess.Popen[bytes]
    output: Path
    cluster: Cluster | None = None
    workers: list[psutil.Process] = field(default_factory=list)
    others: list[psutil.Process] = field(default_factory=list)

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def error(self) -> str:
        """The first line of its message."""
        lines = [line for line in self.said.splitlines() if line.startswith("error: ")]
        return lines[0].removeprefix("error: ") if lines else "nothing was said"

    def logs(self) -> Path:
        """Folder of its workers' logs, as it says."""
        found = re.search(r"logs in (\S+)", self.said)
        assert found is not None, self.said
        return Path(found.group(1))

    def quiet(self) -> bool:
        """Whether it has spared its user tracebacks."""
        return "Traceback" not in self.said

    def wait_for(self, pattern: str) -> None:
        """Wait until it has said something; then its processes are known."""
        deadline = time.monotonic() + _SECONDS
        while not re.search(pattern, self.said):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no '{pattern}' in what the job said:\n{self.said[-3000:]}")
            time.sleep(0.05)
        self._look()

    def jvm(self) -> psutil.Process:
        """The Java that the driver has started."""
        return next(one for one in psutil.Process(self.process.pid).children() if "java" in one.name())

    def _look(self) -> None:
        roots = [self.process] if self.cluster is None else [self.process, *self.cluster.processes]
        for root in roots:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(root.pid).children(recursive=True):
                    (self.workers if _WORKER in words_of(child) else self.others).append(child)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Its workers stand still while the block runs; they would be through before anything else has begun."""
        for worker in self.workers:
            worker.suspend()
        try:
            yield
        finally:
            for worker in self.workers:
                worker.resume()

    def seconds_until_gone(self) -> float:
        """From now on, until no worker is left."""
        assert self.workers, "no worker was seen"
        started = time.monotonic()
        psutil.wait_procs(self.workers, timeout=120)
        return time.monotonic() - started

    def end(self) -> tuple[int, int]:
        """Wait for its end: exit code, and how many of its processes have outlived it for long."""
        while self.process.poll() is None and not self.workers:
            self._look()
            time.sleep(0.2)
        code = self.process.wait(_SECONDS)
        ours = [*self.workers, *([] if self.cluster else self.others)]
        return code, len(psutil.wait_procs(ours, timeout=20)[1])


class Jobs:
    """Starts training jobs on one small table.

    Args:
        folder: Holds everything.
        epochs: Of each.
    """

    def __init__(self, folder: Path, epochs: int = 12) -> None:
        self.flow: SmallFlow = write_flow(folder / "flow", epochs=epochs, restarts=2)
        self.folder, self.epochs = folder, epochs
        self._started: list[Job] = []
        build(self.flow)
        began = time.monotonic()
        job = self.start("undisturbed")
        if job.end()[0]:
            raise RuntimeError(f"the undisturbed run:\n{job.said[-4000:]}")
        self.seconds = time.monotonic() - began
        self._weights, position = self._state("undisturbed")
        self._rows = [entry["rows"] for entry in position.history]

    def start(self, name: str, *arguments: str, code: str = "", cluster: Cluster | None = None) -> Job:
        """Start a job; its MLflow run has this name."""
        job = str(ROOT / "jobs" / "train.py")
        given = ["--config", str(self.flow.config), "--set", f"mlflow.run_name={name}", *arguments]
        command = [sys.executable, *(["-c", code] if code else []), job, *given]
        if cluster is not None:
            command = cluster.command(job, *given)
        output = self.folder / f"output-{time.time_ns()}.txt"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with output.open("wb") as stream:
            process = subprocess.Popen(
                command,
                cwd=self.flow.folder if cluster is None else cluster.driver_folder(),
                env=environment if cluster is None else cluster.environment(),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_hears_ctrl_c,
            )
        self._started.append(Job(process, output, cluster))
        return self._started[-1]

    def clear(self) -> None:
        """End what a fault has left behind."""
        for job in self._started:
            job.process.kill()
            for process in [*job.workers, *([] if job.cluster else job.others)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            job.process.wait()
        self._started = []

    def run_of(self, name: str, uri: str = "") -> tuple[str, str]:
        """Id and status of the MLflow run of this name."""
        client = MlflowClient(uri or self.flow.tracking_uri)
        experiments = [one.experiment_id for one in client.search_experiments()]
        run = client.search_runs(experiments, f"attributes.run_name = '{name}'")[0]
        return run.info.run_id, run.info.status

    def _state(
        self, name: str, uri: str = "", checkpoints: Path | None = None
    ) -> tuple[dict[str, torch.Tensor], Position]:
        folder = checkpoints or self.flow.folder / "checkpoints"
        newest = checkpoint.latest(str(folder / self.run_of(name, uri)[0]))
        assert newest is not None
        state, position = checkpoint.read(newest)
        return state["model"], position

    def row(
        self,
        name: str,
        epoch: int,
        noticed: float | None,
        happened: str,
        fits: bool,
        of: str = "",
        uri: str = "",
        checkpoints: Path | None = None,
    ) -> Row:
        """Judge what a run has ended with.

        Args:
            name: Of the kind, and of the run unless ``of`` says another.
            epoch: After which the fault came.
            noticed: Seconds, if there was something to notice.
            happened: In words.
            fits: Whether that is as it must be.
            of: Name of the run.
            uri: Of the MLflow that it is in, where that is another.
            checkpoints: Where they are, if elsewhere.
        """
        weights, position = self._state(of or name, uri, checkpoints)
        equal = weights.keys() == self._weights.keys()
        equal = equal and all(torch.equal(weights[key], value) for key, value in self._weights.items())
        found = [entry["rows"] for entry in position.history]
        pairs = (
            zip(found, self._rows, strict=True) if len(found) == len(self._rows) else [(0, sum(self._rows))]
        )
        rows = sum(abs(one - other) for one, other in pairs)
        return Row(name, epoch, noticed, happened, rows, equal, 0.0, fits and equal and rows == 0)

    def go_on(self, name: str, *arguments: str) -> None:
        """Resume a run to its end."""
        job = self.start(name, "--resume", self.run_of(name)[0], *arguments)
        if job.end()[0]:
            raise RuntimeError(f"--resume of '{name}':\n{job.said[-4000:]}")

    def deliver(self, *settings: str) -> None:
        """Begin and end a run of its own, as the next job does: it delivers what waits for this MLflow."""
        overrides = [word for word in settings if word != "--set"]
        given = load_settings(RunSettings, self.flow.config, [*overrides, "mlflow.run_name=the next one"])
        tracker = Tracker(given.mlflow, given.checkpoint.local_folder)
        tracker.start_run()
        tracker.finish()


class Server:
    """An MLflow server on loopback that can be killed and started again.

    Args:
        folder: Of its database and artifacts.
    """

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self.uri = folder, f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.settings = ["--set", f"mlflow.tracking_uri={self.uri}", "--set", "mlflow.artifact_location=null"]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = ["server", "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self._folder,
            )
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.2)
        raise RuntimeError(
            f"MLflow's server does not answer:\n{(self._folder / 'server.log').read_text()[-2000:]}"
        )

    def kill(self) -> None:
        """Kill it with all of its processes."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextmanager
def mlflow_server(folder: Path) -> Iterator[Server]:
    """A server that answers, gone at the end of the block."""
    shutil.rmtree(folder, ignore_errors=True)
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
