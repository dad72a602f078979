"""The log of a shop that docs/adding_data.md is worked through on: `python -m feature_eng.sources.shop_log FOLDER`."""

from __future__ import annotations

import csv
import json
import random
import sys
from pathlib import Path

PAGES = ("home", "search", "search_mobile", "category", "product", "checkout")
START = 1_714_521_600  # 1 May 2024
ROWS, DAYS, USERS, ITEMS = 4_000, 20, 150, 80


def write_shop_log(folder: Path, rows: int = ROWS, seed: int = 0) -> None:
    """Write ``shown.csv``, a row for each item shown, ``orders.json``, one for each order, and ``searches.csv``.

    Users like items of their own taste, which shows in clicks, dwell times and orders. As in logs of people, some
    rows are of a page that no scenario knows, some were logged twice, and some have no price.

    Args:
        folder: Made if it is not there.
        rows: Items shown.
        seed: Of all that is drawn.
    """
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    header = [
        "user_id",
        "item_id",
        "shown_at",
        "page",
        "clicked",
        "dwell_seconds",
        "query",
        "tags",
        "price",
        "hour",
    ]
    shown: list[list[object]] = []
    searches: list[list[object]] = []
    orders = []
    for row in range(rows):
        at = START + row * DAYS * 86_400 // rows
        user, item = draw.randrange(USERS), draw.randrange(ITEMS)
        page = draw.choices([*PAGES, "debug"], weights=[30, 15, 10, 20, 15, 10, 1])[0]
        clicked = draw.random() < (0.4 if user % 4 == item % 4 else 0.1)
        dwell = draw.randrange(5, 120) if clicked else 0
        query = draw.choice(["shoes", "coat", "hat"]) if page.startswith("search") else ""
        if query:
            searches.append([user, query, at - 5 - row % 20])
        price = "" if draw.random() < 0.02 else f"{10 + item / 4:.2f}"
        tags = ";".join(draw.sample(["new", "sale", "green", "kids"], item % 3))
        shown.append([user, item, at, page, int(clicked), dwell, query, tags, price, at // 3600 % 24])
        if clicked and draw.random() < 0.4:
            orders.append({"buyer": user, "product": item, "ordered_at": at + 60 * draw.randrange(2, 600)})
        if draw.random() < 0.005:
            shown.append(shown[-1])
    files: dict[str, list[list[object]]] = {
        "shown": [[*header], *shown],
        "searches": [["user_id", "query", "searched_at"], *searches],
    }
    for name, lines in files.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lines)
    (folder / "orders.json").write_text(
        "".join(json.dumps(order) + "\n" for order in orders), encoding="utf-8"
    )


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m feature_eng.sources.shop_log FOLDER")
    write_shop_log(Path(sys.argv[1]))
