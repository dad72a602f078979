"""Checkpoints: the state of a run after a step, complete or not there at all, on a path or on an object store.

A checkpoint is a folder ``step-<global step>`` with ``state.pt`` (all tensors), ``position.json`` (where the next
step starts, what the run may not change when it goes on, what it has measured) and ``manifest.json`` (size and
SHA-256 of the others), which is written last: without a manifest that fits, the checkpoint does not exist. Rank 0
writes; every rank reads, so the folder lies on storage that all workers share, as the training table does. Nothing
is renamed, which object stores cannot do: a checkpoint of that name that was there before loses its manifest first.

Where the embedding table is sharded, ``state.pt`` lacks what goes row by row with it, and ``rows-<rank>-of-<size>.pt``
has it: each rank writes its own, before the manifest, which vouches for all of them. They are read as whole rows or
dealt anew to any number of shards.

The best checkpoint is no copy: the position of every checkpoint names it, so that a run and its best are written in
one stroke, and `prune` keeps what a kept checkpoint names.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch

from foundation import stores
from hinet_model.nn.row_shard import WHOLE, RowShard
from hinet_model.training import checkpoint_files
from hinet_model.training.checkpoint_files import Alive, CheckpointError, DamagedError, unwatched
from hinet_model.training.position import Best, Position

FORMAT = 2

_STATE, _POSITION, _MANIFEST = "state.pt", "position.json", "manifest.json"
_NAME = re.compile(r"step-\d{9,}")
_FILES = r"(state\.pt|position\.json|manifest\.json|rows-\d{5}-of-\d{5}\.pt)"
_WRITTEN = re.compile(rf"{_FILES}|\.{_FILES}-\d+-\d+")
"""Files of a checkpoint, and drafts of them that a killed writer has left."""


class OtherRunError(CheckpointError):
    """A checkpoint of a run with other settings; names them, with both values."""


def name_of(global_step: int) -> str:
    """Name of the checkpoint after so many steps."""
    return f"step-{global_step:09d}"


def write(folder: stores.Place, state: dict[str, Any], position: Position, alive: Alive = unwatched) -> str:
    """Write one checkpoint below ``folder``.

    Args:
        folder: Place of the run's checkpoints.
        state: Tensors and plain values (loaded again with ``weights_only=True``).
        position: Where training goes on.
        alive: Called while it goes on.

    Returns:
        The checkpoint's place.
    """
    return finish(begin(folder, position.global_step), state, position, {}, alive)


def begin(folder: stores.Place, global_step: int) -> str:
    """Place of a checkpoint that is about to be written; it does not exist until `finish`, whatever was there."""
    begun = stores.join(folder, name_of(global_step))
    _remove(begun)
    return begun


def _remove(checkpoint: stores.Place) -> None:
    """Remove a checkpoint, its manifest first; what someone else keeps under its name stays."""
    if stores.is_file(checkpoint):
        return
    found = stores.names(checkpoint)
    written = [name for name in found if _WRITTEN.fullmatch(name)]
    stores.delete(stores.join(checkpoint, _MANIFEST))
    for name in written:
        stores.delete(stores.join(checkpoint, name))
    if written == found:
        stores.delete(checkpoint)


def write_rows(
    begun: stores.Place,
    rows: dict[str, torch.Tensor],
    shard: RowShard,
    num_rows: int,
    alive: Alive = unwatched,
) -> dict[str, Any]:
    """Write a shard's rows into a checkpoint that has begun.

    Args:
        begun: Returned by `begin`, on another rank perhaps.
        rows: Tensors with one entry per row of the shard, by their path in the state (``model/embedding.weight``).
        shard: Which rows they are.
        num_rows: Rows of the whole table.
        alive: Called while it goes on.

    Returns:
        What `finish` writes into the manifest.
    """
    name = f"rows-{shard.place:05d}-of-{shard.count:05d}.pt"
    content = {"place": shard.place, "count": shard.count, "num_rows": num_rows, "rows": rows}
    return {name: checkpoint_files.save(stores.join(begun, name), content, alive)}


def finish(
    begun: stores.Place,
    state: dict[str, Any],
    position: Position,
    rows: dict[str, Any],
    alive: Alive = unwatched,
) -> str:
    """Write the rest of a checkpoint that has begun, its manifest last; returns the checkpoint's place.

    Args:
        begun: Returned by `begin`.
        state: As in `write`, without what is in ``rows``.
        position: Where training goes on.
        rows: What `write_rows` returned on all ranks.
        alive: Called while it goes on.
    """
    files = rows | {
        _STATE: checkpoint_files.save(stores.join(begun, _STATE), state, alive),
        _POSITION: checkpoint_files.save_text(
            stores.join(begun, _POSITION), {"format": FORMAT, **asdict(position)}
        ),
    }
    seen = stores.sizes([stores.join(begun, name) for name in files])
    lacking = [name for name, size in zip(files, seen, strict=True) if size != files[name]["size"]]
    if lacking:
        raise CheckpointError(
            f"checkpoint {begun}: {', '.join(lacking)} was written, but rank 0 does not see it; "
            "expected storage that all share"
        )
    checkpoint_files.save_text(stores.join(begun, _MANIFEST), files)
    return stores.normalised(begun)


def read(checkpoint: stores.Place, device: torch.device | str = "cpu") -> tuple[dict[str, Any], Position]:
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
    checkpoint: stores.Place, shard: RowShard, device: torch.device | str = "cpu", alive: Alive = unwatched
) -> tuple[dict[str, Any], dict[str, torch.Tensor], Position]:
    """Read a checkpoint back, of what was written in shards the rows of one shard alone.

    Each byte is read once, and checked as it comes: what belongs to other shards alone is not read.

    Args:
        checkpoint: Its place.
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
    state: dict[str, Any] = checkpoint_files.load(checkpoint, manifest, _STATE, device, alive)
    dealt: dict[str, torch.Tensor] = {}
    names = sorted(name for name in manifest if name.startswith("rows-"))
    for place, name in enumerate(names):
        # Ids with these two remainders meet only if the distance is a multiple of the divisors' greatest common one.
        if (place - shard.place) % math.gcd(len(names), shard.count) == 0:
            saved = checkpoint_files.load(checkpoint, manifest, name, "cpu", alive)
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


def newest_first(folder: stores.Place) -> Iterator[str]:
    """Checkpoints below ``folder`` that were written to their end; reading them shows whether their bytes are right."""
    for checkpoint in _all_of(folder):
        try:
            manifest = _manifest(checkpoint)
        except DamagedError:
            continue
        found = stores.sizes([stores.join(checkpoint, name) for name in manifest])
        if found == [expected["size"] for expected in manifest.values()]:
            yield checkpoint


def _all_of(folder: stores.Place) -> list[str]:
    """Places of all checkpoints below ``folder``, whole or not, the newest first."""
    names = [name for name in stores.names(folder) if _NAME.fullmatch(name)]
    return [stores.join(folder, name) for name in sorted(names, reverse=True)]


def latest(folder: stores.Place) -> str | None:
    """The newest checkpoint below ``folder`` that was written to its end, and whose position can be read."""
    for checkpoint in newest_first(folder):
        with contextlib.suppress(DamagedError):
            read_position(checkpoint)
            return checkpoint
    return None


def newest_run(folder: stores.Place) -> str | None:
    """Name of the run below ``folder``, the folder of all runs, that has written a checkpoint last."""
    manifests = [
        (run, stores.join(checkpoint, _MANIFEST))
        for run in stores.names(folder)
        for checkpoint in _all_of(stores.join(folder, run))
    ]
    written = zip(stores.times([manifest for _, manifest in manifests]), manifests, strict=True)
    found = [(time, run) for time, (run, _) in written if time is not None]
    return max(found)[1] if found else None


def best_or_last(folder: stores.Place) -> str:
    """The checkpoint with the best validation, or the newest one where none was validated.

    Raises:
        CheckpointError: There is no whole checkpoint.
    """
    newest = latest(folder)
    if newest is None:
        raise CheckpointError(f"no whole checkpoint in {folder}")
    best = read_position(newest).best
    return newest if best is None else stores.join(folder, best.checkpoint)


def prune(folder: stores.Place, written: stores.Place, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints up to the one just written, and those that they name as the best.

    What lies beyond it is left alone: a damaged checkpoint that a resumed run has yet to come to again.
    """
    ours = [place for place in _all_of(folder) if stores.name_of(place) <= stores.name_of(written)]
    manifests = stores.sizes([stores.join(place, _MANIFEST) for place in ours])
    # What was begun and never finished is gone on from by nobody, and keeps no other from being kept.
    for place in [place for place, size in zip(ours, manifests, strict=True) if size is None]:
        _remove(place)
        ours.remove(place)
    named = {best.checkpoint for path in ours[:keep] if (best := _best_of(path)) is not None}
    for checkpoint in ours[keep:]:
        if stores.name_of(checkpoint) not in named:
            _remove(checkpoint)


def _best_of(checkpoint: stores.Place) -> Best | None:
    try:
        return read_position(checkpoint).best
    except CheckpointError:
        return None


def read_position(checkpoint: stores.Place) -> Position:
    """Where training goes on after a checkpoint, without reading its state.

    Raises:
        CheckpointError: It is damaged, or of another format.
    """
    content = json.loads(
        checkpoint_files.read(checkpoint, _manifest(checkpoint), _POSITION, unwatched).getvalue()
    )
    found = content.pop("format")
    if found != FORMAT:
        raise CheckpointError(
            f"checkpoint {checkpoint}: format {found}, expected {FORMAT}; it was written by another version of this "
            "package, which alone can go on from it"
        )
    best = content.pop("best")
    return Position(**content, best=None if best is None else Best(**best))


def check_identity(checkpoint: stores.Place, position: Position, identity: Mapping[str, str]) -> None:
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


def _manifest(checkpoint: stores.Place) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(stores.read_text(stores.join(checkpoint, _MANIFEST)))
    except FileNotFoundError:
        raise DamagedError(
            f"checkpoint {checkpoint}: no {_MANIFEST}, it was not written to its end"
        ) from None
    except ValueError as error:
        raise DamagedError(f"checkpoint {checkpoint}: {_MANIFEST} is damaged: {error}") from error
    names = sorted({*manifest, _STATE, _POSITION})
    for name, size in zip(
        names, stores.sizes([stores.join(checkpoint, name) for name in names]), strict=True
    ):
        if size is None:
            raise DamagedError(f"checkpoint {checkpoint}: {name} is missing")
    return manifest
