"""Small samples in the shapes in which public data sets come: made up, files and columns by their published names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

CHINA = 8 * 3600


def write_kuairand(folder: Path) -> None:
    """The two logs by their dates, and the tables of users and videos; one user and one video are in no table."""
    random = np.random.default_rng(0)
    for name, first, days, rows in (
        ("4_08_to_4_21", "2022-04-08", 14, 240),
        ("4_22_to_5_08", "2022-04-22", 17, 240),
    ):
        begin = int(pd.Timestamp(first, tz="Asia/Shanghai").timestamp())
        at = np.sort(random.integers(begin, begin + days * 86_400, rows))
        local = pd.to_datetime(at + CHINA, unit="s")
        watched = random.integers(0, 60_000, rows)
        pd.DataFrame(
            {
                "user_id": random.integers(0, 21, rows), "video_id": random.integers(0, 31, rows),
                "date": local.strftime("%Y%m%d"), "hourmin": local.hour * 100, "time_ms": at * 1000 + 345,
                "is_click": (watched > 7000).astype(int), "is_like": 0, "is_follow": 0, "is_comment": 0,
                "is_forward": 0, "is_hate": 0, "long_view": (watched > 18_000).astype(int),
                "play_time_ms": watched, "duration_ms": random.integers(5000, 90_000, rows),
                "profile_stay_time": 0, "comment_stay_time": 0, "is_profile_enter": 0, "is_rand": 0,
                "tab": random.choice([0, 1, 2, 4, 6, 9], rows),
            }
        ).to_csv(folder / f"log_standard_{name}_pure.csv", index=False)  # fmt: skip
    ranges = {
        "follow_user_num": "(0,10]",
        "fans_user_num": "[1,10)",
        "friend_user_num": "0",
        "register_days": "730+",
    }
    users = {"user_id": np.arange(20), "user_active_degree": "full_active", "is_lowactive_period": 0}
    users |= {"is_live_streamer": 0, "is_video_author": np.arange(20) % 2}
    for column, value in ranges.items():
        users |= {column: np.arange(20), f"{column}_range": value}
    users |= {f"onehot_feat{place}": np.arange(20) % (place + 2) for place in range(18)}
    pd.DataFrame(users).to_csv(folder / "user_features_pure.csv", index=False)
    pd.DataFrame(
        {
            "video_id": np.arange(30), "author_id": np.arange(30) // 3, "video_type": "NORMAL",
            "upload_dt": "2022-04-01", "upload_type": "ShortImport", "visible_status": 1.0,
            "video_duration": 17_200.0, "server_width": 720, "server_height": 1280, "music_id": 989_206_467,
            "music_type": 4.0, "tag": ["12,65" if place % 3 else "" for place in range(30)],
        }
    ).to_csv(folder / "video_features_basic_pure.csv", index=False)  # fmt: skip


def write_tenrec(folder: Path) -> None:
    """One file without times, missing values as ``\\N``; ten rows stand in it twice."""
    random = np.random.default_rng(1)
    rows = 300
    click = random.integers(0, 2, rows)
    log = pd.DataFrame(
        {
            "user_id": np.sort(random.integers(1, 30, rows)), "item_id": random.integers(1, 40, rows),
            "click": click, "follow": click * random.integers(0, 2, rows), "like": click * random.integers(0, 2, rows),
            "share": click * random.integers(0, 2, rows), "video_category": random.choice(["0", "1", "\\N"], rows),
            "watching_times": click, "gender": random.choice(["1", "2", "\\N"], rows),
            "age": random.integers(0, 8, rows),
        }
    )  # fmt: skip
    pd.concat([log, log[:10]]).to_csv(folder / "QK-video.csv", index=False)


def write_ali_ccp(folder: Path) -> None:
    """Three files by split; columns called by the numbers of fields."""
    random = np.random.default_rng(2)
    fields = [*range(121, 123), *range(124, 130), 205, 206, 207, 210, 216, 508, 509, 702, 853]
    for name, rows in (("train", 240), ("val", 60), ("test", 90)):
        click = random.integers(0, 2, rows)
        columns = {"click": click, "purchase": click * random.integers(0, 2, rows)}
        columns |= {str(field): random.integers(1, 9, rows) for field in (101, *fields)}
        columns["301"] = random.integers(1, 4, rows)
        columns |= {
            f"D{column}": random.uniform(0, 3, rows).round(5)
            for column in ("109_14", "110_14", "127_14", "150_14", "508", "509", "702", "853")
        }
        pd.DataFrame(columns).to_csv(folder / f"ali_ccp_{name}.csv", index=False)


def write_aliexpress(folder: Path) -> None:
    """Two files of items and two of users for each country, without headers; searches have numbers of their own."""
    random = np.random.default_rng(3)
    for country in ("nl", "es", "fr", "us"):
        for half, searches in (("train", 40), ("test", 12)):
            users = random.integers(0, 5, (searches, 33)).astype(float).round(3)
            users[:, 0] = np.arange(searches) + 1000
            items = random.uniform(0, 3, (searches * 3, 49)).round(3)
            items[:, 0] = np.repeat(users[:, 0], 3)
            items[:, [18, 33, 34, 35, 39, 40, 41]] = random.integers(0, 9, (searches * 3, 7))
            items[:, 48] = random.integers(0, 3, searches * 3)
            for kind, table, whole in (("user", users, [0]), ("item", items, [0, 48])):
                frame = pd.DataFrame(table).astype(dict.fromkeys(whole, int))
                frame.to_csv(folder / f"{country}_{kind}_{half}.csv", index=False, header=False)


def write_travel(folder: Path) -> None:
    """Four offers to each search, and the trip that came of half of them: with the first, or all but its stop."""
    random = np.random.default_rng(4)
    searches = 90
    search = np.repeat(np.arange(searches), 4)
    at = pd.Timestamp("2024-03-01", tz="UTC") + pd.to_timedelta(search * 8, unit="h")
    offers = pd.DataFrame(
        {
            "search_id": search, "offer": np.tile(np.arange(4), searches), "traveller_id": search % 17,
            "searched_at": at, "channel": np.repeat(random.choice(["app", "web", "desk", "phone"], searches), 4),
            "departs_on": (at + pd.to_timedelta(random.integers(1, 9, len(search)), unit="D")).date,
            "means": random.choice(["train", "plane", "coach"], len(search)),
            "destination": random.choice(["Riga", "Oslo", "Porto"], len(search)),
            "via": random.choice(["Paris", "Berlin", None], len(search)), "price": random.uniform(20, 400, len(search)),
        }
    )  # fmt: skip
    first = offers[(offers["offer"] == 0) & (offers["search_id"] % 2 == 0)]
    trips = first[["search_id", "departs_on", "means", "destination", "via"]].copy()
    trips["via"] = trips["via"].where(trips["search_id"] % 4 == 0, "Vienna")
    trips["booked_at"] = first["searched_at"] + pd.Timedelta("2h")
    for name, table in (("offers", offers), ("trips", trips)):
        (folder / name).mkdir()
        table.to_parquet(folder / name / "part-0.parquet", index=False)


SAMPLES: dict[str, Callable[[Path], None]] = {
    "kuairand_pure": write_kuairand,
    "tenrec_qk_video": write_tenrec,
    "ali_ccp": write_ali_ccp,
    "aliexpress": write_aliexpress,
    "travel": write_travel,
}
"""Contract in conf/contracts -> what writes a sample of its data into a folder."""
