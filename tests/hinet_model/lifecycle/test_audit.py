"""The audit keeps every decision, and lets one promoter move a model's aliases at a time."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hinet_model.lifecycle import audit
from hinet_model.lifecycle.audit import Audit, ClaimedError, Record, beside


def record(version: str, model: str = "small") -> Record:
    return Record(model, version, "promote", "", champion_before=None, champion_after=version)


@pytest.fixture
def table(tmp_path: Path) -> str:
    return str(tmp_path / "warehouse" / "promotions")


def test_records_are_kept_in_order_with_who_and_why(table: str) -> None:
    assert Audit(table).records() == []
    Audit(table, "ann").write(
        Record("small", "1", "promote", "refused", reasons=("a/click: worse", "b: no rows"))
    )
    with Audit(table, "bob").claim(record("2")):
        pass
    Audit(table, "cid").write(Record("large", None, "rollback", "refused"))
    found = Audit(table).records("small")
    assert [(row["who"], row["version"], row["outcome"]) for row in found] == [
        ("ann", "1", "refused"), ("bob", "2", "claimed"), ("bob", "2", "done"),
    ]  # fmt: skip
    assert found[0]["reasons"] == ["a/click: worse", "b: no rows"]
    assert datetime.now(UTC) - found[0]["at"] < timedelta(minutes=1)
    assert len(Audit(table).records()) == 4


def test_whoever_comes_while_a_claim_is_open_is_told_by_whom(table: str) -> None:
    with Audit(table, "ann").claim(record("2")):
        with (
            pytest.raises(ClaimedError, match="of version 2 by ann is under way"),
            Audit(table).claim(record("3")),
        ):
            pytest.fail("two at once")
        with Audit(table).claim(record("1", model="another")):
            pass
    with Audit(table).claim(record("3")):
        pass


def test_a_move_that_fails_is_recorded_and_lets_go(table: str) -> None:
    with pytest.raises(OSError, match="server"), Audit(table).claim(record("2")):
        raise OSError("the server is gone")
    assert [row["outcome"] for row in Audit(table).records()] == ["claimed", "failed"]
    failed = Audit(table).records()[-1]
    assert (failed["reasons"], failed["champion_after"]) == (["the server is gone"], None)
    with Audit(table).claim(record("3")):
        pass


def test_a_claim_whose_promoter_died_does_not_block_forever(
    table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = Audit(table).claim(record("2"))
    left.__enter__()
    with pytest.raises(ClaimedError), Audit(table).claim(record("3")):
        pytest.fail("two at once")
    monkeypatch.setattr(audit, "CLAIM_SECONDS", 0)
    with Audit(table).claim(record("3")):
        pass


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("store", ["disk", "object store"])
def test_of_many_at_the_same_moment_one_wins_and_the_others_are_told(
    table: str, object_store: str, store: str, exists: bool
) -> None:
    if store == "object store":
        table = f"{object_store}/{exists}/a b/promotions"
    if exists:
        Audit(table).write(Record("small", "1", "approve", "approved"))
    start, leave = threading.Barrier(6), threading.Event()
    held: list[str] = []
    told: list[str] = []

    def go(name: str) -> None:
        start.wait()
        try:
            with Audit(table, name).claim(record(name)):
                held.append(name)
                leave.wait(30)
        except ClaimedError as error:
            told.append(str(error))
        if len(told) == 5:
            leave.set()

    threads = [threading.Thread(target=go, args=(str(name),)) for name in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(held) == 1
    assert len(told) == 5


def test_the_audit_lies_beside_the_training_table() -> None:
    assert beside("/w/movielens/training") == "/w/movielens/promotions"
    assert beside("s3://bucket/w/training/") == "s3://bucket/w/promotions"
