"""Which negatives training leaves out, and what each row weighs in the loss.

Validation and test stay whole: sampling changes ``split`` of training rows alone. A row keeps its fate
when others come or go, as it follows from a seeded hash of its key.
"""

from __future__ import annotations

from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from feature_eng.contract import Contract, ContractError
from feature_eng.events import column

UNSAMPLED = "unsampled"
"""Split of a training row that is left out."""


def with_sampling(examples: DataFrame, contract: Contract) -> DataFrame:
    """Take the negatives that are not kept out of train; give every row its weight.

    Args:
        examples: Labels, ``scenario``, ``split``, and the weight's column where the contract names one.
        contract: The data contract.

    Returns:
        The same rows. ``split`` is ``unsampled`` for those left out. ``row_weight`` (double) is there where
        rows weigh differently: what the contract names, or else 1; with the correction ``weights``
        divided by the share kept for a negative that train keeps, so that the weighted sums over train
        are in expectation those of all its rows.
    """
    sampling = contract.sampling
    weight = column(contract.weight).cast("double") if contract.weight is not None else F.lit(1.0)
    if sampling is None:
        return examples.withColumn("row_weight", weight) if contract.has_row_weights else examples
    shares = F.element_at(
        F.create_map(
            *(
                F.lit(value)
                for pair in zip(contract.scenario_names, contract.kept_negatives, strict=True)
                for value in pair
            )
        ),
        F.col("scenario"),
    )
    # Another hash than that of the split 'random', whose train would hold low values alone.
    keys = (column(name) for name in contract.key)
    hashed = F.xxhash64(*keys, F.lit("sampling"), F.lit(sampling.seed).cast("bigint"))
    uniform = F.shiftrightunsigned(hashed, 11).cast("double") / F.lit(float(2**53))
    to_sample = (F.col("split") == "train") & _is_negative(contract)
    is_left_out = to_sample & (uniform >= shares)
    columns = {"split": F.when(is_left_out, UNSAMPLED).otherwise(F.col("split"))}
    if sampling.correction == "weights":
        weight = F.when(to_sample & ~is_left_out, weight / shares).otherwise(weight)
    if contract.has_row_weights:
        columns["row_weight"] = weight
    return examples.withColumns(columns)


def _is_negative(contract: Contract) -> Column:
    assert contract.sampling is not None, "asked where there is sampling"
    if contract.sampling.task is not None:
        return F.coalesce(F.col(f"label__{contract.sampling.task}") == 0, F.lit(False))
    labels = [F.col(f"label__{task}") for task in contract.task_names]
    none_is_one = reduce(Column.__and__, (F.coalesce(label != 1, F.lit(True)) for label in labels))
    return none_is_one & reduce(Column.__or__, (label.isNotNull() for label in labels))


def check_shift(examples: DataFrame, contract: Contract) -> None:
    """Stop where a logit shift could not make up for the sampling.

    Of the tasks that are not sampled by, a shift knows only that their label 1 presupposes the sampled
    task's: an order, a click. A row against that makes their answers wrong by an unknown amount.

    Raises:
        ContractError: Names each such task.
    """
    sampled = contract.shifted_task
    others = [task for task in contract.task_names if task != sampled]
    if sampled is None or not others:
        return
    by = F.col(f"label__{sampled}")
    against = [
        F.count_if(F.when(by.isNull(), F.col(f"label__{task}").isNotNull()).otherwise(
            (F.col(f"label__{task}") == 1) & (by == 0)
        )).alias(task)
        for task in others
    ]  # fmt: skip
    counts = examples.where(F.col("split").isin("train", UNSAMPLED)).agg(*against).collect()[0].asDict()
    faults = [
        f"sampling.correction: 'shift' needs label 1 of '{task}' to presuppose that of '{sampled}', and {rows:,} "
        "training rows are against it; expected correction: weights"
        for task, rows in counts.items()
        if rows
    ]
    if faults:
        raise ContractError(faults)
