"""Publishing: a model folder becomes a registered version that any MLflow server can load.

The version carries the code it needs (`code_paths`) and pinned requirements; neither pyspark nor Horovod
nor Petastorm is among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType

import feature_eng
import foundation
import hinet_model
from feature_eng.encoder.state import EncoderState
from hinet_model.lifecycle import registry
from hinet_model.serving import pyfunc
from hinet_model.serving.scorer import ENCODER_FOLDER, Scorer, golden_rows, same_probabilities

#: All that `hinet_model.serving.pyfunc` imports.
SERVING_PACKAGES = ("mlflow", "torch", "numpy", "pyarrow", "pandas", "pydantic", "PyYAML")
_EXAMPLE_ROWS = 5
_PACKAGES = (foundation, feature_eng, hinet_model)


def requirements() -> list[str]:
    """Pinned requirements of a serving process.

    A local part such as ``+cpu`` names a build that no index may have, and is left out.
    """
    return [f"{name}=={metadata.version(name).split('+')[0]}" for name in SERVING_PACKAGES]


def signature(state: EncoderState) -> ModelSignature:
    """What the pyfunc takes (raw columns) and returns (``scenario`` and ``<task>_prob``).

    Inputs are ``any`` to MLflow, whose own types refuse what training took: nulls among whole numbers, whole
    numbers among others, categories among text. The pyfunc holds them against their kinds, which
    :func:`register` writes beside the model.
    """
    optional = state.contract.optional_columns
    inputs = [ColSpec(AnyType(), name, required=name not in optional) for name in state.raw_types]
    outputs = [ColSpec(DataType.string, "scenario")]
    outputs += [ColSpec(DataType.double, f"{task}_prob") for task in state.task_names]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def input_example(model_folder: Path) -> pd.DataFrame:
    """A few raw rows as a request may hold them: golden rows, of those without a null id or list if there are any."""
    rows = golden_rows(model_folder)
    # A request's whole numbers beside a null are floats to pandas, which not every id survives.
    strict = [
        field.name
        for field in rows.schema
        if not (pa.types.is_floating(field.type) or pa.types.is_string(field.type))
    ]
    whole = [
        place
        for place, row in enumerate(rows.select(strict).to_pylist())
        if all(value is not None for value in row.values())
    ]
    chosen = rows.take(pa.array(whole[:_EXAMPLE_ROWS] or [0]))
    example: pd.DataFrame = chosen.to_pandas(integer_object_nulls=True)
    return example


def register(
    client: MlflowClient, name: str, run_id: str, model_folder: Path, tags: Mapping[str, str], card: str
) -> registry.RegisteredVersion:
    """Log the model with its run, register it and point the alias ``challenger`` at the new version.

    Args:
        client: From `registry.connect`.
        name: Registered model.
        run_id: Run that trained it.
        model_folder: Written by `hinet_model.serving.scorer.save_model_folder`.
        tags: Lineage of the version, and what it is looked up by.
        card: Its description, in Markdown.
    """
    state = EncoderState.load(model_folder / ENCODER_FOLDER)
    mlflow.set_tracking_uri(client.tracking_uri)
    mlflow.set_registry_uri(registry.registry_uri(client.tracking_uri))
    status = client.get_run(run_id).info.status
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(pyfunc.__file__)),
            artifacts={"model": str(model_folder)},
            code_paths=[str(Path(str(package.__file__)).parent) for package in _PACKAGES],
            signature=signature(state),
            input_example=input_example(model_folder),
            pip_requirements=requirements(),
            metadata={"kinds": dict(state.raw_types)},
        )
    # Leaving the block has ended the run, which has more to record.
    client.update_run(run_id, status=status)
    version = mlflow.register_model(logged.model_uri, name, tags=dict(tags))
    if card:
        client.update_model_version(name, version.version, card)
    # Last: whoever asks for the challenger finds it described.
    client.set_registered_model_alias(name, registry.CHALLENGER, version.version)
    return registry.resolve(client, name, str(version.version))


def check_pyfunc(mlflow_model: Path) -> None:
    """Make sure that the model answers through MLflow as it does through its scorer.

    Raises:
        RegistryError: What MLflow serves on the model's input example is not what its logits say.
    """
    scorer = Scorer.load(registry.model_folder(mlflow_model))
    example = input_example(registry.model_folder(mlflow_model))
    served = mlflow.pyfunc.load_model(str(mlflow_model)).predict(example)
    rows = pa.Table.from_pandas(example, schema=scorer.raw_schema, preserve_index=False)
    logits = scorer.calibrated_logits(scorer.encode(rows))
    found = served[[f"{task}_prob" for task in scorer.task_names]].to_numpy()
    wrong = np.argwhere(~same_probabilities(logits, found))
    if len(wrong):
        row, task = wrong[0]
        raise registry.RegistryError(
            f"{mlflow_model}: MLflow serves other probabilities than the scorer gives on the input example: "
            f"{found[row, task]:.6g} for row {row}, task {scorer.task_names[task]}, where the logit is "
            f"{logits[row, task]:.6g}"
        )
