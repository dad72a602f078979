"""``where`` and ``select``: SQL of the contract, held against a table's schema before a row is read."""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.errors import ParseException, PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from feature_eng.contract import ContractError, quoted
from feature_eng.sources.faults import reason_of

_MADE = "made__"


def filtered(frame: DataFrame, condition: str, where: str) -> DataFrame:
    """The rows that meet a condition.

    Raises:
        ContractError: It is no condition over the table's columns.
    """
    try:
        fault = _check(frame, F.expr(condition))
        kept = frame if fault else frame.where(F.expr(condition))
    except PySparkException as error:
        raise ContractError([f"{where}: {_explained(condition, frame, error)}"]) from None
    if fault:
        raise ContractError([f"{where}: {condition!r} {fault}"])
    return kept


def selected(frame: DataFrame, expressions: Mapping[str, str], where: str) -> DataFrame:
    """The table with further columns, or others in place of its own; each sees the table as it was before.

    Raises:
        ContractError: Expressions that do not fit the table, all of them.
    """
    faults = []
    for name, expression in expressions.items():
        try:
            fault = _check(frame, F.expr(expression))
            if fault:
                faults.append(f"{where}.{name}: {expression!r} {fault}")
        except PySparkException as error:
            faults.append(f"{where}.{name}: {_explained(expression, frame, error)}")
    if faults:
        raise ContractError(faults)
    kept = [F.col(quoted(name)) for name in frame.columns if name not in expressions]
    return frame.select(*kept, *(F.expr(given).alias(name) for name, given in expressions.items()))


def _check(frame: DataFrame, expression: Column) -> str | None:
    """Why an expression would not give one value for each row, the same one at each reading.

    Spark itself is asked, by plans in which it refuses what is not wanted here.
    """
    try:
        # Beside all columns an aggregate lacks its groups; inside another function nothing makes rows.
        frame.select("*", F.coalesce(expression).alias(_MADE))
    except PySparkException as error:
        condition = error.getCondition() or ""
        if condition.startswith(("UNSUPPORTED_GENERATOR", "MISSING_GROUP_BY", "INVALID_WHERE_CONDITION")):
            return "makes more or fewer rows; expected one value for each row"
        raise
    try:
        frame.join(frame.sparkSession.range(1).toDF(_MADE), on=expression.isNotNull(), how="inner")
    except PySparkException as error:
        if error.getCondition() == "INVALID_NON_DETERMINISTIC_EXPRESSIONS":
            return "gives other values at each reading; expected an expression of the row alone"
    return None


def _explained(expression: str, frame: DataFrame, error: PySparkException) -> str:
    why = reason_of(error, frame.columns)
    unusual = [name for name in frame.columns if not name.isidentifier() and name in expression]
    if isinstance(error, ParseException) and unusual:
        why += f"; write {quoted(unusual[0])}, in backticks"
    return f"{expression!r} does not fit the table ({why})"
