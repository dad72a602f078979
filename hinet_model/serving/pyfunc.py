"""The model as MLflow serves it: code logged as code, no pickle. MLflow runs this file as it is.

MLflow's signature lets values through as they come, because its own check refuses what training took: a null
beside whole numbers, a whole number for a double. Each value is held against the kind that the
encoder was fitted on, exactly or not at all.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

from foundation.settings import UserError
from hinet_model.serving.scorer import Scorer


class RequestError(MlflowException, UserError):  # type: ignore[misc]
    """Rows that cannot be scored. MLflow's server answers with the message alone, without a stack trace."""

    def __init__(self, message: str) -> None:
        MlflowException.__init__(self, message, error_code=INVALID_PARAMETER_VALUE)


class HinetPyfunc(PythonModel):  # type: ignore[misc]
    """Scores raw rows with the `Scorer` in the artifact ``model``."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the scorer; its golden rows are checked here, before the first request."""
        self.scorer = Scorer.load(context.artifacts["model"])

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, object] | None = None,
    ) -> pd.DataFrame:
        """Score a DataFrame of raw columns.

        Returns:
            One row per input row, in order: ``scenario`` (its name) and ``<task>_prob`` per task (double).

        Raises:
            RequestError: A column is missing or cannot be read as the kind that the encoder expects, or a row is
                of no known scenario.
        """
        try:
            encoded = self.scorer.encode(_to_arrow(model_input))
        except ValueError as error:
            raise RequestError(str(error)) from None
        scores = self.scorer.score_encoded(encoded).astype("float64")
        columns: dict[str, object] = {"scenario": self.scorer.scenarios(encoded)}
        columns |= {f"{task}_prob": scores[:, j] for j, task in enumerate(self.scorer.task_names)}
        return pd.DataFrame(columns, index=model_input.index)


def _to_arrow(rows: pd.DataFrame) -> pa.Table:
    """The columns as Arrow, every value as exact as it came."""
    return pa.table([_array(rows[name]) for name in rows.columns], names=[str(name) for name in rows.columns])


def _array(values: pd.Series) -> pa.Array:
    if values.dtype != object:
        return pa.Array.from_pandas(values)
    plain = [_plain(value) for value in values]
    try:
        return pa.array(plain)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        # Whole numbers beyond 64 bits, or numbers beside text: the text of each is exact.
        try:
            return pa.array([_as_text(value) for value in plain])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise RequestError(f"column {values.name!r}: values of several kinds: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if value is None or value is pd.NA or value is pd.NaT or value != value else value


def _as_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_text(each) for each in value]
    if isinstance(value, bool):
        return str(int(value))
    return str(value) if isinstance(value, int | float | Decimal) else value


mlflow.models.set_model(HinetPyfunc())
