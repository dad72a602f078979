"""Files of an object store: Petastorm gives the batches that it gives on paths, with few requests."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from test_loading import LAYOUT, TINY, facts, plan_for, write_snapshot

from feature_eng.snapshot import SnapshotError, SnapshotRef
from foundation import stores
from hinet_model.data import store_files
from hinet_model.data.loading import SnapshotReader
from hinet_model.data.store_files import ObjectFile


def on_store(snapshot: SnapshotRef, place: str) -> SnapshotRef:
    """The snapshot, its files copied to a place."""
    files = []
    for file in snapshot.files:
        target = stores.join(place, "split=a b%20", stores.name_of(file.path))
        stores.upload(Path(file.path), target)
        files.append(replace(file, path=target))
    return replace(snapshot, table=place, files=tuple(files))


def test_batches_from_an_object_store_are_those_of_a_path(tmp_path: Path, object_store: str) -> None:
    here = write_snapshot(tmp_path, TINY)
    there = on_store(here, stores.join(object_store, "tiny"))
    with SnapshotReader(here, "train", LAYOUT) as one, SnapshotReader(there, "train", LAYOUT) as other:
        for epoch in (0, 1):
            plan = plan_for(one, epoch=epoch)
            expected = [facts(batch) for batch in one.batches(plan, 0, 1)]
            assert expected
            assert [facts(batch) for batch in other.batches(plan, 0, 1)] == expected


def test_a_file_that_is_gone_from_the_store_is_named(tmp_path: Path, object_store: str) -> None:
    there = on_store(write_snapshot(tmp_path, TINY), stores.join(object_store, "gone"))
    stores.delete(there.files[1].path)
    with (
        SnapshotReader(there, "train", LAYOUT) as reader,
        pytest.raises(SnapshotError, match=r"s3://.*part-1\.parquet: the file is gone"),
    ):
        list(reader.batches(plan_for(reader), 0, 1))


class CountingFile(ObjectFile):
    """Remembers what was asked of the store."""

    def __init__(self, place: str) -> None:
        self.requests: list[tuple[int, int]] = []
        super().__init__(place)

    def _fetched(self, start: int, stop: int) -> bytes:
        self.requests.append((start, stop))
        return super()._fetched(start, stop)


@pytest.mark.parametrize("size", [0, 10, 300])
def test_a_file_is_read_as_any_file_is(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_files, "_END_BYTES", 64)
    content = bytes(place % 251 for place in range(size))
    (tmp_path / "x").write_bytes(content)
    found, expected = CountingFile(str(tmp_path / "x")), io.BytesIO(content)
    for offset, whence, count in [
        (0, 2, 5),
        (-8, 2, 4),
        (0, 1, 100),
        (0, 0, 7),
        (3, 1, 20),
        (200, 0, 90),
        (0, 0, -1),
    ]:
        if size + offset < 0:
            continue
        assert found.seek(offset, whence) == expected.seek(offset, whence)
        assert found.read(count) == expected.read(count)
        assert found.tell() == expected.tell()
    assert len(found.requests) <= 2


def test_the_footer_and_then_the_rest_are_asked_for_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_files, "_END_BYTES", 64)
    (tmp_path / "x").write_bytes(bytes(1000))
    file = CountingFile(str(tmp_path / "x"))
    for start in (992, 950, 10, 500, 0):
        file.seek(start)
        file.read(8)
    assert file.requests == [(936, 1000), (0, 936)]


def test_of_a_large_file_only_what_is_wanted_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_files, "_END_BYTES", 64)
    monkeypatch.setattr(store_files, "_WHOLE_BYTES", 500)
    (tmp_path / "x").write_bytes(bytes(range(200)) * 5)
    file = CountingFile(str(tmp_path / "x"))
    file.seek(992)
    file.read(8)
    file.seek(100)
    assert file.read(3) == bytes([100, 101, 102])
    assert file.requests == [(936, 1000), (100, 103)]
