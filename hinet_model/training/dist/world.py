"""World: who this worker is among its peers, and every word that they exchange.

The loop, the exchange and the checkpoints receive a `World` and know nothing else of distribution. With
`LocalWorld` they run in one process without Horovod, by the same path; another launcher would be one more
class here. This module holds the only import of Horovod's collectives.

Every collective is named: Horovod matches tensors by name, and an unnamed one is matched by the order in
which ranks happen to reach it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

NO_ROW = -1
"""Sentinel id of the rows that pad a gather to its coarse size."""


class WorldError(RuntimeError):
    """Workers disagree about something that must be the same on all of them."""


class Pending(Protocol):
    """A collective that is under way."""

    def wait(self) -> None:
        """Return when the tensor holds the result."""


class World(Protocol):
    """What a worker may know of its peers, and ask of them. All ranks must make the same calls."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    def start_sum(self, tensor: Tensor, name: str) -> Pending:
        """Begin to replace ``tensor`` by its sum over all ranks, in place."""

    def gather_rows(self, ids: Tensor, rows: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Every rank's ``ids (U,)`` and ``rows (U, D)``, one rank after the other."""

    def exchange_rows(self, rows: Tensor, counts: Sequence[int], name: str) -> tuple[Tensor, list[int]]:
        """Send ``counts[r]`` of ``rows`` to rank ``r``, one rank's after the other's, all in all.

        Returns:
            What the ranks sent to this one, in rank order, and how many rows each sent.
        """

    def gather(self, tensor: Tensor, name: str) -> Tensor:
        """Every rank's tensor, joined along the first axis in rank order; lengths may differ."""

    def broadcast(self, tensor: Tensor, name: str) -> None:
        """Replace ``tensor`` by rank 0's, in place."""

    def broadcast_object(self, value: T, name: str) -> T:
        """Rank 0's value, pickled."""

    def gather_objects(self, value: T, name: str) -> list[T]:
        """Every rank's value, pickled, in rank order."""

    def assert_same(self, value: str, name: str) -> None:
        """Raise `WorldError`, with every rank's value, unless all ranks bring the same one."""

    def close(self) -> None:
        """Leave; no collective may follow."""


class _Done:
    def wait(self) -> None:
        return None


class LocalWorld:
    """A world of one worker, without Horovod.

    Args:
        device: Device to train on.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.rank, self.size, self.local_rank = 0, 1, 0
        self.device = torch.device(device)

    def start_sum(self, tensor: Tensor, name: str) -> Pending:
        return _Done()

    def gather_rows(self, ids: Tensor, rows: Tensor, name: str) -> tuple[Tensor, Tensor]:
        return ids, rows

    def exchange_rows(self, rows: Tensor, counts: Sequence[int], name: str) -> tuple[Tensor, list[int]]:
        return rows, list(counts)

    def gather(self, tensor: Tensor, name: str) -> Tensor:
        return tensor

    def broadcast(self, tensor: Tensor, name: str) -> None:
        return None

    def broadcast_object(self, value: T, name: str) -> T:
        return value

    def gather_objects(self, value: T, name: str) -> list[T]:
        return [value]

    def assert_same(self, value: str, name: str) -> None:
        return None

    def close(self) -> None:
        return None


class _HorovodPending:
    def __init__(self, hvd: Any, handle: Any) -> None:
        self._hvd, self._handle = hvd, handle

    def wait(self) -> None:
        self._hvd.synchronize(self._handle)


class HorovodWorld:
    """The world of a Horovod job; the constructor calls ``hvd.init()``.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``. ``auto`` and ``cuda`` take the GPU that Spark gave this task,
            or else the one of the local rank; ``auto`` falls back to the CPU where there is none.

    Raises:
        WorldError: ``cuda`` was asked for and there is no CUDA device.
    """

    def __init__(self, device: str = "auto") -> None:
        import horovod.torch as hvd

        hvd.init()
        self._hvd = hvd
        self.rank, self.size, self.local_rank = hvd.rank(), hvd.size(), hvd.local_rank()
        self.device = choose_device(device, self.local_rank, _task_gpus())
        self._padded: dict[str, int] = {}

    def start_sum(self, tensor: Tensor, name: str) -> Pending:
        return _HorovodPending(self._hvd, self._hvd.allreduce_async_(tensor, op=self._hvd.Sum, name=name))

    def gather_rows(self, ids: Tensor, rows: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """As `World.gather_rows`; padded locally, since a shape that changes from step to step makes Horovod
        negotiate anew on every rank. The padded size only grows, in steps of an eighth, so it settles early.
        """
        num_rows = ids.shape[0]
        size = self._padded_size(num_rows, name)
        padded_ids = ids.new_full((size,), NO_ROW)
        padded_ids[:num_rows] = ids
        padded_rows = rows.new_zeros((size, rows.shape[1]))
        padded_rows[:num_rows] = rows
        pending_ids = self._hvd.allgather_async(padded_ids, name=f"{name}.ids")
        pending_rows = self._hvd.allgather_async(padded_rows, name=f"{name}.rows")
        all_ids, all_rows = self._hvd.synchronize(pending_ids), self._hvd.synchronize(pending_rows)
        real = all_ids != NO_ROW
        return all_ids[real], all_rows[real]

    def exchange_rows(self, rows: Tensor, counts: Sequence[int], name: str) -> tuple[Tensor, list[int]]:
        """As `World.exchange_rows`; padded as in `gather_rows`, but what pads is part of no rank's split, and never
        sent.
        """
        num_rows = rows.shape[0]
        assert sum(counts) == num_rows
        padded = rows.new_empty((self._padded_size(num_rows, name), *rows.shape[1:]))
        padded[:num_rows] = rows
        splits = torch.tensor(counts, dtype=torch.int32)
        received, received_splits = self._hvd.synchronize(
            self._hvd.alltoall_async(padded, splits=splits, name=name)
        )
        return received, received_splits.tolist()

    def _padded_size(self, num_rows: int, name: str) -> int:
        size = max(self._padded.get(name, 0), coarse_size(num_rows))
        self._padded[name] = size
        return size

    def gather(self, tensor: Tensor, name: str) -> Tensor:
        gathered: Tensor = self._hvd.allgather(tensor.contiguous(), name=name)
        return gathered

    def broadcast(self, tensor: Tensor, name: str) -> None:
        self._hvd.broadcast_(tensor, root_rank=0, name=name)

    def broadcast_object(self, value: T, name: str) -> T:
        received: T = self._hvd.broadcast_object(value, root_rank=0, name=name)
        return received

    def gather_objects(self, value: T, name: str) -> list[T]:
        values: list[T] = self._hvd.allgather_object(value, name=name)
        return values

    def assert_same(self, value: str, name: str) -> None:
        values = self.gather_objects(value, name)
        if len(set(values)) > 1:
            listing = ", ".join(f"rank {rank}: {text}" for rank, text in enumerate(values))
            raise WorldError(f"{name} differs between workers; expected the same on all: {listing}")

    def close(self) -> None:
        self._hvd.shutdown()


def coarse_size(num_rows: int) -> int:
    """The least multiple of an eighth of a power of two that holds ``num_rows``, 256 at least."""
    if num_rows <= 256:
        return 256
    grain = 1 << max((num_rows - 1).bit_length() - 4, 0)
    return -(-num_rows // grain) * grain


def choose_device(wanted: str, local_rank: int, task_gpus: list[str]) -> torch.device:
    """The device of this worker: the GPU that Spark's task got, else that of the local rank, else the CPU.

    Args:
        wanted: ``auto``, ``cpu`` or ``cuda``.
        local_rank: Rank among the workers of this host.
        task_gpus: Addresses of the GPUs that Spark assigned to the task; empty where it schedules none.

    Raises:
        WorldError: ``cuda`` was asked for and torch sees none.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise WorldError("training.device is cuda, but torch sees no CUDA device on this worker")
    index = int(task_gpus[0]) if task_gpus else local_rank
    device = torch.device("cuda", index % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _task_gpus() -> list[str]:
    """Addresses of the GPUs that Spark gave this task; none outside of ``horovod.spark.run``."""
    from horovod.spark.task import get_available_devices

    return [str(address) for address in get_available_devices()]
