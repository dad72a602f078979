"""Exchange: turn the gradients of every worker's part of a global batch into the gradient of the whole.

Each worker's loss is a sum over its rows divided by the rows of the GLOBAL batch, so the sum over workers is
the gradient of one worker that holds them all; nothing is averaged, and a worker with few rows or none is no
special case. One worker takes the same path: its sums have one term.

Dense gradients meet in flat buckets of fixed composition: when one has been made a hook moves it to its place, and
launches the bucket's sum when its last gradient has arrived, while the backward pass goes on. A parameter that
this batch did not use contributes zeros, so every rank launches every bucket at every step. The last bucket also
carries the step's statistics (losses, counts, a wish to stop), which saves a collective.

Rows of the embedding table are gathered by id and summed in rank order (`merge_rows`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hinet_model.training.dist.world import Pending, World


class _Bucket:
    """Some gradients side by side in one flat buffer."""

    def __init__(self, name: str, parameters: list[nn.Parameter], extra: int, device: torch.device) -> None:
        self.name = name
        total = sum(parameter.numel() for parameter in parameters)
        self.buffer = torch.zeros(total + extra, dtype=parameters[0].dtype, device=device)
        self.gradients = self.buffer[:total]
        self.extra = self.buffer[total:]
        self.parameters = parameters
        self.arrived = 0
        self.pending: Pending | None = None
        sizes = [parameter.numel() for parameter in parameters]
        parts = torch.split(self.gradients, sizes)
        self.places = [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]

    def clear(self) -> None:
        """Forget the step before. Autograd hands over the gradient it made where there is none to add to."""
        self.extra.zero_()
        self.arrived = 0
        self.pending = None
        for parameter in self.parameters:
            parameter.grad = None

    def take(self, number: int) -> bool:
        """Move the gradient of parameter ``number`` of the bucket to its place; True if it is the last to arrive."""
        parameter, place = self.parameters[number], self.places[number]
        assert parameter.grad is not None
        place.copy_(parameter.grad)
        parameter.grad = place
        self.arrived += 1
        return self.arrived == len(self.parameters)

    def fill_up(self) -> None:
        """Zeros for the parameters that no gradient came for."""
        for parameter, place in zip(self.parameters, self.places, strict=True):
            if parameter.grad is None:
                place.zero_()
                parameter.grad = place


class GradientExchange:
    """Sum dense gradients, table rows and statistics over the workers of one step.

    Per step: `start_step`, backward, `gather_rows`, fill `statistics`, `finish`.

    Args:
        parameters: The dense parameters, of one dtype, in an order that is the same on all ranks.
        world: The workers.
        num_statistics: Floats that travel with the last bucket.
        bucket_bytes: Size at which a bucket is closed.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        world: World,
        *,
        num_statistics: int = 0,
        bucket_bytes: int = 4 << 20,
    ) -> None:
        self._world = world
        # The backward pass reaches the last layers first.
        groups: list[list[nn.Parameter]] = [[]]
        filled = 0
        for parameter in reversed(list(parameters)):
            if filled and filled + 4 * parameter.numel() > bucket_bytes:
                groups.append([])
                filled = 0
            groups[-1].append(parameter)
            filled += 4 * parameter.numel()
        last = len(groups) - 1
        self._buckets = [
            _Bucket(f"gradients.{i}", group, num_statistics if i == last else 0, world.device)
            for i, group in enumerate(groups)
        ]
        for bucket, group in zip(self._buckets, groups, strict=True):
            for number, parameter in enumerate(group):
                parameter.register_post_accumulate_grad_hook(self._hook(bucket, number))  # type: ignore[no-untyped-call]
        self._last = self._buckets[-1]

    def _hook(self, bucket: _Bucket, number: int):  # type: ignore[no-untyped-def]
        def arrived(_: Tensor) -> None:
            if bucket.take(number) and bucket is not self._last:
                self._launch(bucket)

        return arrived

    def _launch(self, bucket: _Bucket) -> None:
        bucket.pending = self._world.start_sum(bucket.buffer, bucket.name)

    @property
    def statistics(self) -> Tensor:
        """This rank's statistics until `finish`, their sums over all ranks afterwards. ``(num_statistics,)``"""
        return self._last.extra

    def start_step(self) -> None:
        """Forget the gradients and statistics of the step before."""
        for bucket in self._buckets:
            bucket.clear()

    def gather_rows(self, ids: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of every table row that the global batch touches.

        Args:
            ids: Distinct rows of this rank's part, ascending. ``(U,)`` int64.
            gradients: Their gradients. ``(U, D)``

        Returns:
            Distinct rows of the global batch, ascending, and their summed gradients.
        """
        all_ids, all_rows = self._world.gather_rows(ids, gradients, "table")
        if self._world.size == 1:
            return all_ids, all_rows
        return merge_rows(all_ids, all_rows)

    def finish(self) -> None:
        """Launch what no hook launched (statistics, unused layers), in fixed order, and wait for all."""
        for bucket in self._buckets:
            if bucket.pending is None:
                bucket.fill_up()
                self._launch(bucket)
        for bucket in self._buckets:
            assert bucket.pending is not None
            bucket.pending.wait()

    def dense_gradient(self) -> Tensor:
        """A copy of the summed dense gradients, side by side."""
        return torch.cat([bucket.gradients for bucket in self._buckets])

    def set_dense_gradient(self, flat: Tensor) -> None:
        """Put other dense gradients in their place, laid out as in `dense_gradient`."""
        sizes = [bucket.gradients.numel() for bucket in self._buckets]
        for bucket, part in zip(self._buckets, torch.split(flat, sizes), strict=True):
            bucket.gradients.copy_(part)

    def clip_norm(self, limit: float) -> None:
        """Scale the summed dense gradients down to a norm of at most ``limit``."""
        squares = torch.stack([bucket.gradients.square().sum() for bucket in self._buckets])
        factor = (limit / (squares.sum().sqrt() + 1e-6)).clamp(max=1.0)
        for bucket in self._buckets:
            bucket.gradients.mul_(factor)


def merge_rows(ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the rows of equal ids.

    Args:
        ids: Row ids, one rank's after the other's. ``(R,)`` int64
        rows: ``(R, D)``

    Returns:
        Distinct ids, ascending, and the sums. On a CPU the terms of a sum are added in the order in which
        they stand, that is in rank order, so the result is the same to the bit on every rank and every run.
    """
    distinct, inverse = torch.unique(ids, sorted=True, return_inverse=True)
    merged = rows.new_zeros((distinct.shape[0], rows.shape[1]))
    return distinct, merged.index_add_(0, inverse, rows)
