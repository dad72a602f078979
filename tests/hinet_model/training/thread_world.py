"""Ranks that are threads of one process: every collective of a world, without Horovod."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor

from hinet_model.training.dist.world import LocalWorld, Pending, WorldError

T = TypeVar("T")


class Meeting:
    """Where the ranks of one process lay down what they bring, and pick up everybody's."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.slots: dict[str, dict[int, Any]] = {}

    def all_of(self, rank: int, value: Any, name: str) -> list[Any]:
        self.slots.setdefault(name, {})[rank] = value.clone() if isinstance(value, Tensor) else value
        self.barrier.wait(60)
        found = [self.slots[name][other] for other in sorted(self.slots[name])]
        self.barrier.wait(60)
        return found


class ThreadWorld(LocalWorld):
    """A rank that is a thread of this process."""

    def __init__(self, rank: int, size: int, meeting: Meeting) -> None:
        super().__init__()
        self.rank, self.size, self.meeting = rank, size, meeting

    def start_sum(self, tensor: Tensor, name: str) -> Pending:
        def wait() -> None:
            tensor.copy_(torch.stack(self.meeting.all_of(self.rank, tensor, name)).sum(dim=0))

        return SimpleNamespace(wait=wait)

    def gather_rows(self, ids: Tensor, rows: Tensor, name: str) -> tuple[Tensor, Tensor]:
        return self.gather(ids, f"{name}.ids"), self.gather(rows, f"{name}.rows")

    def exchange_rows(self, rows: Tensor, counts: Sequence[int], name: str) -> tuple[Tensor, list[int]]:
        assert len(counts) == self.size
        sent = self.meeting.all_of(self.rank, torch.split(rows, list(counts)), name)
        received = [parts[self.rank] for parts in sent]
        return torch.cat(received), [len(part) for part in received]

    def gather(self, tensor: Tensor, name: str) -> Tensor:
        return torch.cat(self.meeting.all_of(self.rank, tensor, name))

    def broadcast(self, tensor: Tensor, name: str) -> None:
        tensor.copy_(self.meeting.all_of(self.rank, tensor.detach(), name)[0])

    def broadcast_object(self, value: T, name: str) -> T:
        return self.gather_objects(value, name)[0]

    def gather_objects(self, value: T, name: str) -> list[T]:
        return self.meeting.all_of(self.rank, value, name)

    def assert_same(self, value: str, name: str) -> None:
        if len(set(self.gather_objects(value, name))) > 1:
            raise WorldError(f"{name} differs")


def in_threads(size: int, work: Callable[[ThreadWorld], T]) -> list[T]:
    """What ``work`` returned on each of ``size`` ranks."""
    meeting, results = Meeting(size), {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadWorld(rank, size, meeting))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(size)]
