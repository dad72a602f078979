"""What rows of a small log come to, column by column: a change of it is met here, before a user's days are mixed."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
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
from feature_eng.meaning import MEANING
from feature_eng.sampling import with_sampling
from feature_eng.split import with_split

HELD = Path(__file__).with_name("meaning.json")
NUMBERS = {
    "MEANING in feature_eng/meaning.py": MEANING,
    "FORMAT in feature_eng/tallies.py": tallies.FORMAT,
    "FORMAT in feature_eng/encoder/state.py": state.FORMAT,
}
DAY, HOUR, START = 86_400, 3_600, 1_711_756_800  # the day before clocks go forward in Berlin
TABLES = {
    name: {"path": name, "format": "parquet"} for name in ("shown", "orders", "searches", "users", "items")
}
MILLISECONDS = {"column": "at", "unit": "ms"}
CONTRACT: dict[str, Any] = {
    "source": {
        "main": "shown",
        "tables": {**TABLES, "orders": {**TABLES["orders"], "types": {"who": "integer"}}},
        "join": [
            {"table": "users", "on": "who", "newest": "seen_at"},
            {"table": "items", "on": "what", "as_of": {"column": "since", "zone": "Europe/Berlin"}},
        ],
    },
    "columns": {"key": ["row"], "user": "who", "item": "what", "time": {"column": "at", "zone": "Europe/Berlin"}},
    "scenario": {"column": "page", "values": {"home": {"in": [1]}, "search": {"range": [2, 3]}}},
    "tasks": {
        "click": {"column": "clicked", "equals": 1, "null_is": 0},
        "long": {"column": "dwell", "at_least": 30, "known_after": "dwell", "null_is": "missing"},
        "late": {"column": "clicked", "equals": "1", "known_after": "2h", "null_is": "missing", "scenarios": ["home"]},
        "order": {"table": "orders", "join_on": ["who", "what"], "within": "30h", "time": MILLISECONDS},
        "first": {"table": "orders", "join_on": ["who"], "within": "20h", "attribution": "first"},
        "last": {"table": "orders", "join_on": ["who"], "within": "20h", "attribution": "last"},
        "spent": {"table": "orders", "join_on": ["who"], "within": "1d", "sum": "amount", "at_least": 5},
    },
    "features": {
        "what": {"kind": "categorical", "column": "what", "min_count": 2},
        "query": {"kind": "categorical", "column": "query", "buckets": 50},
        "age": {"kind": "bucketed", "column": "age", "num_buckets": 3},
        "brand": {"kind": "categorical", "column": "brand"},
        "tags": {"kind": "multi_valued", "column": "tags", "separator": ";", "slots": 2},
        "price": {"kind": "numeric", "column": "price", "transform": "log1p"},
        "recent": {"kind": "history", "of": "what", "last": 3, "within": "2d"},
        "ordered": {"kind": "history", "of": "what", "last": 2, "when": "last"},
        "journey": {
            "kind": "history", "of": "what", "table": ["shown", "orders"], "last": 4, "ages": True, "kinds": True,
        },
        "searched": {"kind": "history", "of": "query", "table": "searches", "last": 2, "within": "12h"},
        "seen": {"kind": "count", "by": "item", "per_scenario": True},
        "searches": {"kind": "count", "table": "searches", "within": "1d"},
        "spent_rate": {"kind": "rate", "task": "spent", "by": "item"},
        "long_rate": {"kind": "rate", "task": "long", "prior": 0.2, "prior_rows": 3},
        "late_rate": {"kind": "rate", "task": "late", "by": "brand", "within": "1d"},
    },
    "split": {
        "method": "dates", "zone": "Europe/Berlin", "gap": "3h", "train": ["2024-03-30T04:00:00", "2024-04-01"],
        "validation": ["2024-04-02", "2024-04-02"], "test": ["2024-04-03", "2024-04-03"],
    },
    "weight": "worth",
    "sampling": {"keep_negatives": 0.6, "task": "click"},
}  # fmt: skip


def log(spark: SparkSession) -> dict[str, DataFrame]:
    """Six days of four users, with what rows have been seen to hold: blanks, repeats, values that cannot be read."""
    draw = random.Random(2)

    def at(hours: float) -> str:
        return str(START + int(hours * HOUR))

    shown = [
        (
            f"r{n:02}", draw.randrange(4), draw.choice("abcde"),
            f"2024-03-{30 + n // 12}T{n % 12 * 2:02}:15" if n < 24 else at(n * 2 + draw.random()),
            draw.choice([1, 1, 2, 3, 4]), draw.choice(["0", " 1", None]), draw.choice([None, 12.5, 40.0, 9000.25]),
            draw.choice(["x;y", ";z", "y"]), draw.choice(["shoes", "hat", None]), draw.randrange(5) / 2,
            draw.choice(["2.50", " 7", "dear", "19", None]),
        )
        for n in range(72)
    ]  # fmt: skip
    again, keyless, timeless = shown[5:8]
    shown += [(*again[:3], at(120), *again[4:]), (None, *keyless[1:])]
    shown += [("r99", *timeless[1:3], "x", *timeless[4:])]
    orders = [
        (f"{draw.randrange(4)}", draw.choice("abc"), (START + n * 4 * HOUR) * 1000 + 7, n * 0.75)
        for n in range(30)
    ]
    searches = [(draw.randrange(5), draw.choice(["hat", "shoes", None]), at(n * 3)) for n in range(44)]
    users = [(n % 4, 20 + n * 3, n) for n in range(6)]
    items = [("abcde"[n % 5], f"2024-03-{28 + n // 5 * 3}", f"brand {n // 2}") for n in range(10)]
    schemas = {
        "shown": "row string, who long, what string, at string, page long, clicked string, dwell double, tags string, "
        "query string, worth double, price string",
        "orders": "who string, what string, at long, amount double",
        "searches": "who long, query string, at string",
        "users": "who long, age long, seen_at long",
        "items": "what string, since string, brand string",
    }
    rows = {"shown": shown, "orders": orders, "searches": searches, "users": users, "items": items}
    return {name: spark.createDataFrame(rows[name], schema) for name, schema in schemas.items()}


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
