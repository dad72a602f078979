"""Spark clusters of two workers on this machine, authenticated and encrypted: standalone, or in each driver."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyspark

from hinet_model.training.control.package_check import PACKAGES

ROOT = Path(__file__).parents[1]
_START_SECONDS = 60.0
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


class Cluster:
    """A running standalone cluster.

    Args:
        folder: Holds its settings, logs, and the folders of its executors.
        master: ``spark://host:port``, or ``local-cluster[...]``.
        processes: Of master and workers, where they are not threads of each driver.
        home: Spark's, in whose ``work`` executors have their folders, where it is no worker's own.
    """

    def __init__(
        self,
        folder: Path,
        master: str,
        processes: Sequence[subprocess.Popen[bytes]] = (),
        home: Path | None = None,
    ) -> None:
        self.folder, self.master, self.processes, self._home = folder, master, list(processes), home

    def submit(self, job: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a job by spark-submit, from an empty folder."""
        return self.run(self.command(job, *arguments))

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command as drivers are run, from an empty folder."""
        return subprocess.run(
            command,
            cwd=self.driver_folder(),
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=die_with_parent,
        )

    def command(self, job: str, *arguments: str) -> list[str]:
        """The command that submits a job."""
        submit = str(Path(pyspark.__file__).parent / "bin" / "spark-submit")
        options = ["--master", self.master, "--properties-file", str(self.folder / "spark.conf")]
        archive = ["--archives", f"{self.folder / 'hinet.zip'}#hinet"]
        return [submit, *options, *archive, job, *arguments]

    def driver_folder(self) -> Path:
        """An empty current directory for a driver."""
        return Path(tempfile.mkdtemp(prefix="driver-", dir=self.folder))

    def environment(self) -> dict[str, str]:
        """Of a driver: the interpreter of this process, and this checkout."""
        home = {} if self._home is None else {"SPARK_HOME": str(self._home)}
        return {
            **os.environ,
            **home,
            "PYTHONPATH": str(ROOT),
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_DRIVER_PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
        }

    def secret(self) -> str:
        """What all of its processes have to know."""
        settings = (self.folder / "spark.conf").read_text(encoding="utf-8")
        pairs = dict(line.split(maxsplit=1) for line in settings.splitlines() if line and line[0] != "#")
        return pairs["spark.authenticate.secret"]

    def executors(self) -> dict[str, int]:
        """How many executors, each in a folder of its own, every application has had."""
        workers = self.folder.glob("worker-*") if self._home is None else [self._home / "work"]
        folders = [path for worker in workers for path in worker.glob("app-*/*") if path.is_dir()]
        return dict(Counter(path.parent.name for path in folders))


@contextmanager
def local_cluster(folder: Path, workers: int = 2) -> Iterator[Cluster]:
    """Settings of a cluster that each driver starts in its own JVM, with executors of one core that are processes."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_settings(folder)
    archive_package(folder / "hinet.zip")
    home = folder / "spark"
    home.mkdir()
    for part in Path(pyspark.__file__).parent.iterdir():
        if part.name != "work":
            (home / part.name).symlink_to(part)
    yield Cluster(folder, f"local-cluster[{workers},1,2048]", home=home)


@contextmanager
def standalone_cluster(folder: Path, workers: int = 2) -> Iterator[Cluster]:
    """Start a master and workers of one core each; they are gone when the block ends, and when this process does."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_settings(folder)
    archive_package(folder / "hinet.zip")
    processes: list[subprocess.Popen[bytes]] = []
    try:
        master = ["master.Master", "--host", "127.0.0.1", "--port", "0", "--webui-port", "0"]
        processes.append(_start(folder, "master", master))
        url = _wait_for(folder / "master.log", r"Starting Spark master at (spark://\S+)", processes[0])
        for place in range(workers):
            own = folder / f"worker-{place}"
            own.mkdir(exist_ok=True)
            worker = ["worker.Worker", "--host", "127.0.0.1", "--webui-port", "0", "--cores", "1"]
            worker += ["--memory", "1g", "--work-dir", str(own), url]
            processes.append(_start(folder, f"worker-{place}", worker))
        for place, process in enumerate(processes[1:]):
            _wait_for(folder / f"worker-{place}.log", r"(Successfully registered) with master", process)
        yield Cluster(folder, url, processes)
    finally:
        for process in reversed(processes):
            _end(process)


def archive_package(file: Path) -> None:
    """Write the packages that executors need into a zip."""
    with tempfile.TemporaryDirectory() as folder:
        for package in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / package, Path(folder) / package, ignore=ignored)
        shutil.make_archive(str(file.with_suffix("")), "zip", folder)


def _write_settings(folder: Path) -> None:
    lines = (ROOT / "conf" / "spark" / "cluster.conf").read_text(encoding="utf-8")
    settings = {
        "spark.authenticate": "true",
        "spark.authenticate.secret": secrets.token_hex(16),
        "spark.network.crypto.enabled": "true",
        "spark.io.encryption.enabled": "true",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": "1g",
        "spark.executor.memory": "768m",
        "spark.executor.cores": "1",
        "spark.executorEnv.PYTHONPATH": "hinet",
        "spark.executorEnv.OMP_NUM_THREADS": "1",
        "spark.pyspark.python": sys.executable,
        "spark.sql.shuffle.partitions": "4",
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    file = folder / "spark.conf"
    file.touch(mode=0o600)
    file.write_text(lines + "".join(f"{key} {value}\n" for key, value in settings.items()), encoding="utf-8")


def _start(folder: Path, name: str, command: list[str]) -> subprocess.Popen[bytes]:
    spark_class = str(Path(pyspark.__file__).parent / "bin" / "spark-class")
    kind, *options = command
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [
                spark_class,
                f"org.apache.spark.deploy.{kind}",
                "--properties-file",
                str(folder / "spark.conf"),
                *options,
            ],
            cwd=folder,
            env={
                **os.environ,
                "SPARK_DAEMON_MEMORY": "256m",
                "SPARK_NO_DAEMONIZE": "1",
                "SPARK_LOCAL_IP": "127.0.0.1",
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def words_of(process: psutil.Process) -> list[str]:
    """The command of a process; none of one that has just ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # a zombie is one
        return []


def die_with_parent() -> None:
    """Of a process that is started: it is told to end when this one has."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)


def _wait_for(log: Path, pattern: str, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(pattern, log.read_text(errors="replace"))
        if found:
            return found.group(1)
        time.sleep(0.1)
    raise RuntimeError(f"{log}: no '{pattern}' within {_START_SECONDS:g} s\n{log.read_text()[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
