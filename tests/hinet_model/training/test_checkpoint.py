"""Checkpoints: whole or not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hinet_model.training import checkpoint
from hinet_model.training.checkpoint import CheckpointError, Position

POSITION = Position(epoch=1, step=3, global_step=7, identity="same")


def written(folder: Path, step: int = 7) -> Path:
    return checkpoint.write(folder, {"w": torch.arange(3.0)}, replace(POSITION, global_step=step))


def test_state_and_position_come_back(tmp_path: Path) -> None:
    state, position = checkpoint.read(written(tmp_path))
    assert state["w"].tolist() == [0.0, 1.0, 2.0]
    assert position == POSITION
    assert position.best_value == float("-inf")


def test_without_a_manifest_it_does_not_exist(tmp_path: Path) -> None:
    newest, older = written(tmp_path, 8), written(tmp_path, 7)
    (newest / "manifest.json").unlink()
    assert checkpoint.latest(tmp_path) == older
    with pytest.raises(CheckpointError, match="not written to its end"):
        checkpoint.read(newest)


def test_a_damaged_file_is_named_and_passed_over(tmp_path: Path) -> None:
    older, newest = written(tmp_path, 7), written(tmp_path, 8)
    content = bytearray((newest / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "state.pt").write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"state\.pt is not what its manifest says"):
        checkpoint.read(newest)
    assert checkpoint.latest(tmp_path) == older


def test_a_half_written_checkpoint_is_never_found(tmp_path: Path) -> None:
    (tmp_path / ".step-000000009.partial").mkdir()
    assert checkpoint.latest(tmp_path) is None


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    first = written(tmp_path, 1)
    checkpoint.mark_best(tmp_path, first)
    for step in range(2, 6):
        written(tmp_path, step)
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step-000000004", "step-000000005"]
    _, best = checkpoint.read(tmp_path / "best")
    assert best.global_step == 1


def test_every_piece_that_is_written_or_hashed_is_a_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_CHUNK_BYTES", 1 << 16)
    signs: list[int] = []
    state = {"w": torch.arange(1 << 18, dtype=torch.float32)}  # 16 pieces of 64 KiB
    path = checkpoint.write(tmp_path, state, POSITION, lambda: signs.append(1))
    assert len(signs) >= 32, "16 while it is written, 16 while it is hashed"
    signs.clear()
    assert checkpoint.latest(tmp_path, lambda: signs.append(1)) == path
    assert len(signs) >= 16
    assert torch.equal(checkpoint.read(path)[0]["w"], state["w"])
