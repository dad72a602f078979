"""The earlier model that a run begins with: found, compared, and its weights brought to where they belong now.

Indices belong to an encoder. So a row of the embedding table goes to whatever index its value has now; dense weights
go over as they are. Rows of values that the earlier model did not know stay as they are drawn.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from feature_eng.encoder.state import Bucket, EncoderState, Hash, Lookup, Slots, Standardise
from foundation.job import say
from foundation.settings import UserError
from hinet_model.data.batch import BatchLayout, SlotField
from hinet_model.lifecycle import registry
from hinet_model.models.features import build_layout
from hinet_model.models.model import table_name
from hinet_model.models.settings import ModelSettings
from hinet_model.serving.scorer import Scorer, saved_settings
from hinet_model.settings import RunSettings
from hinet_model.training.warm_start import WarmStart

_NOT_OF_THE_WEIGHTS = {"warm_start", "unknown_scenario", "embedding_std"}

_MODEL = re.compile(r"models:/(?P<name>[^@/]+)(?:@(?P<alias>[^@/]+)|/(?P<version>\d+))")

Rows = npt.NDArray[np.int64]


class WarmStartError(UserError):
    """An earlier model that a run cannot begin with."""


def earlier_model(settings: RunSettings, state: EncoderState) -> tuple[WarmStart | None, str | None]:
    """The weights that the run begins with, where the settings name a model, and the version they are of.

    Raises:
        UserError: There is no such model, or it is of another shape.
    """
    uri = settings.model.warm_start
    if uri is None:
        return None, None
    found = _MODEL.fullmatch(uri)
    if found is None:
        raise UserError(f"model.warm_start: {uri!r}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    client = registry.connect(settings.mlflow.tracking_uri)
    version = registry.resolve(client, found["name"], found["alias"] or found["version"])
    with tempfile.TemporaryDirectory(prefix="hinet-download-") as cache:
        folder = registry.model_folder(registry.fetch(client, version, Path(cache)))
        layout = build_layout(settings.model, state.model_schema())
        begins_with = warm_start(Scorer.load(folder), saved_settings(folder), settings.model, state, layout)
    rows = f"{len(begins_with.ids):,} of {layout.num_embeddings:,} rows of the table"
    say(f"begins    with {version.uri} ({uri}): {rows}, and all dense weights")
    if begins_with.refitted:
        say(f"          numbers that are read otherwise now: {', '.join(begins_with.refitted)}")
    return begins_with, version.uri


def warm_start(
    earlier: Scorer, settings: ModelSettings, given: ModelSettings, state: EncoderState, layout: BatchLayout
) -> WarmStart:
    """What a new model takes over.

    Args:
        earlier: The earlier model.
        settings: Its settings.
        given: The new model's.
        state: The new encoder.
        layout: The new layout, of ``given`` and ``state``.

    Raises:
        WarmStartError: The models are not of one shape; names what differs.
    """
    _refuse_other_shapes(earlier, settings, given, state, layout)
    weights = earlier.model.state_dict()
    name = table_name(earlier.model)
    before = {field.name: field for field in earlier.layout.slot_fields}
    pairs = [
        _rows(field, before[field.name], state, earlier.state)
        for field in layout.slot_fields
        if field.shares is None and field.name in before and before[field.name].shares is None
    ]
    ids, rows = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    return WarmStart(
        {key: tensor.detach().clone() for key, tensor in weights.items() if key != name},
        torch.from_numpy(ids),
        weights[name].detach()[torch.from_numpy(rows)].clone(),
        tuple(_refitted(state, earlier.state)),
    )


def _refuse_other_shapes(
    earlier: Scorer, settings: ModelSettings, given: ModelSettings, state: EncoderState, layout: BatchLayout
) -> None:
    faults = []
    one, other = (each.model_dump(mode="json") for each in (settings, given))
    for key in sorted({*one, *other} - _NOT_OF_THE_WEIGHTS):
        if one.get(key) != other.get(key):
            faults.append(f"model.{key} is {other.get(key)!r} here and {one.get(key)!r} there")
    for what, here, there in (
        ("scenarios", state.scenario_names, earlier.scenario_names),
        ("tasks", state.task_names, earlier.task_names),
        ("number features", layout.number_columns, earlier.layout.number_columns),
        (
            "id features",
            tuple((field.name, field.pooled, field.shares) for field in layout.slot_fields),
            tuple((field.name, field.pooled, field.shares) for field in earlier.layout.slot_fields),
        ),
    ):
        if here != there:
            faults.append(f"{what} are {here} here and {there} there")
    if faults:
        raise WarmStartError("model.warm_start: the earlier model is of another shape: " + "; ".join(faults))


def _rows(
    field: SlotField, before: SlotField, state: EncoderState, earlier: EncoderState
) -> tuple[Rows, Rows]:
    """Rows of the new table and those of the earlier one, of the values that both know."""
    now, was = _indices(field.name, state, earlier)
    parts = np.arange(field.parts)
    return tuple(
        (one.offset + index[:, None] * one.parts + parts).reshape(-1).astype(np.int64)
        for one, index in ((field, now), (before, was))
    )  # type: ignore[return-value]


def _indices(name: str, state: EncoderState, earlier: EncoderState) -> tuple[Rows, Rows]:
    """Indices that mean the same in two encoders; 0, for what is unknown, among them."""
    operation, other = state.operations[name], earlier.operations[name]
    unknown = np.zeros(1, np.int64)
    if isinstance(operation, Slots) and isinstance(other, Slots):
        operation, other = operation.each, other.each
    if isinstance(operation, Lookup) and isinstance(other, Lookup):
        keys, places = state.look_ups[operation.vocabulary]
        known, were = earlier.look_ups[other.vocabulary]
        both, here, there = np.intersect1d(keys, known, assume_unique=True, return_indices=True)
        if len(both) == 0:
            return unknown, unknown
        return np.append(unknown, places[here]), np.append(unknown, were[there])
    if isinstance(operation, Hash) and operation == other:
        every = np.arange(operation.buckets + 1)
    elif isinstance(operation, Bucket) and isinstance(other, Bucket):
        # Buckets keep their order; of other boundaries they are near enough to begin with.
        every = np.arange(min(len(operation.boundaries), len(other.boundaries)) + 2)
    else:
        every = unknown
    return every, every


def _refitted(state: EncoderState, earlier: EncoderState) -> Iterator[str]:
    for name, operation in state.operations.items():
        if isinstance(operation, Standardise | Bucket) and earlier.operations.get(name) != operation:
            yield name
