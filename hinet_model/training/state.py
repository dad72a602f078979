"""Run state: all that a run saves and goes on from, the embedding table and what belongs to its rows by shard.

Checkpoints of a sharded and of a replicated table go on as either, on any number of workers: what a worker lacks it
reads, what is not its own it leaves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from hinet_model.models.model import ScenarioModel, table_name
from hinet_model.training import checkpoint
from hinet_model.training.averaging import WeightAverage
from hinet_model.training.checkpoint import Position
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.dist.world import World
from hinet_model.training.optimisation import RunOptimisers


class Stateful(Protocol):
    """Something with a state."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` continues from."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Continue from a `state_dict`."""
        ...


class RunState:
    """Saves a run to its checkpoints, and makes it go on from one.

    Args:
        model: The model.
        optimisers: Its optimisers.
        average: The mean of its weights.
        balance: The weights of its tasks.
        sharded: Whether each rank holds a shard of the embedding table, and saves it.
    """

    def __init__(
        self,
        model: ScenarioModel,
        optimisers: RunOptimisers,
        average: WeightAverage,
        balance: Stateful,
        sharded: bool,
    ) -> None:
        self._parts: dict[str, Stateful] = {
            "model": model,
            "optimisers": optimisers,
            "average": average,
            "balance": balance,
        }
        self._embedding, self._table = model.embedding, table_name(model)
        self._sharded = sharded

    def save(self, folder: Path, position: Position, world: World, progress: Progress) -> Path | None:
        """Write a checkpoint below ``folder``; all ranks must call it.

        Returns:
            The checkpoint's folder on rank 0, None on the others.
        """
        state = {name: part.state_dict() for name, part in self._parts.items()}
        first = world.rank == 0
        if not self._sharded:
            return checkpoint.write(folder, state, position, progress.alive) if first else None
        shard, num_rows = self._embedding.shard, self._embedding.num_embeddings
        rows = take_rows(state, self._table)
        begun = checkpoint.begin(folder, position.global_step) if first else folder
        with progress.within("agree"):
            partial = world.broadcast_object(begun, "checkpoint.folder")
        written = checkpoint.write_rows(partial, rows, shard, num_rows, progress.alive)
        # All shards are on storage before the manifest says so.
        with progress.within("agree"):
            manifests = world.gather_objects(written, "checkpoint.rows")
        if not first:
            return None
        everyone = {name: fingerprint for manifest in manifests for name, fingerprint in manifest.items()}
        return checkpoint.finish(partial, state, position, everyone, progress.alive)

    def restore(self, folder: Path, world: World, progress: Progress) -> None:
        """Go on from the checkpoint in ``folder``: all of it, but of the table this rank's rows alone."""
        shard = self._embedding.shard
        # A whole table may have no room on the device that a shard of it is for.
        device = "cpu" if self._sharded else world.device
        state, rows, _ = checkpoint.read_shard(folder, shard, device, progress.alive)
        if not rows:
            rows = {path: shard.of(tensor).clone() for path, tensor in take_rows(state, self._table).items()}
        checkpoint.put_rows(state, rows)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])


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
