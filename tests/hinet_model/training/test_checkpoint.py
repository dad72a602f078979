"""Checkpoints: whole or not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hinet_model.nn.row_shard import WHOLE
from hinet_model.training import checkpoint, checkpoint_files
from hinet_model.training.checkpoint_files import CheckpointError
from hinet_model.training.position import Best, Position

POSITION = Position(epoch=1, step=3, global_step=7, identity={"model.name": "hinet"})


def written(folder: Path, step: int = 7, best: Best | None = None) -> Path:
    position = replace(POSITION, global_step=step, best=best)
    return Path(checkpoint.write(folder, {"w": torch.arange(3.0)}, position))


def test_state_and_position_come_back(tmp_path: Path) -> None:
    state, position = checkpoint.read(written(tmp_path))
    assert state["w"].tolist() == [0.0, 1.0, 2.0]
    assert position == POSITION
    assert position.best is None


def test_without_a_manifest_it_does_not_exist(tmp_path: Path) -> None:
    newest, older = written(tmp_path, 8), written(tmp_path, 7)
    (newest / "manifest.json").unlink()
    assert checkpoint.latest(tmp_path) == str(older)
    with pytest.raises(CheckpointError, match="not written to its end"):
        checkpoint.read(newest)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    newest = written(tmp_path)
    flip_a_bit(newest / "state.pt")
    with pytest.raises(CheckpointError, match=r"state\.pt is not what its manifest says"):
        checkpoint.read(newest)


@pytest.mark.parametrize("name", ["position.json", "manifest.json"])
def test_a_checkpoint_with_a_damaged_position_or_manifest_is_passed_over(tmp_path: Path, name: str) -> None:
    older, newest = written(tmp_path, 7), written(tmp_path, 8)
    (newest / name).write_bytes((newest / name).read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        checkpoint.read(newest)
    assert checkpoint.latest(tmp_path) == str(older)


def test_a_checkpoint_with_a_file_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    older, newest = written(tmp_path, 7), written(tmp_path, 8)
    (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:-1])
    assert checkpoint.latest(tmp_path) == str(older)


def test_a_half_written_checkpoint_is_never_found(tmp_path: Path) -> None:
    older, again = written(tmp_path, 7), written(tmp_path, 9)
    rows = checkpoint.write_rows(checkpoint.begin(tmp_path, 9), {}, WHOLE, 0)
    assert list(rows) == [path.name for path in again.iterdir()]
    assert checkpoint.latest(tmp_path) == str(older)


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    best = Best(0, 0.7, "step-000000001")
    for step in range(1, 6):
        checkpoint.prune(tmp_path, written(tmp_path, step, best), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000001",
        "step-000000004",
        "step-000000005",
    ]
    _, position = checkpoint.read(checkpoint.best_or_last(tmp_path))
    assert position.global_step == 1


def test_what_others_keep_under_a_checkpoint_s_name_is_left_where_it_is(tmp_path: Path) -> None:
    notes = tmp_path / "step-notes"
    notes.mkdir()
    for place in (tmp_path / "step-000000001", tmp_path / "step-000000004"):
        place.mkdir()
        (place / "notes.txt").write_text("mine")
        (place / ".state.pt-12-34").write_text("a killed writer's")
    (tmp_path / "step-000000002").write_text("a file of mine")
    for step in (3, 4, 5, 6):
        checkpoint.prune(tmp_path, written(tmp_path, step), keep=1)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [
        "step-000000001/notes.txt",
        "step-000000002",
        "step-000000004/notes.txt",
        *(f"step-000000006/{name}" for name in ("manifest.json", "position.json", "state.pt")),
    ]
    assert notes.is_dir()
    assert checkpoint.latest(tmp_path) == str(tmp_path / "step-000000006")


def test_every_piece_that_is_written_or_read_and_hashed_on_the_way_is_a_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_files, "_CHUNK_BYTES", 1 << 16)
    signs: list[int] = []
    state = {"w": torch.arange(1 << 18, dtype=torch.float32)}  # 16 pieces of 64 KiB
    path = checkpoint.write(tmp_path, state, POSITION, lambda: signs.append(1))
    assert len(signs) >= 16
    signs.clear()
    found, _, _ = checkpoint.read_shard(path, WHOLE, alive=lambda: signs.append(1))
    assert len(signs) >= 16
    assert torch.equal(found["w"], state["w"])
