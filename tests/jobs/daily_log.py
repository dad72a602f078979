"""A log of ten days with late rows, and its contract as it moves on from day to day: for tests of builds by date."""

from __future__ import annotations

import random
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_eng.contract import Contract, to_contract

FIRST, DAYS, DAY, HOUR = date(2024, 1, 1), 10, 86_400, 3_600
START = 1_704_067_200


def on(day: int) -> date:
    return FIRST + timedelta(days=day)


def contract_at(day: int, folder: Path, **sections: Any) -> Contract:
    """Labels are known after 30 hours: tested on the days until then, validated on the day before, trained until it."""
    spans = {"train": [None, on(day - 4)], "validation": [on(day - 3)] * 2, "test": [on(day - 2), None]}
    return to_contract(
        {
            "name": "days",
            "source": {
                "reader": "tables",
                "main": "shown",
                "tables": {
                    name: {"path": str(folder / f"{name}.parquet"), "format": "parquet"}
                    for name in ("shown", "orders", "carts")
                },
            },
            "columns": {"key": ["row"], "user": "who", "item": "what", "time": "at"},
            "scenario": {"column": "page", "values": {"home": {"in": [1]}, "search": {"in": [2]}}},
            "tasks": {
                "click": {"column": "clicked", "equals": 1, "known_after": "2h"},
                "order": {"table": "orders", "join_on": ["who", "what"], "within": "30h", "attribution": "last"},
            },
            "features": {
                "what": {"kind": "categorical", "column": "what"},
                "recent": {"kind": "history", "of": "what", "last": 3},
                "ordered": {"kind": "history", "of": "what", "last": 2, "when": "order"},
                "seen": {"kind": "count", "by": "item"},
                "order_rate": {"kind": "rate", "task": "order"},
                "ordered_lately": {"kind": "count", "table": "orders", "by": "item", "within": "2d"},
                "carted": {
                    "kind": "history", "of": "what", "table": ["shown", "carts"], "last": 3,
                    "ages": True, "kinds": True,
                },
                "click_rate": {"kind": "rate", "task": "click", "by": "item", "within": "3d"},
            },
            "sampling": {"keep_negatives": 0.5},
            "split": {
                "method": "dates", "gap": "3h",
                **{name: [end if end is None else end.isoformat() for end in span] for name, span in spans.items()},
            },
            **sections,
        }
    )  # fmt: skip


def write_log(folder: Path, until: int, rows_a_day: int = 12) -> None:
    """What has arrived by the end of a day: orders and carts come up to two days late, an impression of day 4 on day 6.

    Item d is new on day 3.
    """
    draw = random.Random(3)
    shown: list[dict[str, Any]] = []
    orders: list[dict[str, Any]] = []
    for row in range(rows_a_day * DAYS):
        at = START + row * DAY // rows_a_day + draw.randrange(HOUR)
        late = 2 if row == rows_a_day * 4 + 3 else 0
        items = "abc" if row < rows_a_day * 3 else "abcd"
        one = {"row": row, "who": draw.randrange(4), "what": draw.choice(items), "at": at,
               "page": draw.choice([1, 2]), "clicked": draw.randrange(2)}  # fmt: skip
        if (at - START) // DAY + late <= until:
            shown.append(one)
        if draw.random() < 0.4:
            ordered = at + draw.randrange(40 * HOUR)
            if (ordered - START) // DAY + draw.randrange(3) <= until:
                orders.append({"who": one["who"], "what": one["what"], "at": ordered})
    carts = [
        {"who": row % 5, "what": "abe"[row % 3], "at": START + row * 3 * HOUR}
        for row in range(8 * DAYS)
        if row // 8 + row % 3 <= until
    ]
    # The key of an earlier day once more, a row of no page, and one of no time.
    shown += [{**shown[5], "at": START + 8 * DAY}] if until >= 8 else []
    shown += [{**shown[6], "row": 1000, "page": 7}, {**shown[7], "row": 1001, "at": None}]
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(shown), folder / "shown.parquet")
    pq.write_table(pa.Table.from_pylist(orders), folder / "orders.parquet")
    pq.write_table(pa.Table.from_pylist(carts), folder / "carts.parquet")
