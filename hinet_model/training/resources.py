"""Resources: what a worker uses of its machine while it trains, told to the driver every few seconds.

Sampled between steps: a thread of its own would take turns with the steps, and a worker in a collective uses little.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import psutil
import torch

from hinet_model.data.batch import Batch
from hinet_model.training.callbacks import Callback
from hinet_model.training.statistics import StepMeasures

if TYPE_CHECKING:
    from hinet_model.training.run import Run


class ReportResources(Callback):
    """Send ``resources`` from every rank: CPU (100 is one core busy), memory in MiB, and of a GPU the same.

    Args:
        every_seconds: Time between two reports, at least; each covers the time since the one before.
    """

    def __init__(self, every_seconds: float) -> None:
        self._every = every_seconds
        self._process = psutil.Process()
        # The first call has nothing to compare with and says 0.
        self._process.cpu_percent()
        self._next = time.monotonic() + every_seconds

    def on_step(self, run: Run, batch: Batch, measures: StepMeasures) -> None:
        if time.monotonic() >= self._next:
            self._report(run)

    def on_epoch(self, run: Run) -> None:
        self._report(run)

    def _report(self, run: Run) -> None:
        self._next = time.monotonic() + self._every
        used = {
            "cpu_percent": self._process.cpu_percent(),
            "memory_mib": self._process.memory_info().rss / 2**20,
            **_gpu(run.world.device),
        }
        run.reporter.send("resources", global_step=run.state.global_step, used=used)


def _gpu(device: torch.device) -> dict[str, float]:
    """The most memory that tensors took on a GPU so far, and how busy it is where NVML can be asked."""
    if device.type != "cuda":
        return {}
    used = {"gpu_memory_mib": torch.cuda.max_memory_allocated(device) / 2**20}
    with contextlib.suppress(ImportError, RuntimeError):
        used["gpu_percent"] = float(torch.cuda.utilization(device))
    return used
