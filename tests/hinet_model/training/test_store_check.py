"""The place of checkpoints: what the driver and the workers see is the same, or the run ends at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation import stores
from hinet_model.training.control.store_check import StoreCheckError, answer, token_at


@pytest.fixture(params=["path", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A run's place of checkpoints."""
    if request.param == "path":
        return f"{tmp_path}/checkpoints/run"
    return f"{request.getfixturevalue('object_store')}/{tmp_path.name}/run"


def test_workers_that_see_what_the_driver_sees_answer_and_nothing_is_left(folder: str) -> None:
    with token_at(folder) as token:
        for rank in range(3):
            answer(folder, token, rank)
        (check,) = stores.names(folder)
        assert stores.names(stores.join(folder, check, token)) == ["driver", "rank-0", "rank-1", "rank-2"]
    assert stores.names(folder) == []


def test_a_worker_with_a_disk_of_its_own_is_named(folder: str) -> None:
    with (
        token_at(folder) as token,
        pytest.raises(
            StoreCheckError, match=r"rank 2 on .* does not see in .*elsewhere what the driver wrote"
        ),
    ):
        answer(f"{folder}/elsewhere", token, 2)


def test_the_token_of_another_start_is_not_taken_for_this_one_s(folder: str) -> None:
    with token_at(folder) as old:
        pass
    with token_at(folder), pytest.raises(StoreCheckError, match="does not see"):
        answer(folder, old, 0)


def test_a_place_that_cannot_be_written_is_named(object_store: str) -> None:
    with (
        pytest.raises(StoreCheckError, match=r"the driver cannot write to s3://nosuchbucket/x"),
        token_at("s3://nosuchbucket/x"),
    ):
        pass


def test_a_worker_that_may_only_read_is_named(tmp_path: Path) -> None:
    with token_at(str(tmp_path)) as token:
        (tmp_path / ".store-check" / token / "rank-0").mkdir()  # a file of this name cannot be made
        with pytest.raises(StoreCheckError, match=r"rank 0 on .* cannot write to "):
            answer(str(tmp_path), token, 0)


def test_what_ended_the_run_is_told_and_not_that_the_token_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(place: str) -> None:
        raise OSError(30, "Read-only file system", place)

    with pytest.raises(ValueError, match="what ended the run"), token_at(str(tmp_path)):  # noqa: PT012
        monkeypatch.setattr(stores, "delete", refuses)
        raise ValueError("what ended the run")
