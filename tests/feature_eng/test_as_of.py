"""What is known by a second: a build that is told it makes of a log what it would make of one that ends there."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from every_kind import CONTRACT, HOUR, START, log
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from small_logs import small_contract

from feature_eng import delta
from feature_eng.as_of import check_before, known
from feature_eng.behaviour import with_behaviour
from feature_eng.contract import SPLITS, Contract, ContractError
from feature_eng.events import Events, to_events
from feature_eng.examples import times_of, to_examples
from feature_eng.sampling import with_sampling
from feature_eng.snapshot import AS_OF as AS_OF_PROPERTY
from feature_eng.snapshot import END
from feature_eng.split import with_split

AS_OF = START + 75 * HOUR
CLICK = {"column": "clicked", "equals": 1, "null_is": 0}
PARTS: dict[str, dict[str, Any]] = {
    "labels of every kind": {},
    "cut by time, labels in one scenario alone": {
        "split": {"method": "time"},
        "tasks": {
            name: {**CLICK, "scenarios": ["home"]} for name in ("click", "last", "spent", "long", "late")
        },
    },
}


@pytest.fixture(scope="module")
def events(spark: SparkSession) -> Events:
    made = to_events(log(spark), small_contract(**CONTRACT))
    related = {name: rows.localCheckpoint() for name, rows in made.related.items()}
    return Events(made.impressions.localCheckpoint(), related, made.rejects)


def learned_from(events: Events, contract: Contract) -> list[str]:
    """Examples in train, validation and test, as text."""
    end = AS_OF
    times = times_of(events.impressions, contract, AS_OF, end)
    labelled = to_examples(events, contract, AS_OF, end)
    parted = with_sampling(with_split(labelled, contract, times), contract)
    rows = with_behaviour(parted, contract, related=events.related)
    return sorted(map(str, rows.where(F.col("split").isin(list(SPLITS))).collect()))


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_rows_are_those_of_a_log_that_ends_there(events: Events, part: str) -> None:
    contract = small_contract(**{**CONTRACT, **PARTS[part]})
    is_known = F.col("at") <= AS_OF

    def until(rows: DataFrame) -> DataFrame:
        return rows.where(is_known)

    cut = Events(
        until(events.impressions),
        {name: until(rows) for name, rows in events.related.items()},
        events.rejects,
    )
    found = learned_from(events, contract)
    assert found == learned_from(cut, contract)
    assert len(found) > 8


@pytest.mark.spark
def test_what_is_looked_at_ends_there_too(events: Events) -> None:
    contract = small_contract(**CONTRACT)
    rows, tables = known(events.impressions, events, contract, AS_OF)
    for found in (rows, tables.impressions, *tables.related.values()):
        assert found.agg(F.max("at")).collect()[0][0] <= AS_OF
    assert known(rows, events, contract, None) == (rows, events)


@pytest.mark.spark
@pytest.mark.parametrize(
    ("known_after", "before", "is_refused"),
    [
        (None, {}, True),
        (None, {AS_OF_PROPERTY: "1", END: "1"}, False),
        ("2h", {END: "1"}, False),
        ("dwell", {END: "1"}, True),
        ("dwell", {AS_OF_PROPERTY: "1", END: "1"}, False),
    ],
)
def test_days_are_not_built_as_of_a_time_after_a_build_that_took_all_for_known(
    spark: SparkSession, tmp_path: Path, known_after: str | None, before: dict[str, str], is_refused: bool
) -> None:
    contract = small_contract(
        tasks={"click": {**CLICK, **({"known_after": known_after} if known_after else {})}}
    )
    check_before(tmp_path, contract, AS_OF)  # there was no build before
    delta.write(spark.range(1), tmp_path, properties=before)
    check_before(tmp_path, contract, None)
    with (
        pytest.raises(ContractError, match=r"^--as-of: the build before was told none")
        if is_refused
        else nullcontext()
    ):
        check_before(tmp_path, contract, AS_OF)
