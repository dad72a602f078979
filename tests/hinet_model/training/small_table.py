"""Rows of a small training table, and its schema, as a model is told of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

NUM_USERS, NUM_MOVIES = 200, 300
TRAIN_ROWS, VALIDATION_ROWS = 2003, 601

SCHEMA: dict[str, Any] = {
    "fields": [
        {"name": "user_id", "kind": "index", "slots": 1, "size": NUM_USERS, "columns": ["user_id"], "shares": None},
        {"name": "movie_id", "kind": "index", "slots": 1, "size": NUM_MOVIES, "columns": ["movie_id"], "shares": None},
        {"name": "genres", "kind": "indices", "slots": 2, "size": 5, "columns": ["genres__0", "genres__1"],
         "shares": None},
        {"name": "year", "kind": "number", "slots": 1, "size": 0, "columns": ["year"], "shares": None},
    ],
    "scenario_names": ["home", "search", "channel"],
    "task_names": ["click", "like"],
}  # fmt: skip


def rows_of(rng: np.random.Generator, rows: int, first_id: int) -> pa.Table:
    user = rng.integers(1, NUM_USERS, rows).astype(np.int32)
    movie = rng.integers(1, NUM_MOVIES, rows).astype(np.int32)
    taste = np.sin(user * 1.7) + np.cos(movie * 2.3)
    return pa.table(
        {
            "row_id": np.arange(rows, dtype=np.int64) + first_id,
            # Unequal scenarios, and one of them rare.
            "scenario_index": np.select([user % 10 == 0, user % 2 == 0], [2, 1], 0).astype(np.int32),
            "label__click": (taste > 0).astype(np.float32),
            "label__like": (taste > 0.8).astype(np.float32),
            "user_id": user,
            "movie_id": movie,
            "genres__0": rng.integers(0, 5, rows).astype(np.int32),
            "genres__1": rng.integers(-1, 5, rows).astype(np.int32),
            "year": rng.normal(size=rows).astype(np.float32),
        }
    )
