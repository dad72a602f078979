"""Run state: all that a run saves and goes on from; nothing of it is kept anywhere else.

The embedding table and what belongs to its rows may lie in shards. Checkpoints of a sharded and of a replicated table
go on as either, on any number of workers: what a worker lacks it reads, what is not its own it leaves.
"""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from foundation import stores
from hinet_model.models.model import table_name
from hinet_model.nn.row_shard import RowShard
from hinet_model.training import checkpoint
from hinet_model.training.averaging import WeightAverage
from hinet_model.training.checkpoint_files import CheckpointError, DamagedError
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.loop import StepParts
from hinet_model.training.position import Best, Position
from hinet_model.training.statistics import StepMeasures
from hinet_model.training.table_optimisers import RowDecay

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """Something with a state."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` continues from."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Continue from a `state_dict`."""
        ...


@dataclass(frozen=True)
class Captured:
    """A run's state after a step, apart from the run that goes on.

    Args:
        position: Where the run stood.
        state: Tensors and plain values; of rank 0 alone.
        rows: Of this rank's shard of the table, by their path in the state; none where the table is not sharded.
        shard: Which rows these are.
        num_rows: Rows of the whole table.
    """

    position: Position
    state: dict[str, Any]
    rows: dict[str, Tensor]
    shard: RowShard
    num_rows: int


class RunState:
    """Where a run stands: weights, optimisers, counters, what it measured, and its best checkpoint.

    Args:
        parts: The model, its optimisers and the balance of its tasks.
        average: The mean of its weights.
        identity: What must be the same to go on.

    Attributes:
        epoch: Epoch of the next step, 0-based.
        step: Steps of it that were taken.
        global_step: Steps of the run that were taken.
        sums: What the steps of this epoch measured, added up (`StepMeasures.sums`).
        seconds: Wall time of this epoch so far, on this rank.
        wait_seconds: Of these, how long training waited for the loader.
        losses: Loss of every step of the run: eight bytes a step, which is all that grows with the steps.
        best: The best validation, and the name of the checkpoint that holds it.
        bad_validations: Validations since.
        history: What each epoch measured.
    """

    def __init__(self, parts: StepParts, average: WeightAverage, identity: Mapping[str, str]) -> None:
        self.parts, self.average, self.identity = parts, average, identity
        self._stateful: dict[str, Stateful] = {
            "model": parts.model,
            "optimisers": parts.optimisers,
            "average": average,
            "balance": parts.balance,
        }
        self._embedding, self._table = parts.model.embedding, table_name(parts.model)
        self.epoch = self.step = self.global_step = 0
        self.losses = array("d")
        self.best: Best | None = None
        self.bad_validations = 0
        self.history: list[dict[str, Any]] = []
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.step = 0
        self.sums = torch.zeros(self.parts.statistics.num_summed, dtype=torch.float64)
        self.seconds = self.wait_seconds = 0.0

    def count_step(self, measures: StepMeasures) -> None:
        """A step was taken."""
        self.step += 1
        self.global_step += 1
        self.sums += measures.sums
        self.losses.append(measures.loss)

    def end_epoch(self) -> None:
        """The epoch's last step was taken, and what it measured is in the history."""
        self.epoch += 1
        self._begin_epoch()

    def epoch_losses(self) -> list[float]:
        """Loss of each step of this epoch so far."""
        return self.losses[len(self.losses) - self.step :].tolist()

    def recent_losses(self, steps: int) -> list[float]:
        """Loss of the last steps of this epoch, at most so many."""
        return self.losses[len(self.losses) - min(steps, self.step) :].tolist()

    def position(self) -> Position:
        """What `hinet_model.training.checkpoint` writes beside the tensors."""
        return Position(
            self.epoch,
            self.step,
            self.global_step,
            dict(self.identity),
            self.best,
            self.bad_validations,
            list(self.history),
        )

    def capture(self, apart: bool, progress: Progress) -> Captured:
        """What a checkpoint is written of; collectives are the caller's.

        Args:
            apart: Copy it to the host's memory, so that it stays as it is while the run goes on.
            progress: Told that it goes on.
        """
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._stateful.items()}
        state["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        state["epoch"] = {
            "sums": self.sums,
            "seconds": self.seconds,
            "wait_seconds": self.wait_seconds,
        }
        state["table"] = self._table
        shard = self._embedding.shard
        rows = take_rows(state, self._table) if shard.count > 1 else {}
        if self.parts.world.rank != 0:
            state = {}  # that of rank 0 is everybody's
        if apart:
            state, rows = _copied(state, progress), _copied(rows, progress)
        return Captured(self.position(), state, rows, shard, self._embedding.num_embeddings)

    def restore(self, folder: stores.Place, progress: Progress) -> None:
        """Go on from the newest checkpoint below ``folder`` that every rank can read; all ranks must call it.

        Raises:
            CheckpointError: There is none, or it belongs to another run.
        """
        world = self.parts.world
        faults: list[str] = []
        with progress.within("agree"):
            names = world.broadcast_object(
                [stores.name_of(place) for place in checkpoint.newest_first(folder)], "checkpoint.names"
            )
        for name in names:
            fault = ""
            try:
                self._read(stores.join(folder, name), progress)
            except DamagedError as error:
                fault = str(error)
            with progress.within("agree"):
                found = [text for text in world.gather_objects(fault, "checkpoint.read") if text]
            if not found:
                return
            faults.append(found[0])
            logger.warning("%s; trying the checkpoint before", found[0])
        raise CheckpointError("\n".join([f"nothing to resume: no whole checkpoint in {folder}", *faults]))

    def _read(self, folder: stores.Place, progress: Progress) -> None:
        """Take over a checkpoint: all of it, but of the table this rank's rows alone."""
        shard = self._embedding.shard
        # A whole table may have no room on the device that a shard of it is for.
        device = self.parts.world.device if shard.count == 1 else "cpu"
        state, rows, position = checkpoint.read_shard(folder, shard, device, progress.alive)
        checkpoint.check_identity(folder, position, self.identity)
        if not rows:
            rows = {path: shard.of(tensor).clone() for path, tensor in take_rows(state, self._table).items()}
        checkpoint.put_rows(state, rows)
        for name, part in self._stateful.items():
            part.load_state_dict(state[name])
        self.losses = array("d", state["losses"].tolist())
        self.sums = state["epoch"]["sums"].cpu()
        self.seconds, self.wait_seconds = state["epoch"]["seconds"], state["epoch"]["wait_seconds"]
        self.epoch, self.step, self.global_step = position.epoch, position.step, position.global_step
        self.best, self.bad_validations = position.best, position.bad_validations
        self.history = position.history


def weights_digest(model: nn.Module, without: Set[str] = frozenset()) -> str:
    """sha256 of every tensor of the model, bit by bit, but for those named in ``without``."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name in without:
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def take_rows(state: dict[str, Any], table: str) -> dict[str, Tensor]:
    """Take out of a state whatever has one entry per row of the embedding table.

    Args:
        state: Of a run; its sections are copied where they lose something, tensors are not.
        table: Name of the table among the model's parameters.

    Returns:
        The tensors, by their path in the state.
    """
    rows: dict[str, Tensor] = {}
    model, mean = dict(state["model"]), dict(state["average"]["mean"])
    optimiser = dict(state["optimisers"]["table"])
    rows[f"model/{table}"] = model.pop(table)
    if table in mean:
        rows[f"average/mean/{table}"] = mean.pop(table)
    for name, value in state["optimisers"]["table"].items():
        if isinstance(value, Tensor):
            rows[f"optimisers/table/{name}"] = optimiser.pop(name)
    state["model"] = model
    state["average"] = {**state["average"], "mean": mean}
    state["optimisers"] = {**state["optimisers"], "table": optimiser}
    return rows


def weights_of(state: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that were validated: the mean where there is one, and no decay pending on any row.

    Args:
        state: As `hinet_model.training.checkpoint.read` returns it.
    """
    weights = dict(state["model"])
    decay = state["optimisers"]["table"]
    if "log_applied" in decay and "table" in state:  # earlier checkpoints were written with nothing pending
        table = state["table"]
        weights[table] = RowDecay.settled(weights[table], decay)
    return {**weights, **state["average"]["mean"]}


def _copied(value: Any, progress: Progress) -> Any:
    """A nested value with copies of its tensors on the host."""
    if isinstance(value, Tensor):
        progress.alive()
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(entry, progress) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(entry, progress) for entry in value)
    return value
