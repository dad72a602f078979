"""The log that building features is measured on: six scenarios, skewed users and items, orders in a second table.

Rows are drawn by numpy, a million at a time, and written as Parquet in the order of their times, as logs are. Some
columns, long texts among them, are used by nothing, as in logs that others keep.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_eng.contract import Contract, to_contract

DAYS = 10
DAY = 86_400
START = 1_704_067_200
"""2024-01-01 00:00 UTC."""
_CHUNK = 1_000_000
_SHARES = (0.404, 0.305, 0.172, 0.079, 0.030, 0.010)
_CITIES, _DEVICES, _CATEGORIES = 200, 8, 400


def write_log(folder: Path, rows: int, seed: int = 0) -> None:
    """Write ``impressions/`` and ``orders/`` below a folder.

    One user for 30 rows and one item for 100; the tenth of them that is met most has about a third of the rows.
    Three impressions in ten are clicked, one click in ten is ordered, six hours later in the mean.

    Args:
        folder: Where to.
        rows: Impressions, spread evenly over ten days.
        seed: Of everything that is drawn.
    """
    for name in ("impressions", "orders"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    users, items = max(100, rows // 30), max(100, rows // 100)
    for chunk, first in enumerate(range(0, rows, _CHUNK)):
        draw = np.random.default_rng([seed, chunk])
        count = min(_CHUNK, rows - first)
        number = np.arange(first, first + count)
        user = (users * draw.random(count) ** 2).astype(np.int64)
        item = (items * draw.random(count) ** 3).astype(np.int64)
        shown_at = START + number * (DAYS * DAY) // rows
        clicked = (draw.random(count) < 0.2 + 0.2 * ((user + item) % 2)).astype(np.int32)
        impressions: dict[str, Any] = {
            "impression_id": number,
            "user_id": user,
            "item_id": item * 7919,
            "scenario_id": draw.choice(len(_SHARES), count, p=np.array(_SHARES) / sum(_SHARES)) + 1,
            "shown_at": shown_at,
            "city": _texts("city", user % _CITIES),
            "device": _texts("device", draw.integers(0, _DEVICES, count)),
            "category": _texts("category", item % _CATEGORIES),
            "price": np.round(np.exp(3 + (item % 997) / 300), 2),
            "clicked": clicked,
            "trace": _texts("00-4bf92f3577b34da6a3ce929d0e0e4736-", number * 2_654_435_761 % 2**32),
            "agent": _texts("Mozilla/5.0 (X11; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/", user % 50),
            "screen": draw.integers(0, 10, count),
            "latency": draw.random(count),
        }
        _write(folder / "impressions" / f"part-{chunk:05}.parquet", impressions)
        ordered = np.flatnonzero((clicked == 1) & (draw.random(count) < 0.1))
        delay = draw.exponential(6 * 3600, len(ordered)).astype(np.int64)
        orders = {
            "user_id": user[ordered],
            "item_id": item[ordered] * 7919,
            "ordered_at": shown_at[ordered] + delay,
            "amount": draw.random(len(ordered)),
        }
        _write(folder / "orders" / f"part-{chunk:05}.parquet", orders)


def contract_of(folder: Path, *, by_date: bool = False) -> Contract:
    """Two tasks and thirteen features: six of the row, two histories of ten, five rates.

    Args:
        folder: Of the log.
        by_date: Split by dates, not by shares of rows, so that days can be built one by one, by an encoder that grows.
    """
    spans = {"train": [None, "2024-01-06"], "validation": ["2024-01-07"] * 2, "test": ["2024-01-08", None]}
    rate = {"kind": "rate", "prior_rows": 20}
    return to_contract(
        {
            "name": "measured",
            "source": {
                "reader": "tables",
                "main": "impressions",
                "tables": {
                    name: {"path": str(folder / name), "format": "parquet"} for name in ("impressions", "orders")
                },
            },
            "columns": {
                "key": ["impression_id"], "user": "user_id", "item": "item_id", "time": "shown_at",
            },
            "scenario": {
                "column": "scenario_id",
                "values": {f"s{number}": {"in": [number]} for number in range(1, len(_SHARES) + 1)},
            },
            "tasks": {
                "click": {"column": "clicked", "equals": 1},
                "order": {"table": "orders", "join_on": ["user_id", "item_id"], "within": "24h", "time": "ordered_at"},
            },
            "features": {
                "user_id": {"kind": "categorical", "column": "user_id"},
                "item_id": {"kind": "categorical", "column": "item_id"},
                "city": {"kind": "categorical", "column": "city"},
                "device": {"kind": "categorical", "column": "device"},
                "category": {"kind": "categorical", "column": "category"},
                "price": {"kind": "bucketed", "column": "price", "num_buckets": 10},
                "recent": {"kind": "history", "of": "item", "last": 10},
                "recent_clicked": {"kind": "history", "of": "item", "last": 10, "when": "click"},
                "user_click_rate": {**rate, "task": "click", "prior": 0.3},
                "user_order_rate": {**rate, "task": "order", "prior": 0.03},
                "item_click_rate": {**rate, "task": "click", "by": "item", "prior": 0.3},
                "item_order_rate": {**rate, "task": "order", "by": "item", "prior": 0.03},
                "user_click_trend": {**rate, "task": "click", "prior": 0.3, "prior_rows": 2},
            },
            "split": (
                {"method": "dates", **spans} if by_date else {"method": "time", "fractions": [0.8, 0.1, 0.1]}
            ),
            **({"encoder": {"from": "previous"}} if by_date else {}),
        }
    )  # fmt: skip


def _texts(prefix: str, numbers: np.ndarray[Any, np.dtype[Any]]) -> pa.Array:
    """``<prefix><number>``, each distinct text made once."""
    distinct, places = np.unique(numbers, return_inverse=True)
    texts = pa.array([f"{prefix}{number}" for number in distinct.tolist()])
    return texts.take(pa.array(places))


def _write(place: Path, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), place, row_group_size=250_000)
