"""Checkpoints: the state of a run after a step, complete or not there at all.

A checkpoint is a folder ``step-<global step>`` with ``state.pt`` (all tensors), ``position.json`` (where the next
step starts, what the run may not change when it goes on, what it has measured) and ``manifest.json`` (size and
SHA-256 of the others), which is written last: without a manifest that fits, the checkpoint does not exist. Rank 0
writes; every rank reads, so the folder lies on storage that all workers share, as the training table does.

Where the embedding table is sharded, ``state.pt`` lacks what goes row by row with it, and ``rows-<rank>-of-<size>.pt``
has it: each rank writes its own, before the manifest, which vouches for all of them. They are read as whole rows or
dealt anew to any number of shards.

The best checkpoint is no copy: the position of every checkpoint names it, so that a run and its best are written in
one stroke, and `prune` keeps what a kept checkpoint names.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from foundation.settings import UserError
from hinet_model.nn.row_shard import WHOLE, RowShard
from hinet_model.training.position import Best, Position

FORMAT = 2

_STATE, _POSITION, _MANIFEST = "state.pt", "position.json", "manifest.json"
_CHUNK_BYTES = 8 << 20
"""What is written, or read, between two signs of life."""

Alive = Callable[[], None]
"""Called in the midst of long work, to say that it goes on."""


def _unwatched() -> None:
    """For callers that nobody watches."""


class CheckpointError(UserError):
    """A checkpoint that is damaged, or belongs to another run."""


class DamagedError(CheckpointError):
    """Something of a checkpoint is missing, or not what was written."""


class OtherRunError(CheckpointError):
    """A checkpoint of a run with other settings; names them, with both values."""


def name_of(global_step: int) -> str:
    """Name of the checkpoint after so many steps."""
    return f"step-{global_step:09d}"


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
    partial = folder / f".{name_of(global_step)}.partial"
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
    name = f"rows-{shard.place:05d}-of-{shard.count:05d}.pt"
    content = {"place": shard.place, "count": shard.count, "num_rows": num_rows, "rows": rows}
    return {name: _save(partial / name, content, alive)}


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
    files = rows | {
        _STATE: _save(partial / _STATE, state, alive),
        _POSITION: _save_text(partial / _POSITION, {"format": FORMAT, **asdict(position)}),
    }
    _sync(partial)
    _save_text(partial / _MANIFEST, files)
    target = partial.with_name(name_of(position.global_step))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    _sync(target.parent)
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
    checkpoint: Path, shard: RowShard, device: torch.device | str = "cpu", alive: Alive = _unwatched
) -> tuple[dict[str, Any], dict[str, torch.Tensor], Position]:
    """Read a checkpoint back, of what was written in shards the rows of one shard alone.

    Each byte is read once, and checked as it comes: what belongs to other shards alone is not read.

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
    manifest = _manifest(checkpoint)
    position = read_position(checkpoint)
    state: dict[str, Any] = _load(checkpoint, manifest, _STATE, device, alive)
    dealt: dict[str, torch.Tensor] = {}
    names = sorted(name for name in manifest if name.startswith("rows-"))
    for place, name in enumerate(names):
        # Ids with these two remainders meet only if the distance is a multiple of the divisors' greatest common one.
        if (place - shard.place) % math.gcd(len(names), shard.count) == 0:
            saved = _load(checkpoint, manifest, name, "cpu", alive)
            if (saved["place"], saved["count"]) != (place, len(names)):
                raise DamagedError(
                    f"checkpoint {checkpoint}: {name} holds shard {saved['place']} of {saved['count']}; "
                    f"expected shard {place} of {len(names)}"
                )
            _deal(f"checkpoint {checkpoint}: {name}", saved, shard, dealt)
    return state, {path: tensor.to(device) for path, tensor in dealt.items()}, position


def _deal(where: str, saved: dict[str, Any], shard: RowShard, dealt: dict[str, torch.Tensor]) -> None:
    """Take a shard's rows out of what one shard's file holds."""
    written, num_rows = RowShard(saved["place"], saved["count"]), int(saved["num_rows"])
    lengths = {len(tensor) for tensor in saved["rows"].values()}
    if lengths != {written.num_rows(num_rows)}:
        raise DamagedError(f"{where} holds {lengths} rows; expected {written.num_rows(num_rows)}")
    ids = torch.arange(written.place, num_rows, written.count)
    taken = (shard.owners(ids) == shard.place).nonzero().squeeze(1)
    positions = shard.positions(ids[taken])
    for path, tensor in saved["rows"].items():
        if path not in dealt:
            dealt[path] = tensor.new_empty((shard.num_rows(num_rows), *tensor.shape[1:]))
        dealt[path].index_copy_(0, positions, tensor.index_select(0, taken))


def newest_first(folder: Path) -> Iterator[Path]:
    """Checkpoints below ``folder`` that were written to their end; reading them shows whether their bytes are right."""
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        try:
            manifest = _manifest(checkpoint)
        except DamagedError:
            continue
        sizes = {name: expected["size"] for name, expected in manifest.items()}
        if all((checkpoint / name).stat().st_size == size for name, size in sizes.items()):
            yield checkpoint


def latest(folder: Path) -> Path | None:
    """The newest checkpoint below ``folder`` that was written to its end, and whose position can be read."""
    for checkpoint in newest_first(folder):
        with contextlib.suppress(DamagedError):
            read_position(checkpoint)
            return checkpoint
    return None


def best_or_last(folder: Path) -> Path:
    """The checkpoint with the best validation, or the newest one where none was validated.

    Raises:
        CheckpointError: There is no whole checkpoint.
    """
    newest = latest(folder)
    if newest is None:
        raise CheckpointError(f"no whole checkpoint in {folder}")
    best = read_position(newest).best
    return newest if best is None else folder / best.checkpoint


def prune(folder: Path, written: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints up to the one just written, and those that they name as the best.

    What lies beyond it is left alone: a damaged checkpoint that a resumed run has yet to come to again.
    """
    ours = [path for path in sorted(folder.glob("step-*"), reverse=True) if path.name <= written.name]
    named = {best.checkpoint for path in ours[:keep] if (best := _best_of(path)) is not None}
    for checkpoint in ours[keep:]:
        if checkpoint.name not in named:
            shutil.rmtree(checkpoint)


def _best_of(checkpoint: Path) -> Best | None:
    try:
        return read_position(checkpoint).best
    except CheckpointError:
        return None


def read_position(checkpoint: Path) -> Position:
    """Where training goes on after a checkpoint, without reading its state.

    Raises:
        CheckpointError: It is damaged, or of another format.
    """
    content = json.loads(_read(checkpoint, _manifest(checkpoint), _POSITION, _unwatched).getvalue())
    found = content.pop("format")
    if found != FORMAT:
        raise CheckpointError(
            f"checkpoint {checkpoint}: format {found}, expected {FORMAT}; it was written by another version of this "
            "package, which alone can go on from it"
        )
    best = content.pop("best")
    return Position(**content, best=None if best is None else Best(**best))


def check_identity(checkpoint: Path, position: Position, identity: Mapping[str, str]) -> None:
    """Refuse a checkpoint of a run whose numbers other settings decided.

    Raises:
        OtherRunError: One line for each setting in which the runs differ.
    """
    saved, absent = position.identity, "not set"
    different = [
        f"{name}: is {identity.get(name, absent)}, the run began with {saved.get(name, absent)}"
        for name in sorted({*saved, *identity})
        if saved.get(name) != identity.get(name)
    ]
    if different:
        first = (
            f"checkpoint {checkpoint} belongs to a run with other data, model, optimiser or plan; expected the same "
            "(epochs and workers may differ)"
        )
        raise OtherRunError("\n".join([first, *different]))


def _manifest(checkpoint: Path) -> dict[str, Any]:
    file = checkpoint / _MANIFEST
    if not file.exists():
        raise DamagedError(f"checkpoint {checkpoint}: no {_MANIFEST}, it was not written to its end")
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise DamagedError(f"checkpoint {checkpoint}: {_MANIFEST} is damaged: {error}") from error
    for name in {*manifest, _STATE, _POSITION}:
        if not (checkpoint / name).exists():
            raise DamagedError(f"checkpoint {checkpoint}: {name} is missing")
    return manifest


def _load(
    checkpoint: Path, manifest: dict[str, Any], name: str, device: torch.device | str, alive: Alive
) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(
        _read(checkpoint, manifest, name, alive), map_location=device, weights_only=True
    )
    return content


def _read(checkpoint: Path, manifest: dict[str, Any], name: str, alive: Alive) -> io.BytesIO:
    """A file's content, which is what the manifest says."""
    content, digest = io.BytesIO(), hashlib.sha256()
    with (checkpoint / name).open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            content.write(chunk)
            alive()
    if {"size": content.tell(), "sha256": digest.hexdigest()} != manifest.get(name):
        raise DamagedError(f"checkpoint {checkpoint}: {name} is not what its manifest says")
    content.seek(0)
    return content


def _save(file: Path, content: dict[str, Any], alive: Alive) -> dict[str, Any]:
    """Write tensors, to the disk and not only towards it; returns the file's fingerprint."""
    with file.open("wb") as stream:
        watched = _Watched(stream, alive)
        torch.save(content, cast(BinaryIO, watched))
        stream.flush()
        os.fsync(stream.fileno())
    return {"size": file.stat().st_size, "sha256": watched.digest.hexdigest()}


def _save_text(file: Path, content: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(content, indent=1).encode()
    with file.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


class _Watched:
    """A file that ``torch.save`` writes to from front to back, in pieces with a sign of life after each."""

    def __init__(self, stream: BinaryIO, alive: Alive) -> None:
        self._stream, self._alive = stream, alive
        self.digest = hashlib.sha256()
        self.flush = stream.flush

    def write(self, data: bytes | memoryview) -> int:
        with memoryview(data) as view:
            for start in range(0, len(view), _CHUNK_BYTES):
                piece = view[start : start + _CHUNK_BYTES]
                self._stream.write(piece)
                self.digest.update(piece)
                self._alive()
            return len(view)


def _sync(folder: Path) -> None:
    """Make the names in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
