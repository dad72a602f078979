"""Worker: what one Horovod process does: it enters the world, trains, and leaves last words whatever happens."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch

from foundation.job import LOG_FORMAT
from foundation.redaction import RedactingFormatter
from foundation.settings import UserError
from hinet_model.training.assemble import assemble
from hinet_model.training.callbacks import Callback
from hinet_model.training.control import store_check
from hinet_model.training.control.monitor import COLLECTIVE_ERRORS
from hinet_model.training.control.reports import ReportClient, Reporter
from hinet_model.training.control.watchdog import PhaseLimits, Progress, Watchdog
from hinet_model.training.dist.world import HorovodWorld, World, WorldError
from hinet_model.training.job import TrainingJob
from hinet_model.training.run import NonFiniteLossError

logger = logging.getLogger(__name__)

_OUTSIDE = (UserError, OSError, MemoryError, NonFiniteLossError, WorldError, torch.OutOfMemoryError)
"""Errors that come of settings, data or machines: where in the code they were raised helps nobody mend them."""


def main(job: TrainingJob, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Entry of a Horovod worker: train, report, and leave last words whatever happens.

    Args:
        job: What to train.
        callbacks: What else shall happen in the run.

    Returns:
        The ``finished`` report, the same on all ranks but for this worker's own figures.
    """
    rank = int(os.environ["HOROVOD_RANK"])
    log_path = Path(job.log_folder) / f"rank-{rank}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress()
    assert job.report_address is not None
    watch = job.settings.watchdog
    reporter = ReportClient(
        job.report_address,
        job.report_key,
        rank,
        watch.heartbeat_seconds,
        progress.state,
        watch.reconnect_seconds,
    )
    with log_path.open("a") as log, _logging_to(log):
        reporter.send("hello", log=f"{socket.gethostname()}:{log_path}", pid=os.getpid())
        told_to_end = _stopping_at_sigterm(reporter)
        watchdog = Watchdog(progress, reporter, PhaseLimits.of_settings(watch), log)
        try:
            # Horovod first: a failure before its start takes half a minute to surface.
            world = HorovodWorld(job.settings.training.device)
            store_check.answer(job.checkpoint_folder, job.store_token, rank)
            result = {**train(job, world, reporter, progress, callbacks), "told_to_end": told_to_end.is_set()}
            progress.enter("exchange")
            world.close()
        except BaseException as error:
            logger.exception("worker failed")
            reporter.send(
                "failed",
                error=type(error).__name__,
                message=str(error),
                traceback="" if _lies_outside(error) else traceback.format_exc(limit=-8),
            )
            raise
        finally:
            watchdog.close()
        reporter.send(**result)
    reporter.close()
    return result


def _lies_outside(error: BaseException) -> bool:
    """Whether an error's message says all: a lost peer is met with wherever one waits for it. The log has the rest."""
    return isinstance(error, _OUTSIDE) or type(error).__name__ in COLLECTIVE_ERRORS


def train(
    job: TrainingJob,
    world: World,
    reporter: Reporter,
    progress: Progress,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train a model on one worker of ``world``.

    Returns:
        ``{"kind": "finished", "epochs", "global_step", "best_epoch", "plan_hash", "peak_memory_bytes", ...}``.

    Raises:
        CheckpointError: The checkpoint to resume from belongs to another run.
        WorldError: Workers disagree about the plan or the initial weights.
    """
    return assemble(job, world, reporter, progress, callbacks).to_the_end()


def _stopping_at_sigterm(reporter: ReportClient) -> threading.Event:
    """Take SIGTERM, of an executor that ends or of a driver that is gone, as the request to write a checkpoint and end.

    Returns:
        Set when it came.
    """
    came = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        came.set()
        reporter.stop_requested = True

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
    return came


@contextmanager
def _logging_to(log: IO[str]):  # type: ignore[no-untyped-def]
    """A worker process is an entry point of its own: its log goes to its file."""
    handler = logging.StreamHandler(log)
    handler.setFormatter(RedactingFormatter(LOG_FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        sys.stdout.flush()
