"""Launch: start the workers on Spark through ``horovod.spark.run`` and see them through to an end.

What Horovod leaves open is closed here: too few free slots are found before it waits ten minutes for them; a
worker's failure comes back as one message with rank, cause and log; peers that hang because of it are ended;
a worker that left without a result is a failure, whatever its exit code; SIGINT and SIGTERM let the workers write a
checkpoint before they end.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation import access
from foundation.redaction import redact
from foundation.settings import UserError
from hinet_model.training import worker
from hinet_model.training.control import package_check
from hinet_model.training.control.delivery import ReportDelivery
from hinet_model.training.control.monitor import RunMonitor, TrainingError
from hinet_model.training.control.report_server import ReportServer
from hinet_model.training.control.reports import Report
from hinet_model.training.control.signals import KeptSignals
from hinet_model.training.control.store_check import token_at
from hinet_model.training.control.watchdog import PhaseLimits
from hinet_model.training.job import TrainingJob

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

Entry = Callable[[TrainingJob], dict[str, Any]]

MEMORY_KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
"""Environment of whoever trains: buffers of tens of MB handed back to the system and taken anew at every step cost page
faults."""
_GRACE_SECONDS = 10.0
"""After the abort command, how long workers have before Spark is told to end their processes."""

_STOP_SECONDS = 4.0
"""After a signal, how long workers have to stop by themselves; five seconds later Horovod kills those that are left."""


class LaunchError(UserError):
    """The workers cannot be started as asked."""


def run(
    spark: SparkSession,
    job: TrainingJob,
    on_report: Callable[[Report], None],
    entry: Entry = worker.main,
) -> list[dict[str, Any]]:
    """Train on Spark tasks; blocks until the end. Call it from the main thread.

    Args:
        spark: The session whose executors run the workers.
        job: What to train; the address of the report channel is filled in here.
        on_report: Sees the workers' reports as they come, from another thread, one at a time; what it raises is
            logged and does not end the run.
        entry: What each worker runs. It is found by import on the workers, so it lives in a package that is
            installed there.

    Returns:
        What each worker returned, in rank order.

    Raises:
        LaunchError: Not enough free task slots, or settings of Spark that break a training run.
        PackageError: Executors do not run the driver's code.
        StoreCheckError: The driver cannot write to the place of checkpoints.
        TrainingError: A worker failed; names rank, cause and log.
        KeyboardInterrupt: SIGINT came; the workers are gone, after a last checkpoint if they could write one.
        SystemExit: As well, for SIGTERM.
    """
    import horovod.spark

    num_workers = job.settings.training.workers
    check_cluster(spark, num_workers)
    package_check.check(spark, task_slots(spark))
    checked = ExitStack()
    token = checked.enter_context(token_at(job.checkpoint_folder))
    watch = job.settings.watchdog
    delivery = ReportDelivery(on_report)
    monitor = RunMonitor(num_workers, delivery.put, PhaseLimits.of_settings(watch), watch.reconnect_seconds)
    conf = spark.sparkContext.getConf()
    server = ReportServer(conf.get("spark.driver.host", "127.0.0.1") or "127.0.0.1", monitor.receive)
    job = replace(job, report_address=server.address, report_key=server.key, store_token=token)
    output = _Tail(Path(job.log_folder) / "workers.log")
    ended = threading.Event()
    with KeptSignals() as signals, job_fails_quietly():
        guard = threading.Thread(target=_guard, args=(monitor, server, ended, signals), daemon=True)
        guard.start()
        try:
            results: list[Any] = horovod.spark.run(
                entry,
                args=(job,),
                num_proc=num_workers,
                env=worker_environment(job),
                stdout=output,
                stderr=output,
                start_timeout=int(watch.start_seconds),
                executable=conf.get("spark.pyspark.python")
                or os.environ.get("PYSPARK_PYTHON")
                or sys.executable,
                verbose=0,
            )
        except Exception as error:
            signals.throw(error)
            # The workers' own account is better than Horovod's, which knows an exit code; it may still be on
            # its way.
            time.sleep(0.5)
            cause = monitor.error()
            if cause is None:
                cause = TrainingError(
                    f"the workers ended without a report: {error}\n{output.tail()}".rstrip(), lost=True
                )
            raise cause from error
        finally:
            ended.set()
            guard.join()
            server.close()
            delivery.close()
            output.close()
            checked.close()
    signals.throw()
    for rank, result in enumerate(results):
        if not isinstance(result, dict) or result.get("kind") != "finished":
            raise TrainingError(
                f"rank {rank} of {num_workers} ended without a result (exit within a worker?)\n{output.tail()}"
            )
        if result["told_to_end"]:
            raise TrainingError(
                f"rank {rank} of {num_workers} was told to end by SIGTERM; all workers have stopped after a checkpoint",
                lost=True,
            )
    return results


@contextlib.contextmanager
def job_fails_quietly() -> Iterator[None]:
    """Keep the traceback of Horovod's own thread from the terminal: its Spark job fails with the workers.

    What ended them is told by whoever launched them, in short.
    """
    before = threading.excepthook

    def hook(raised: threading.ExceptHookArgs) -> None:
        if raised.thread is not None and raised.thread.name.endswith("(run_spark)"):
            logger.debug("the workers' Spark job failed: %s", raised.exc_value)
        else:
            before(raised)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _guard(monitor: RunMonitor, server: ReportServer, ended: threading.Event, signals: KeptSignals) -> None:
    """End the workers: in order where a signal asks for it, at once where one failed and its peers may hang."""
    while not ended.wait(0.2):
        if signals.came is not None:
            _stop(monitor, server, ended, signals)
            return
        monitor.find_silent()
        if monitor.failed:
            break
        if monitor.nobody_works():
            server.command("nobody works")
    else:
        return
    monitor.close()
    server.command("abort")
    # A stopped process hears no command.
    if not ended.wait(_GRACE_SECONDS) and signals.end_processes():
        logger.warning("workers did not end by themselves; Spark ends their processes")


def _stop(monitor: RunMonitor, server: ReportServer, ended: threading.Event, signals: KeptSignals) -> None:
    """Ask the workers for a checkpoint and to end; kill what is left after some seconds."""
    logger.warning("%s: workers write a checkpoint and end", signals.came.name if signals.came else "")
    monitor.close()
    server.command("stop")
    if not ended.wait(_STOP_SECONDS):
        # Workers take SIGTERM as the same request, and have until the SIGKILL that follows it.
        signals.end_processes()


def check_cluster(spark: SparkSession, num_workers: int) -> None:
    """Refuse what would make Horovod wait in vain, or restart half a run.

    Raises:
        LaunchError: Names the setting and the value it should have.
    """
    conf = spark.sparkContext.getConf()
    slots, task_cpus = task_slots(spark), int(conf.get("spark.task.cpus", "1") or 1)
    if slots < num_workers:
        raise LaunchError(
            f"training.workers is {num_workers}, but Spark has {slots} task slots of {task_cpus} cores "
            f"(spark.task.cpus); expected at least as many: start with `--master local[{num_workers * task_cpus}]`, "
            "add executors, or lower training.workers or spark.task.cpus"
        )
    for key in ("spark.speculation", "spark.dynamicAllocation.enabled"):
        if (conf.get(key, "false") or "").lower() == "true":
            raise LaunchError(
                f"{key} is true; expected false: a training task must run once, where it started"
            )


def task_slots(spark: SparkSession) -> int:
    """Tasks that Spark can run at once: of each executor as many as ``spark.task.cpus`` and GPUs leave room for.

    The scheduler's own count, by which it judges barrier stages. ``defaultParallelism`` counts cores, and is whatever
    ``spark.default.parallelism`` says.
    """
    context = spark.sparkContext._jsc.sc()
    return int(context.maxNumConcurrentTasks(context.resourceProfileManager().defaultResourceProfile()))


def worker_environment(job: TrainingJob) -> dict[str, str]:
    """Environment of the workers, added to that of Spark's tasks."""
    training = job.settings.training
    env = {
        **access.environment(),
        # Which tensors Horovod would fuse depends on timing, and with it the order of sums; the exchange has
        # fixed buckets instead.
        "HOROVOD_FUSION_THRESHOLD": "0",
        "HOROVOD_CYCLE_TIME": "0.2",
        "HOROVOD_STALL_CHECK_TIME_SECONDS": str(int(max(job.settings.watchdog.stall_seconds, 10))),
        **MEMORY_KEPT,
        "PYTHONUNBUFFERED": "1",
    }
    if training.threads_per_worker is not None:
        env["OMP_NUM_THREADS"] = str(training.threads_per_worker)
    else:
        # Spark sets 1 (spark.task.cpus); the worker itself decides from the cores of its host.
        env["OMP_NUM_THREADS"] = ""
    return env


class _Tail(io.TextIOBase):
    """Takes the workers' output into a file, and remembers its end for the error message."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("a", encoding="utf-8", errors="replace")
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        # Horovod's threads write here, late ones after the end; a sink that raises would end a worker.
        with self._lock, contextlib.suppress(OSError):
            if not self._file.closed:
                self._file.write(redact(text))
                self._file.flush()
        return len(text)

    def tail(self, lines: int = 20) -> str:
        return "\n".join(self._path.read_text(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        with self._lock:
            self._file.close()
