"""Part examples into train, validation and test, and name the rows that are in none of them.

Source of ``user_disjoint``: the order in which the code of M3oE (SIGIR 2024) reads MovieLens-1M.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from feature_eng.contract import SPLITS, Contract, ContractError, quoted
from feature_eng.events import column
from feature_eng.quantiles import quantiles

IMMATURE, GAP, OUTSIDE = "immature", "gap", "outside"
"""Of rows in no split: a label is not known yet; too close before the next split; no date is theirs."""


def with_split(examples: DataFrame, contract: Contract, times: DataFrame | None = None) -> DataFrame:
    """Add ``split``, and drop ``is_mature``: train, validation, test, or why a row is in none of them.

    - ``time``: one cut-off for all rows, at the shares of rows that the contract names; rows of equal
      time are never parted, so the shares are met as nearly as times allow.
    - ``dates``: by the spans that the contract names.
    - ``column``: as the column says that the contract names.
    - ``random``: by a seeded hash of the row's key; a row keeps its split when others come or go.
    - ``user_disjoint``: rows sorted stably by first appearance of the item, then of the user, and cut
      by count. No test row has a user of train as long as validation spans two users; the users
      on whom the two cuts fall have rows on both sides of it.

    Rows with a label that is not known yet are parted from the others before any shares are taken. With
    ``gap`` the rows at most so long before the first second of the next split are in none.

    Cut-offs are computed at once.

    Args:
        examples: The rows to part, with ``is_mature`` where labels may not be known yet.
        contract: The data contract.
        times: The same rows with the time and ``is_mature`` alone, to compute cut-offs from: what is cheaper
            to read than ``examples``, which it is done from when left out.
    """
    is_mature = "is_mature" in examples.columns
    mature = examples.where(F.col("is_mature")).drop("is_mature") if is_mature else examples
    if contract.split.method == "user_disjoint":
        parted = _with_user_split(mature, contract)
        if not is_mature:
            return parted
        immature = examples.where(~F.col("is_mature")).drop("is_mature")
        return parted.unionByName(immature.withColumn("split", F.lit(IMMATURE)))
    split_of = {"time": _time_split, "dates": _dates_split, "random": _random_split, "column": _column_split}
    if times is not None:
        mature = times.where(F.col("is_mature")) if is_mature else times
    split = split_of[contract.split.method](mature, contract)
    if is_mature:
        split = F.when(F.col("is_mature"), split).otherwise(IMMATURE)
    return examples.select("*", split.alias("split")).drop("is_mature")


def _shares(contract: Contract) -> tuple[float, float]:
    train, validation, test = contract.split.fractions
    return train, 1.0 if test == 0 else min(1.0, round(train + validation, 12))


def _split_where(in_train: Column, in_validation: Column) -> Column:
    return F.when(in_train, SPLITS[0]).when(in_validation, SPLITS[1]).otherwise(SPLITS[2])


def _time_split(mature: DataFrame, contract: Contract) -> Column:
    assert contract.columns.time is not None, "checked by the contract"
    time = column(contract.columns.time)
    ends = quantiles(mature, {"cuts": (time, _shares(contract))})["cuts"]
    if not ends:
        raise ContractError(["split.method: there are no rows to part by time"])
    split = _split_where(time <= F.lit(ends[0]), time <= F.lit(ends[1]))
    # Where nothing comes after, there is nothing to keep apart from.
    later = [sum(contract.split.fractions[place:]) for place in (1, 2)]
    return _without_gaps(
        split, contract, [end + 1 for end, share in zip(ends, later, strict=True) if share > 0]
    )


def _dates_split(mature: DataFrame, contract: Contract) -> Column:
    assert contract.columns.time is not None, "checked by the contract"
    time = column(contract.columns.time)
    split = F.lit(OUTSIDE)
    for name, (first, last) in contract.split.spans.items():
        inside = F.lit(True) if first is None else time >= F.lit(first)
        split = F.when(inside if last is None else inside & (time <= F.lit(last)), name).otherwise(split)
    later = list(contract.split.spans.values())[1:]
    return _without_gaps(split, contract, [first for first, _ in later if first is not None])


def _without_gaps(split: Column, contract: Contract, starts: list[int]) -> Column:
    """Take the rows at most ``gap`` seconds before each of ``starts`` out of their split."""
    gap = contract.split.gap
    if gap is None:
        return split
    assert contract.columns.time is not None, "checked by the contract"
    for start in starts:
        is_close = split.isin(list(SPLITS)) & column(contract.columns.time).between(start - gap, start - 1)
        split = F.when(is_close, GAP).otherwise(split)
    return split


def _column_split(mature: DataFrame, contract: Contract) -> Column:
    assert contract.split.column is not None, "checked by the contract"
    said = column(contract.split.column).cast("string")
    return F.when(said.isin(list(SPLITS)), said).otherwise(OUTSIDE)


def _random_split(mature: DataFrame, contract: Contract) -> Column:
    keys = (column(name) for name in contract.key)
    hashed = F.xxhash64(*keys, F.lit(contract.split.seed).cast("bigint"))
    # The upper 53 bits, which a double holds exactly, as a fraction of 1.
    uniform = F.shiftrightunsigned(hashed, 11).cast("double") / F.lit(float(2**53))
    train, validation = _shares(contract)
    return _split_where(uniform < train, uniform < validation)


def _with_user_split(examples: DataFrame, contract: Contract) -> DataFrame:
    assert contract.columns.position is not None, "checked by the contract"
    assert contract.columns.user is not None, "checked by the contract"
    assert contract.columns.item is not None, "checked by the contract"
    user, item = column(contract.columns.user), column(contract.columns.item)
    position = column(contract.columns.position)
    item_first = F.min(position).over(Window.partitionBy(item))
    placed = examples.withColumn("item_first__", item_first)
    by_item = F.struct(F.col("item_first__"), position.alias("position"))
    users = placed.groupBy(user.alias("user__")).agg(
        F.min(by_item).alias("user_first__"), F.count(F.lit(1)).alias("user_rows__")
    )
    # One row per user goes through one task; the rows themselves are never gathered.
    users_before = Window.orderBy("user_first__").rowsBetween(Window.unboundedPreceding, -1)
    rows_before = F.coalesce(F.sum("user_rows__").over(users_before), F.lit(0))
    starts = users.select(F.col("user__"), rows_before.alias("start__"))
    within_user = Window.partitionBy(user).orderBy(F.col("item_first__"), position)
    place = F.col("start__") + F.row_number().over(within_user) - 1
    num_rows = examples.count()
    train, validation = (int(num_rows * share + 1e-6) for share in _shares(contract))
    return (
        placed.join(starts, on=user == F.col("user__"), how="inner")
        .withColumn("place__", place)
        .select(
            *(quoted(name) for name in examples.columns),
            _split_where(F.col("place__") < train, F.col("place__") < validation).alias("split"),
        )
    )
