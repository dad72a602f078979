"""Running values in one pass over sorted facts: equal to a look at all pairs, wherever batches are cut."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pytest

from feature_eng.behaviour.running import Running
from feature_eng.contract import Behaviour, Count, History, Rate

FEATURES: dict[str, Behaviour] = {
    "recent": History(kind="history", last=3),
    "longer": History(kind="history", last=7),
    "seen": Count(kind="count"),
    "rate": Rate(kind="rate", task="click", prior=0.25, prior_rows=2),
    "lately": History(kind="history", last=3, within=4),
    "seen_lately": Count(kind="count", within=4),
    "rate_lately": Rate(kind="rate", task="click", prior=0.25, prior_rows=2, within=6),
    "journey": History(kind="history", last=4, within=9, table=("shown", "carts"), ages=True, kinds=True),
    "bought": History(kind="history", last=3, when="order", ages=True),
    "bought_lately": History(kind="history", last=3, when="order", within=5),
    "order_rate": Rate(kind="rate", task="order", prior=0.25, prior_rows=2),
    "order_rate_lately": Rate(kind="rate", task="order", prior=0.25, prior_rows=2, within=6),
}
FACTS = {
    "recent": "item", "longer": "item", "seen": "one", "rate": "label", "lately": "item", "seen_lately": "one",
    "rate_lately": "label", "journey": "step",
    "bought": "bought", "bought_lately": "bought", "order_rate": "ordered", "order_rate_lately": "ordered",
}  # fmt: skip
KNOWN_AT = {"bought": "known_at", "ordered": "known_at"}
TYPES = pa.schema(
    [
        ("user", pa.int64()), ("page", pa.string()), ("at__", pa.int64()), ("item", pa.string()),
        ("one", pa.int8()), ("label", pa.int8()), ("row__", pa.struct([("number", pa.int64())])),
        ("step", pa.struct([("item", pa.string()), ("kind", pa.int8())])),
        ("bought", pa.string()), ("ordered", pa.int8()), ("known_at", pa.int64()),
    ]
)  # fmt: skip


def drawn(seed: int, rows: int = 150) -> list[dict[str, Any]]:
    """Rows and facts of a few entities in order; many share their second, some bring nothing, some ask nothing."""
    draw = random.Random(seed)
    found = [
        {
            "user": draw.choice([None, 1, 2, 2, 2, 3]),
            "page": draw.choice(["a", "b"]),
            "at__": draw.randrange(20),
            "item": draw.choice([None, "x", "y", "z", "w"]),
            "one": draw.choice([None, 1, 1]),
            "label": draw.choice([None, 0, 1]),
            "step": draw.choice([None, {"item": draw.choice("xyz"), "kind": draw.randrange(2)}]),
            "bought": draw.choice([None, "x", "y", "z", "w"]),
            "ordered": draw.choice([None, 0, 1]),
            "row__": draw.choice([None, {"number": number}, {"number": number}]),
        }
        for number in range(rows)
    ]
    for row in found:  # some at once, some after all rows, some never
        row["known_at"] = draw.choice([None, row["at__"], row["at__"] + draw.randrange(9), 1 << 40])
    return sorted(found, key=lambda row: (row["user"] is None, row["user"] or 0, row["page"], row["at__"]))


def slow(rows: list[dict[str, Any]], place: int, entity: tuple[str, ...]) -> dict[str, Any]:
    """What the row at a place may know, by looking at all others."""
    asked = rows[place]
    before = [
        row
        for row in rows
        if None not in [asked[name] for name in entity]
        and all(row[name] == asked[name] for name in entity)
        and row["at__"] < asked["at__"]
    ]

    def known(name: str, within: int = 99) -> list[Any]:
        return [
            row[name] for row in before if row[name] is not None and row["at__"] >= asked["at__"] - within
        ]

    def waited(name: str, within: int = 99) -> list[tuple[Any, int]]:
        waiting = [
            (row["known_at"], place, row[name])
            for place, row in enumerate(rows)
            if row[name] is not None
            and row["known_at"] is not None
            and None not in [asked[part] for part in entity]
            and all(row[part] == asked[part] for part in entity)
            and asked["at__"] - within <= row["known_at"] < asked["at__"]
        ]
        return [(value, known_at) for known_at, _, value in sorted(waiting)]

    def order_rate(within: int = 99) -> float:
        labels = [value for value, _ in waited("ordered", within)]
        return float((sum(labels) + 0.5) / (len(labels) + 2))

    bought = waited("bought")[::-1][:3]
    journey = [
        (row["step"], asked["at__"] - row["at__"])
        for row in before
        if row["step"] is not None and row["at__"] >= asked["at__"] - 9
    ][::-1][:4]

    def rate(within: int = 99) -> float:
        labels = known("label", within)
        return float((sum(labels) + 0.5) / (len(labels) + 2))

    return {
        "number": asked["row__"]["number"],
        "recent": known("item")[::-1][:3],
        "longer": known("item")[::-1][:7],
        "seen": len(known("one")),
        "rate": rate(),
        "lately": known("item", 4)[::-1][:3],
        "seen_lately": len(known("one", 4)),
        "rate_lately": rate(6),
        "journey": [step["item"] for step, _ in journey],
        "journey__ages": [age for _, age in journey],
        "journey__kinds": [("shown", "carts")[step["kind"]] for step, _ in journey],
        "bought": [value for value, _ in bought],
        "bought__ages": [asked["at__"] - known_at for _, known_at in bought],
        "bought_lately": [value for value, _ in waited("bought", 5)[::-1][:3]],
        "order_rate": order_rate(),
        "order_rate_lately": order_rate(6),
    }


def answers(
    rows: list[dict[str, Any]], cuts: list[int], entity: tuple[str, ...], features: Mapping[str, Behaviour]
) -> list[dict[str, Any]]:
    table = pa.Table.from_pylist(rows, schema=TYPES).combine_chunks()
    ends = [0, *cuts, len(rows)]
    batches = [
        batch
        for start, end in itertools.pairwise(ends)
        for batch in table.slice(start, end - start).to_batches()
    ]
    found = Running(entity, FACTS, features, KNOWN_AT)(iter(batches))
    return [row for batch in found for row in batch.to_pylist()]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("entity", [("user",), ("user", "page")])
def test_every_row_sees_what_a_look_at_all_pairs_shows(seed: int, entity: tuple[str, ...]) -> None:
    rows = drawn(seed)
    if entity == ("user",):
        rows.sort(key=lambda row: (row["user"] is None, row["user"] or 0, row["at__"]))
    expected = [slow(rows, place, entity) for place, row in enumerate(rows) if row["row__"]]
    draw = random.Random(seed)
    assert len(expected) > 60
    assert max(len(row["longer"]) for row in expected) > 3
    assert max(len(row["bought"]) for row in expected) == 3
    for cuts in ([], list(range(1, len(rows))), sorted(draw.sample(range(1, len(rows)), 6))):
        assert answers(rows, cuts, entity, FEATURES) == expected


def test_a_batch_without_rows_that_ask_still_tells_the_next_one() -> None:
    facts = [
        {"user": 1, "page": "a", "at__": at, "item": "x", "one": 1, "label": 1, "row__": None,
         "step": {"item": "y", "kind": at % 2}, "bought": "z", "ordered": 1, "known_at": 6 + at}
        for at in range(3)
    ]  # fmt: skip
    asking = {
        "user": 1,
        "page": "a",
        "at__": 9,
        "item": None,
        "one": None,
        "label": None,
        "row__": {"number": 0},
        "step": None,
        "bought": None,
        "ordered": None,
        "known_at": None,
    }
    assert answers([*facts, asking], [3], ("user",), FEATURES) == [
        {
            "number": 0,
            "recent": ["x"] * 3,
            "longer": ["x"] * 3,
            "seen": 3,
            "rate": 3.5 / 5,
            "lately": [],
            "seen_lately": 0,
            "rate_lately": 0.25,
            "journey": ["y"] * 3,
            "journey__ages": [7, 8, 9],
            "journey__kinds": ["shown", "carts", "shown"],
            "bought": ["z"] * 3,
            "bought__ages": [1, 2, 3],
            "bought_lately": ["z"] * 3,
            "order_rate": 3.5 / 5,
            "order_rate_lately": 3.5 / 5,
        }
    ]
