"""Faults: what `benchmarks.chaos` does to a worker, at moments of its own; each kind is a line and a function.

A worker finds the fault that it is to meet with in a file beside its logs, and leaves a mark there each time it has.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from foundation import stores
from hinet_model.data.batch import Batch
from hinet_model.training import checkpoint, checkpoint_files, worker
from hinet_model.training.callbacks import Callback
from hinet_model.training.job import TrainingJob
from hinet_model.training.run import Run
from hinet_model.training.statistics import StepMeasures

Outcome = Literal["goes on by itself", "ends, goes on by --resume", "is not disturbed"]


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    Args:
        act: Name of the function below that does it.
        rank: Whom it happens to.
        outcome: What must come of it.
        phase: In which phase of the step; right after the step where left out.
        before: Before the worker has begun.
    """

    act: str
    rank: int
    outcome: Outcome
    phase: str | None = None
    before: bool = False


_KILLS = {
    f"kill -9 of rank {rank} in {name}": Kind("kill", rank, "goes on by itself", phase)
    for name, phase in {
        "data": "data",
        "compute": "compute",
        "exchange": "exchange",
        "validation": "validate",
        "checkpoint": "checkpoint",
    }.items()
    for rank in (0, 1)
}
KINDS: dict[str, Kind] = {
    **_KILLS,
    "kill -9 of rank 0 before the manifest": Kind("kill_before_manifest", 0, "goes on by itself"),
    "SIGSTOP of rank 1": Kind("stop", 1, "goes on by itself"),
    "SIGTERM of rank 1": Kind("terminate", 1, "goes on by itself"),
    "exit 0 of rank 1": Kind("leave", 1, "goes on by itself"),
    "a raise before init": Kind("refuse", 1, "goes on by itself", before=True),
    "a raise after init": Kind("refuse", 1, "ends, goes on by --resume"),
    "a slow starter": Kind("dawdle", 1, "is not disturbed", before=True),
    "newest checkpoint corrupt, rank 1 killed": Kind("corrupt_and_kill", 1, "goes on by itself"),
    "a data file vanished": Kind("vanish", 0, "ends, goes on by --resume"),
    "a data file truncated": Kind("truncate", 0, "ends, goes on by --resume"),
    "a data file replaced under its name": Kind("replace", 0, "ends, goes on by --resume"),
    "disk full (limit of a file's size)": Kind("fill_disk", 0, "ends, goes on by --resume"),
    "report port scanned by a stranger": Kind("scan", 1, "is not disturbed"),
    "the clock jumps by a day": Kind("jump", 0, "is not disturbed"),
    "memory limit hit": Kind("limit_memory", 1, "ends, goes on by --resume"),
}


@dataclass(frozen=True)
class Order:
    """A fault for one run, as workers find it.

    Args:
        kind: Name among `KINDS`.
        steps: After which steps, once each, or from which on in its phase.
        data_file: A file of the training split.
    """

    kind: str
    steps: tuple[int, ...]
    data_file: str

    def write(self, job: TrainingJob) -> None:
        """Leave it for the workers of a job."""
        file = _folder(job) / "fault.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")


def happened_at(job: TrainingJob) -> list[float]:
    """When the fault has happened, by the system's clock, the first time first."""
    return sorted(mark.stat().st_mtime for mark in _folder(job).glob("happened-*"))


def _folder(job: TrainingJob) -> Path:
    return Path(job.log_folder).parent / "fault"


def main(job: TrainingJob) -> dict[str, Any]:
    """Entry of a worker that meets with the fault that lies beside its logs."""
    content = json.loads((_folder(job) / "fault.json").read_text(encoding="utf-8"))
    order = Order(content["kind"], tuple(content["steps"]), content["data_file"])
    kind, rank = KINDS[order.kind], int(os.environ["HOROVOD_RANK"])
    if rank != kind.rank:
        return worker.main(job)
    act = partial(globals()[f"_{kind.act}"], job, order)
    if kind.before:
        _once(job, order.steps[0], act)
        return worker.main(job)
    return worker.main(job, [_Meets(job, order, act)])


def _mark(job: TrainingJob, step: int) -> Path:
    return _folder(job) / f"happened-{step}"


def _once(job: TrainingJob, step: int, act: Callable[[], None]) -> None:
    try:
        _mark(job, step).touch(exist_ok=False)
    except FileExistsError:
        return
    act()


class _Meets(Callback):
    """Does it, after its next step or in its phase."""

    def __init__(self, job: TrainingJob, order: Order, act: Callable[[], None]) -> None:
        self._job, self._order, self._act = job, order, act
        self._waits = False
        left = [step for step in order.steps if not _mark(job, step).exists()]
        self._step = min(left, default=None)

    def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
        step = self._step
        if step is None or run.state.global_step < step or self._waits:
            return
        phase, enter = KINDS[self._order.kind].phase, run.progress.enter
        self._waits = True
        if phase is None:
            _once(self._job, step, self._act)
            return

        def entering(name: str) -> None:
            enter(name)
            if name == phase:
                _once(self._job, step, self._act)

        vars(run.progress)["enter"] = entering


def _kill(job: TrainingJob, order: Order) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_before_manifest(job: TrainingJob, order: Order) -> None:
    """All files of the next checkpoint are there, and nothing vouches for them."""
    save = checkpoint_files.save_text

    def saving(file: str, content: dict[str, Any]) -> dict[str, Any]:
        save(file, content)
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    vars(checkpoint_files)["save_text"] = saving


def _stop(job: TrainingJob, order: Order) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _terminate(job: TrainingJob, order: Order) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _leave(job: TrainingJob, order: Order) -> None:
    os._exit(0)


def _refuse(job: TrainingJob, order: Order) -> None:
    raise ValueError("a fault that was planted")


def _dawdle(job: TrainingJob, order: Order) -> None:
    time.sleep(15)


def _corrupt_and_kill(job: TrainingJob, order: Order) -> None:
    newest = None
    while newest is None:  # the first one may still be written
        newest = checkpoint.latest(job.checkpoint_folder)
        time.sleep(0.05)
    file = Path(stores.join(newest, "state.pt"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    _kill(job, order)


def _vanish(job: TrainingJob, order: Order) -> None:
    Path(order.data_file).unlink()


def _truncate(job: TrainingJob, order: Order) -> None:
    file = Path(order.data_file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _replace(job: TrainingJob, order: Order) -> None:
    """Another table of the same columns takes the file's place: half of its rows."""
    import pyarrow.parquet as pq

    table = pq.read_table(order.data_file)
    Path(order.data_file).unlink()
    pq.write_table(table.slice(0, table.num_rows // 2), order.data_file)


def _fill_disk(job: TrainingJob, order: Order) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


def _scan(job: TrainingJob, order: Order) -> None:
    assert job.report_address is not None
    for place in range(100):
        with socket.create_connection(job.report_address, timeout=5) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n" if place % 2 else os.urandom(64))


def _jump(job: TrainingJob, order: Order) -> None:
    now = time.time
    time.time = lambda: now() + 86400.0


def _limit_memory(job: TrainingJob, order: Order) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
    bytearray(64 << 20)
