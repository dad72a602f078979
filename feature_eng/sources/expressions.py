"""``where`` and ``select``: SQL of the contract, held against a table's schema before a row is read."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pyspark.errors import ParseException, PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from feature_eng.contract import ContractError, quoted
from feature_eng.sources.faults import reason_of

# Plans with these make other rows than they were given.
_OTHER_ROWS = re.compile(r"^[\s:+-]*(Generate|Aggregate|Join|Expand)\b", re.MULTILINE)


def filtered(frame: DataFrame, condition: str, where: str) -> DataFrame:
    """The rows that meet a condition.

    Raises:
        ContractError: It is no condition over the table's columns.
    """
    try:
        kept = frame.where(F.expr(condition))
    except PySparkException as error:
        raise ContractError([f"{where}: {_explained(condition, frame, error)}"]) from None
    fault = _fault(frame, kept)
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
            fault = _fault(frame, frame.select("*", F.expr(expression).alias(name)))
            if fault:
                faults.append(f"{where}.{name}: {expression!r} {fault}")
        except PySparkException as error:
            faults.append(f"{where}.{name}: {_explained(expression, frame, error)}")
    if faults:
        raise ContractError(faults)
    kept = [F.col(quoted(name)) for name in frame.columns if name not in expressions]
    return frame.select(*kept, *(F.expr(given).alias(name) for name, given in expressions.items()))


def _fault(before: DataFrame, after: DataFrame) -> str | None:
    """Why a plan's rows would not be the table's own, the same ones at each reading."""
    plans = [frame._jdf.queryExecution().analyzed() for frame in (before, after)]
    if not plans[1].deterministic():
        return "gives other values at each reading; expected an expression of the row alone"
    made = [len(_OTHER_ROWS.findall(plan.treeString())) for plan in plans]
    return "makes more or fewer rows; expected one value for each row" if made[1] != made[0] else None


def _explained(expression: str, frame: DataFrame, error: PySparkException) -> str:
    why = reason_of(error, frame.columns)
    unusual = [name for name in frame.columns if not name.isidentifier() and name in expression]
    if isinstance(error, ParseException) and unusual:
        why += f"; write {quoted(unusual[0])}, in backticks"
    return f"{expression!r} does not fit the table ({why})"
