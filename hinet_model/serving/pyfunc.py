"""The model as MLflow serves it: code logged as code, no pickle. MLflow runs this file as it is.

The signature takes doubles, longs, strings and lists of them; the encoder casts inside. An id that is
missing cannot stand in a pandas column of longs: rows with null ids are scored through Arrow, by the
`Scorer` itself.
"""

from __future__ import annotations

import mlflow
import pandas as pd
import pyarrow as pa
from mlflow.pyfunc import PythonModel, PythonModelContext

from foundation.settings import UserError
from hinet_model.serving.scorer import Scorer


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
            UserError: A column cannot be read as the type that the encoder expects, or is missing.
            ValueError: A row is of no known scenario.
        """
        encoded = self.scorer.encode(_to_arrow(model_input, self.scorer.raw_schema))
        scores = self.scorer.score_encoded(encoded).astype("float64")
        columns: dict[str, object] = {"scenario": self.scorer.scenarios(encoded)}
        columns |= {f"{task}_prob": scores[:, j] for j, task in enumerate(self.scorer.task_names)}
        return pd.DataFrame(columns, index=model_input.index)


def _to_arrow(rows: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """The raw columns as Arrow; a missing one is left for the scorer to name."""
    arrays: list[pa.Array] = []
    names: list[str] = []
    for field in schema:
        if field.name not in rows.columns:
            continue
        try:
            # The type is given only where pandas has none: forced, it would take ids that passed through floats.
            kind = field.type if rows[field.name].dtype == object else None
            arrays.append(pa.Array.from_pandas(rows[field.name], type=kind))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise UserError(f"column '{field.name}': expected {field.type}: {error}") from error
        names.append(field.name)
    others = [name for name in rows.columns if name not in schema.names]
    # Their names alone matter: the scorer suggests one for a raw column that is missing.
    arrays += [pa.nulls(len(rows)) for _ in others]
    return pa.table(arrays, names=names + [str(name) for name in others])


mlflow.models.set_model(HinetPyfunc())
