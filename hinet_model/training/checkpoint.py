"""Checkpoints: the state of a run after a step, complete or not there at all.

A checkpoint is a folder ``step-<global step>`` with ``state.pt`` (model, optimisers), ``position.json`` (where
the next step starts, and what the run may not change when it goes on) and ``manifest.json`` (size and SHA-256
of the others), which is written last: without a manifest that fits, the checkpoint does not exist. Rank 0
writes; every rank reads, so the folder lies on storage that all workers share, as the training table does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from feature_eng.settings import UserError

FORMAT = 1
BEST = "best"


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


def write(folder: Path, state: dict[str, Any], position: Position) -> Path:
    """Write one checkpoint below ``folder``.

    Args:
        folder: Folder of the run's checkpoints; made if need be.
        state: Tensors and plain values (loaded again with ``weights_only=True``).
        position: Where training goes on.

    Returns:
        The checkpoint's folder.
    """
    target = folder / f"step-{position.global_step:09d}"
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    torch.save(state, partial / "state.pt")
    # Python's JSON writes and reads -Infinity, the value before the first validation.
    (partial / "position.json").write_text(json.dumps({"format": FORMAT, **asdict(position)}, indent=1))
    files = {name: _fingerprint(partial / name) for name in ("state.pt", "position.json")}
    (partial / "manifest.json").write_text(json.dumps(files, indent=1))
    _sync(partial / "manifest.json")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target


def read(checkpoint: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any], Position]:
    """Read a checkpoint back.

    Raises:
        CheckpointError: Names the file that is missing or not what the manifest says.
    """
    _verify(checkpoint)
    position = read_position(checkpoint)
    state: dict[str, Any] = torch.load(checkpoint / "state.pt", map_location=device, weights_only=True)
    return state, position


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint below ``folder``; damaged ones are passed over."""
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        try:
            _verify(checkpoint)
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


def _verify(checkpoint: Path) -> None:
    manifest = checkpoint / "manifest.json"
    if not manifest.exists():
        raise CheckpointError(f"checkpoint {checkpoint}: no manifest.json, it was not written to its end")
    for name, expected in json.loads(manifest.read_text()).items():
        file = checkpoint / name
        if not file.exists():
            raise CheckpointError(f"checkpoint {checkpoint}: {name} is missing")
        if _fingerprint(file) != expected:
            raise CheckpointError(f"checkpoint {checkpoint}: {name} is not what its manifest says")


def _fingerprint(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return {"size": file.stat().st_size, "sha256": digest.hexdigest()}


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
