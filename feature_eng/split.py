"""Part examples into train, validation and test.

Source of ``user_disjoint``: the order in which the code of M3oE (SIGIR 2024) reads MovieLens-1M.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from feature_eng.contract import SPLITS, Contract, ContractError, quoted
from feature_eng.events import column


def with_split(examples: DataFrame, contract: Contract) -> DataFrame:
    """Add ``split``: train, validation or test.

    - ``time``: one cut-off for all rows, at the shares of rows that the contract names; rows of equal
      time are never parted, so the shares are met as nearly as times allow.
    - ``random``: by a seeded hash of the row's key; a row keeps its split when others come or go.
    - ``user_disjoint``: rows sorted stably by first appearance of the item, then of the user, and cut
      by count. No test row has a user of train as long as validation spans two users; the users
      on whom the two cuts fall have rows on both sides of it.

    Cut-offs are computed at once, by reading ``examples``.
    """
    method = contract.split.method
    if method == "time":
        return _with_time_split(examples, contract)
    if method == "random":
        return _with_random_split(examples, contract)
    return _with_user_split(examples, contract)


def _shares(contract: Contract) -> tuple[float, float]:
    train, validation, test = contract.split.fractions
    return train, 1.0 if test == 0 else min(1.0, round(train + validation, 12))


def _split_where(in_train: Column, in_validation: Column) -> Column:
    return F.when(in_train, SPLITS[0]).when(in_validation, SPLITS[1]).otherwise(SPLITS[2]).alias("split")


def _with_time_split(examples: DataFrame, contract: Contract) -> DataFrame:
    assert contract.columns.time is not None, "checked by the contract"
    time = column(contract.columns.time)
    cuts = [F.expr(f"percentile_disc({share}) WITHIN GROUP (ORDER BY at)") for share in _shares(contract)]
    row = examples.select(time.alias("at")).agg(cuts[0].alias("train"), cuts[1].alias("validation")).first()
    if row is None or row["train"] is None:
        raise ContractError(["split.method: there are no rows to part by time"])
    ends = [F.lit(int(row[name])) for name in ("train", "validation")]
    return examples.select("*", _split_where(time <= ends[0], time <= ends[1]))


def _with_random_split(examples: DataFrame, contract: Contract) -> DataFrame:
    keys = (column(name) for name in contract.key)
    hashed = F.xxhash64(*keys, F.lit(contract.split.seed).cast("bigint"))
    # The upper 53 bits, which a double holds exactly, as a fraction of 1.
    uniform = F.shiftrightunsigned(hashed, 11).cast("double") / F.lit(float(2**53))
    train, validation = _shares(contract)
    return examples.select("*", _split_where(uniform < train, uniform < validation))


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
            _split_where(F.col("place__") < train, F.col("place__") < validation),
        )
    )
