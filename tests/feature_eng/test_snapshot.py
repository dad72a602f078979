"""Snapshots as plain data: no Spark here."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_eng.snapshot import DataFile, SnapshotError, SnapshotRef, schema_hash

COLUMNS = (("row_id", "int64"), ("scenario_index", "int32"))


def a_snapshot(folder: Path) -> SnapshotRef:
    paths = [folder / "a b.parquet", folder / "b%20.parquet"]
    for path in paths:
        path.write_bytes(b"12345")
    return SnapshotRef(
        table=str(folder),
        version=3,
        table_id="id",
        files=(
            DataFile(str(paths[0]), 5, "train", (3, 2)),
            DataFile(str(paths[1]), 5, "test", (4,)),
        ),
        columns=COLUMNS,
        schema_hash=schema_hash(COLUMNS),
        contract_name="c",
        contract_fingerprint="f",
        encoder_path="/encoder",
        encoder_digest="d",
        scenario_rows={"train": (2, 3), "test": (4, 0)},
    )


def test_a_snapshot_survives_json(tmp_path: Path) -> None:
    snapshot = a_snapshot(tmp_path)
    assert SnapshotRef.from_json(snapshot.to_json()) == snapshot


def test_rows_are_counted_per_split(tmp_path: Path) -> None:
    snapshot = a_snapshot(tmp_path)
    assert [snapshot.rows(split) for split in ("train", "validation", "test")] == [5, 0, 4]


def test_untouched_files_pass_the_check(tmp_path: Path) -> None:
    a_snapshot(tmp_path).check_files("train")


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    snapshot = a_snapshot(tmp_path)
    (tmp_path / "a b.parquet").unlink()
    with pytest.raises(SnapshotError, match=r"a b\.parquet: the file is gone.*version 3"):
        snapshot.check_files("train")
    snapshot.check_files("test")


def test_a_file_of_another_size_is_named(tmp_path: Path) -> None:
    snapshot = a_snapshot(tmp_path)
    (tmp_path / "b%20.parquet").write_bytes(b"123456")
    with pytest.raises(SnapshotError, match=r"b%20\.parquet: the file has 6 bytes.*recorded 5"):
        snapshot.check_files("test")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', "null"])
def test_text_that_is_no_snapshot_is_refused(text: str) -> None:
    with pytest.raises(SnapshotError, match="not a snapshot"):
        SnapshotRef.from_json(text)


def test_the_schema_hash_tells_order_and_types_apart() -> None:
    hashes = {
        schema_hash(COLUMNS),
        schema_hash(COLUMNS[::-1]),
        schema_hash((("row_id", "int32"), ("scenario_index", "int32"))),
    }
    assert len(hashes) == 3
