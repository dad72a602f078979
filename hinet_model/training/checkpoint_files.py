"""Files of a checkpoint: written with their size and SHA-256, and read back only if these fit."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import torch

from foundation import stores
from foundation.settings import UserError

_CHUNK_BYTES = 8 << 20
"""What is written, or read, between two signs of life."""

Alive = Callable[[], None]
"""Called in the midst of long work, to say that it goes on."""


def unwatched() -> None:
    """For callers that nobody watches."""


class CheckpointError(UserError):
    """A checkpoint that is damaged, or belongs to another run."""


class DamagedError(CheckpointError):
    """Something of a checkpoint is missing, or not what was written."""


def load(
    checkpoint: stores.Place, manifest: dict[str, Any], name: str, device: torch.device | str, alive: Alive
) -> dict[str, Any]:
    """Tensors and plain values of a file that is what the manifest says."""
    content: dict[str, Any] = torch.load(
        read(checkpoint, manifest, name, alive), map_location=device, weights_only=True
    )
    return content


def read(checkpoint: stores.Place, manifest: dict[str, Any], name: str, alive: Alive) -> io.BytesIO:
    """A file's content, which is what the manifest says."""
    content, digest = io.BytesIO(), hashlib.sha256()
    with stores.open_input(stores.join(checkpoint, name)) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            content.write(chunk)
            alive()
    if {"size": content.tell(), "sha256": digest.hexdigest()} != manifest.get(name):
        raise DamagedError(f"checkpoint {checkpoint}: {name} is not what its manifest says")
    content.seek(0)
    return content


def save(file: str, content: dict[str, Any], alive: Alive) -> dict[str, Any]:
    """Write tensors, to the disk and not only towards it; returns the file's fingerprint."""
    with stores.open_output(file) as stream:
        watched = _Watched(stream, alive)
        try:
            torch.save(content, cast(BinaryIO, watched))
        except RuntimeError as error:
            # torch complains of a file that is shorter than it should be, not of what the system said.
            raise watched.error or error from error
    return {"size": watched.size, "sha256": watched.digest.hexdigest()}


def save_text(file: str, content: dict[str, Any]) -> dict[str, Any]:
    """Write plain values as JSON; returns the file's fingerprint."""
    data = json.dumps(content, indent=1).encode()
    stores.write_bytes(file, data)
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


class _Watched:
    """A file that ``torch.save`` writes to from front to back, in pieces with a sign of life after each."""

    def __init__(self, stream: BinaryIO, alive: Alive) -> None:
        self._stream, self._alive = stream, alive
        self.digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None
        self.flush = stream.flush

    def write(self, data: bytes | memoryview) -> int:
        with memoryview(data) as view:
            for start in range(0, len(view), _CHUNK_BYTES):
                piece = view[start : start + _CHUNK_BYTES]
                try:
                    self._stream.write(piece)
                except OSError as error:
                    self.error = error
                    raise
                self.digest.update(piece)
                self.size += len(piece)
                self._alive()
            return len(view)
