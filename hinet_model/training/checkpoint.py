"""Checkpoints: the state of a run after a step, complete or not there at all.

A checkpoint is a folder ``step-<global step>`` with ``state.pt`` (model, optimisers), ``position.json`` (where
the next step starts, and what the run may not change when it goes on) and ``manifest.json`` (size and SHA-256
of the others), which is written last: without a manifest that fits, the checkpoint does not exist. Rank 0
writes; every rank reads, so the folder lies on storage that all workers share, as the training table does.

Where the embedding table is sharded, ``state.pt`` lacks what goes row by row with it, and ``rows-<rank>-of-<size>.pt``
has it: each rank writes its own, before the manifest, which vouches for all of them. They are read as whole rows or
dealt anew to any number of shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import torch

from foundation.settings import UserError
from hinet_model.nn.row_shard import WHOLE, RowShard

FORMAT = 1
BEST = "best"

_CHUNK_BYTES = 8 << 20
"""What is written, or hashed, between two signs of life."""

Alive = Callable[[], None]
"""Called in the midst of long work, to say that it goes on."""


def _unwatched() -> None:
    """For callers that nobody watches."""


class CheckpointError(UserError):
    """A checkpoint that is damaged, or belongs to another run."""


@dataclass(frozen=True)
class Position:
    """Where training goes on.

    Args:
        epoch: Epoch of the next step, 0-based.
        step: Its step within the epoch.
        global_step: Optimiser steps taken so far.
        identity: What must be equal for the numbers to go on as they would have: snapshot, model, plan.
        best_epoch: Epoch of the best validation so far, -1 before the first.
        best_value: Its mean AUC over the cells.
        bad_validations: Validations since the best one.
        history: One entry per validation, for curves that span a restart.
    """

    epoch: int
    step: int
    global_step: int
    identity: str
    best_epoch: int = -1
    best_value: float = float("-inf")
    bad_validations: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def write(folder: Path, state: dict[str, Any], position: Position, alive: Alive = _unwatched) -> Path:
    """Write one checkpoint below ``folder``.

    Args:
        folder: Folder of the run's checkpoints; made if need be.
        state: Tensors and plain values (loaded again with ``weights_only=True``).
        position: Where training goes on.
        alive: Called while it goes on.

    Returns:
        The checkpoint's folder.
    """
    return finish(begin(folder, position.global_step), state, position, {}, alive)


def begin(folder: Path, global_step: int) -> Path:
    """Make the folder in which a checkpoint is written until it is whole."""
    partial = folder / f".step-{global_step:09d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def write_rows(
    partial: Path, rows: dict[str, torch.Tensor], shard: RowShard, num_rows: int, alive: Alive = _unwatched
) -> dict[str, Any]:
    """Write a shard's rows into a checkpoint that has begun.

    Args:
        partial: Returned by `begin`, on another rank perhaps.
        rows: Tensors with one entry per row of the shard, by their path in the state (``model/embedding.weight``).
        shard: Which rows they are.
        num_rows: Rows of the whole table.
        alive: Called while it goes on.

    Returns:
        What `finish` writes into the manifest.
    """
    if not partial.is_dir():
        raise CheckpointError(
            f"checkpoint {partial}: rank 0 made it, this worker does not see it; expected storage that all share"
        )
    file = partial / f"rows-{shard.place:05d}-of-{shard.count:05d}.pt"
    content = {"place": shard.place, "count": shard.count, "num_rows": num_rows, "rows": rows}
    _save(content, file, alive)
    _sync(file)
    return {file.name: _fingerprint(file, alive)}


def finish(
    partial: Path,
    state: dict[str, Any],
    position: Position,
    rows: dict[str, Any],
    alive: Alive = _unwatched,
) -> Path:
    """Write the rest of a checkpoint that has begun, its manifest last; returns the checkpoint's folder.

    Args:
        partial: Returned by `begin`.
        state: As in `write`, without what is in ``rows``.
        position: Where training goes on.
        rows: What `write_rows` returned on all ranks.
        alive: Called while it goes on.
    """
    target = partial.with_name(f"step-{position.global_step:09d}")
    _save(state, partial / "state.pt", alive)
    # Python's JSON writes and reads -Infinity, the value before the first validation.
    (partial / "position.json").write_text(json.dumps({"format": FORMAT, **asdict(position)}, indent=1))
    files = rows | {name: _fingerprint(partial / name, alive) for name in ("state.pt", "position.json")}
    (partial / "manifest.json").write_text(json.dumps(files, indent=1))
    _sync(partial / "manifest.json")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target


def read(checkpoint: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any], Position]:
    """Read a checkpoint back, the table whole.

    Raises:
        CheckpointError: Names the file that is missing or not what the manifest says.
    """
    state, rows, position = read_shard(checkpoint, WHOLE, device)
    put_rows(state, rows)
    return state, position


def put_rows(state: dict[str, Any], rows: dict[str, torch.Tensor]) -> None:
    """Put rows where their paths say in a state."""
    for path, tensor in rows.items():
        *sections, name = path.split("/")
        place = state
        for section in sections:
            place = place[section]
        place[name] = tensor


def read_shard(
    checkpoint: Path,
    shard: RowShard,
    device: torch.device | str = "cpu",
    alive: Alive = _unwatched,
) -> tuple[dict[str, Any], dict[str, torch.Tensor], Position]:
    """Read a checkpoint back, of what was written in shards the rows of one shard alone.

    Args:
        checkpoint: Its folder.
        shard: Rows to read, whatever the shards in which they were written.
        device: Where to put the tensors.
        alive: Called while it goes on.

    Returns:
        State, rows by their path in it (none where the table was not sharded), and position.

    Raises:
        CheckpointError: Names the file that is missing or not what the manifest says.
    """
    _verify(checkpoint, alive)
    position = read_position(checkpoint)
    state: dict[str, Any] = torch.load(checkpoint / "state.pt", map_location=device, weights_only=True)
    names = json.loads((checkpoint / "manifest.json").read_text())
    files = [checkpoint / name for name in sorted(names) if name.startswith("rows-")]
    rows = {path: tensor.to(device) for path, tensor in _deal(checkpoint, files, shard).items()}
    return state, rows, position


def _deal(checkpoint: Path, files: list[Path], shard: RowShard) -> dict[str, torch.Tensor]:
    """A shard's rows out of the files of all shards, which are mapped, so that only what is taken is read."""
    dealt: dict[str, torch.Tensor] = {}
    for place, file in enumerate(files):
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        written, num_rows = RowShard(saved["place"], saved["count"]), int(saved["num_rows"])
        lengths = {len(tensor) for tensor in saved["rows"].values()}
        if written != RowShard(place, len(files)) or lengths != {written.num_rows(num_rows)}:
            raise CheckpointError(
                f"checkpoint {checkpoint}: {file.name} holds {lengths} rows of shard {written.place} of "
                f"{written.count}; expected shard {place} of {len(files)}, {written.num_rows(num_rows)} rows"
            )
        ids = torch.arange(written.place, num_rows, written.count)
        taken = (shard.owners(ids) == shard.place).nonzero().squeeze(1)
        positions = shard.positions(ids[taken])
        for path, tensor in saved["rows"].items():
            if path not in dealt:
                dealt[path] = tensor.new_empty((shard.num_rows(num_rows), *tensor.shape[1:]))
            dealt[path].index_copy_(0, positions, tensor.index_select(0, taken))
    return dealt


def latest(folder: Path, alive: Alive = _unwatched) -> Path | None:
    """The newest whole checkpoint below ``folder``; damaged ones are passed over."""
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        try:
            _verify(checkpoint, alive)
        except CheckpointError:
            continue
        return checkpoint
    return None


def mark_best(folder: Path, checkpoint: Path) -> None:
    """Keep a copy of this checkpoint's files as ``best`` (hard links where the file system has them)."""
    partial, target = folder / f".{BEST}.partial", folder / BEST
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(checkpoint, partial, copy_function=os.link)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(checkpoint, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints; ``best`` stays."""
    for checkpoint in sorted(folder.glob("step-*"), reverse=True)[keep:]:
        shutil.rmtree(checkpoint)


def read_position(checkpoint: Path) -> Position:
    """Where training goes on after a checkpoint, without reading its state."""
    content = json.loads((checkpoint / "position.json").read_text())
    found = content.pop("format")
    if found != FORMAT:
        raise CheckpointError(f"checkpoint {checkpoint}: format {found}, expected {FORMAT}")
    return Position(**content)


def _verify(checkpoint: Path, alive: Alive) -> None:
    manifest = checkpoint / "manifest.json"
    if not manifest.exists():
        raise CheckpointError(f"checkpoint {checkpoint}: no manifest.json, it was not written to its end")
    for name, expected in json.loads(manifest.read_text()).items():
        file = checkpoint / name
        if not file.exists():
            raise CheckpointError(f"checkpoint {checkpoint}: {name} is missing")
        if _fingerprint(file, alive) != expected:
            raise CheckpointError(f"checkpoint {checkpoint}: {name} is not what its manifest says")


def _fingerprint(file: Path, alive: Alive) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            alive()
    return {"size": file.stat().st_size, "sha256": digest.hexdigest()}


def _save(content: dict[str, Any], file: Path, alive: Alive) -> None:
    with file.open("wb") as stream:
        torch.save(content, cast(IO[bytes], _Watched(stream, alive)))


class _Watched:
    """A file that ``torch.save`` writes to, a tensor at a time, in pieces with a sign of life after each."""

    def __init__(self, stream: IO[bytes], alive: Alive) -> None:
        self._stream, self._alive = stream, alive
        self.flush = stream.flush

    def write(self, data: bytes | memoryview) -> int:
        with memoryview(data) as view:
            for start in range(0, len(view), _CHUNK_BYTES):
                self._stream.write(view[start : start + _CHUNK_BYTES])
                self._alive()
            return len(view)


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
