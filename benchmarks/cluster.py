"""``make cluster``: a Spark standalone cluster on this machine, and all five jobs on it by spark-submit.

examples:
    python -m benchmarks.cluster
    python -m benchmarks.cluster --folder /data/rehearsal

A master and two workers, on loopback, from the jars that PySpark brings; each worker runs one executor of one core in a
folder of its own. Driver and executors share storage, and no current directory; the package travels as an archive.
Spark authenticates all of them and encrypts what they say. What was trained there is then trained by a local session
from the same table: the losses of both must be the same. The cluster ends with the process, whatever ends it.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyspark
from mlflow import MlflowClient

from benchmarks.small_flow import LENIENT, write_flow
from hinet_model.training.control.package_check import PACKAGES

ROOT = Path(__file__).parents[1]
_START_SECONDS = 60.0
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


class Cluster:
    """A running standalone cluster.

    Args:
        folder: Holds its settings, logs, and the folders of its executors.
        master: ``spark://host:port``.
        processes: Of master and workers.
    """

    def __init__(self, folder: Path, master: str, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self.folder, self.master, self.processes = folder, master, list(processes)

    def submit(self, job: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a job by spark-submit, from an empty folder."""
        return subprocess.run(
            self.command(job, *arguments),
            cwd=self.driver_folder(),
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
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
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_DRIVER_PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
        }


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
            preexec_fn=_die_with_parent,
        )


def _die_with_parent() -> None:
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


def losses_of(tracking_uri: str, run_name: str) -> list[float]:
    """Training loss of each epoch of the run of this name."""
    client = MlflowClient(tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    run = client.search_runs(experiments, f"attributes.run_name = '{run_name}'")[0]
    return [point.value for point in client.get_metric_history(run.info.run_id, "train/loss")]


def rehearse(folder: Path) -> None:
    """All five jobs on a cluster, training again by a local session, and the comparison."""
    flow = write_flow(folder / "flow")
    config = ["--config", str(flow.config)]
    jobs = [
        ("build_features", ["--contract", str(flow.contract), "--warehouse", str(flow.warehouse)]),
        ("train", [*config, "--set", "mlflow.run_name=cluster"]),
        ("evaluate", config),
        ("promote", [*config, *LENIENT]),
        ("score", config),
    ]
    with standalone_cluster(folder / "cluster") as cluster:
        for name, arguments in jobs:
            started = time.monotonic()
            done = cluster.submit(str(ROOT / "jobs" / f"{name}.py"), *arguments)
            sys.stdout.write(f"{name:<16}{'ok' if done.returncode == 0 else done.returncode}")
            sys.stdout.write(f"{time.monotonic() - started:8.1f} s\n")
            sys.stdout.flush()
            if done.returncode:
                raise SystemExit(f"{name} on the cluster:\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
        executors = sorted(path for path in (folder / "cluster").glob("worker-*/app-*/*") if path.is_dir())
        folders = len({path.parents[1] for path in executors})
        sys.stdout.write(f"executors ran in {folders} folders\n")
        if folders != 2:
            raise SystemExit("expected two executors, each in a folder of its own")
    local = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "train.py"), *config, "--set", "mlflow.run_name=local"],
        cwd=cluster.driver_folder(),
        env=cluster.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if local.returncode:
        raise SystemExit(f"train, locally:\n{local.stdout[-3000:]}\n{local.stderr[-5000:]}")
    there, here = (losses_of(flow.tracking_uri, name) for name in ("cluster", "local"))
    sys.stdout.write(f"losses on the cluster  {there}\nlosses of a local run  {here}\n")
    if there != here or not there:
        raise SystemExit("the losses differ")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, help="a new folder, kept; a temporary one where left out")
    given = parser.parse_args()
    if given.folder is not None:
        rehearse(given.folder.resolve())
        return
    with tempfile.TemporaryDirectory() as folder:
        rehearse(Path(folder))


if __name__ == "__main__":
    main()
