"""A small log with rows of every kind, and a contract that reads them by every kind of label, feature and table."""

from __future__ import annotations

import random
from typing import Any

from pyspark.sql import DataFrame, SparkSession

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
