"""What rows of a small log come to, column by column: a change of it is met here, before a user's days are mixed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from every_kind import CONTRACT, log
from pyspark.sql import DataFrame, SparkSession
from small_logs import small_contract

from feature_eng import tallies
from feature_eng.behaviour import with_behaviour
from feature_eng.cells import tally
from feature_eng.contract import Contract
from feature_eng.encoder import spark as encoder
from feature_eng.encoder import state
from feature_eng.encoder.fit import fit
from feature_eng.events import Events, to_events
from feature_eng.examples import to_examples
from feature_eng.meaning import MEANING, check_meaning
from feature_eng.sampling import with_sampling
from feature_eng.snapshot import MEANING_OF_ROWS, SnapshotError
from feature_eng.split import with_split

HELD = Path(__file__).with_name("meaning.json")
NUMBERS = {
    "MEANING in feature_eng/meaning.py": MEANING,
    "FORMAT in feature_eng/tallies.py": tallies.FORMAT,
    "FORMAT in feature_eng/encoder/state.py": state.FORMAT,
}


def digests(frame: DataFrame, by: str | None = None) -> dict[str, str]:
    """Of each column: of its values, in the order of another column or of their text."""
    rows = [{name: text(value) for name, value in row.asDict().items()} for row in frame.collect()]
    rows.sort(key=lambda row: row[by] if by else sorted(row.items()))
    return {
        name: hashlib.sha256("\n".join(row[name] for row in rows).encode()).hexdigest()[:12]
        for name in sorted(frame.columns)
    }


def text(value: Any) -> str:
    """A value as text; of a number the digits that no machine gives otherwise."""
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


@pytest.fixture(scope="module")
def found(spark: SparkSession) -> dict[str, dict[str, str]]:
    """What the log comes to: number that stands for it -> column -> digest."""
    contract: Contract = small_contract(**CONTRACT)
    made = to_events(log(spark), contract, by_date=True)
    # Each stage reads what the one before has made, as a build does.
    events = Events(
        impressions=made.impressions.localCheckpoint(),
        related={name: rows.localCheckpoint() for name, rows in made.related.items()},
        rejects=made.rejects,
    )
    labelled = to_examples(events, contract).localCheckpoint()
    parted = with_sampling(with_split(labelled, contract), contract)
    told = with_behaviour(parted, contract, related=events.related)
    examples = encoder.with_row_id(told, contract).localCheckpoint()
    state = fit(examples, contract)
    assert {row[0] for row in examples.select("split").distinct().collect()} == {
        "train", "validation", "test", "immature", "gap", "unsampled", "outside",
    }  # fmt: skip
    counted = spark.createDataFrame(
        [{**one, "digest": str(one["digest"])} for one in tally(examples, contract)]
    )
    parts = {"examples": digests(examples, "row"), "events": digests(events.impressions, "row")}
    parts |= {f"events_{name}": digests(rows) for name, rows in events.related.items()}
    learned = {name: repr(one) for name, one in state.operations.items()}
    learned |= {f"vocabulary of {name}": str(keys.to_pylist()) for name, keys in state.vocabularies.items()}
    encoded = encoder.encode(examples.where("split IN ('train', 'validation', 'test')"), state)
    return {
        "MEANING in feature_eng/meaning.py": {
            f"{part}.{name}": digest for part, columns in parts.items() for name, digest in columns.items()
        },
        "FORMAT in feature_eng/tallies.py": digests(counted),
        "FORMAT in feature_eng/encoder/state.py": {
            **{name: hashlib.sha256(one.encode()).hexdigest()[:12] for name, one in learned.items()},
            **{f"training.{name}": digest for name, digest in digests(encoded, "row_id").items()},
        },
    }


@pytest.mark.spark
@pytest.mark.slow
def test_what_rows_mean_is_what_its_number_says(found: Mapping[str, dict[str, str]]) -> None:
    now = {number: {"is": NUMBERS[number], "of": columns} for number, columns in found.items()}
    if "WRITE_MEANING" in os.environ:
        HELD.write_text(json.dumps(now, indent=1) + "\n")
    held = json.loads(HELD.read_text())
    for number, is_now in now.items():
        one, other = held[number]["of"], is_now["of"]
        differ = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
        assert (is_now["is"], differ) == (held[number]["is"], []), (
            f"{', '.join(differ) or 'no column'} came out otherwise than {HELD.name} has it. By mistake? Mend it. "
            f"Meant so? Raise {number} ({held[number]['is']}), where it says what that does to users' tables. The log "
            "of this test grew? Nothing to raise. Then write the new digests: "
            f"WRITE_MEANING=1 pytest tests/feature_eng/{Path(__file__).name}"
        )


def test_requests_are_not_told_by_rows_that_meant_something_else() -> None:
    check_meaning("training", {MEANING_OF_ROWS: str(MEANING)})
    # Builds before there was a number were of the first.
    for number, said in (("1", {}), ("0", {MEANING_OF_ROWS: "0"})):
        with pytest.raises(
            SnapshotError,
            match=rf"^training: .* \(meaning {number}, now {MEANING}\); build the features again",
        ):
            check_meaning("training", said)
