"""Scorer: raw rows in, probabilities out. The one scoring path: REST, batch jobs and evaluation use it.

It needs torch, numpy and pyarrow; no Spark, Horovod, Petastorm or MLflow. A model is a folder:

    encoder/         state of the encoder: JSON and vocabularies, with their digest
    model.json       format, architecture settings, schema of the inputs, contract fingerprint
    weights.pt       the model's state_dict, tensors only
    golden.parquet   a few raw rows, what they encode to and their logits
    calibration.json what is done to the probabilities of each cell, where the model was calibrated

The golden rows are scored again on every load. They catch what nothing else would: code of another
version that encodes or multiplies differently, in a process that happened to load it first. Logits are
compared, not probabilities: those of a rare click are all near 0, whatever the model.
"""

from __future__ import annotations

import difflib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from feature_eng.encoder import arrow
from feature_eng.encoder.state import EncoderState
from foundation.settings import UserError
from hinet_model.models.build import build_model
from hinet_model.models.features import build_layout
from hinet_model.models.model import ScenarioModel
from hinet_model.models.registry import read_saved_settings, read_settings
from hinet_model.models.settings import ModelSettings
from hinet_model.serving.calibration import Calibration

FORMAT = 2
"""Version of the folder's layout. Raise it when weights of old folders would mean something else."""

ENCODER_FOLDER = "encoder"
MODEL_FILE = "model.json"
WEIGHTS_FILE = "weights.pt"
GOLDEN_FILE = "golden.parquet"

_RAW, _ENCODED, _LOGIT, _CALIBRATED = "raw/", "encoded/", "logit/", "calibrated/"
_NUMBER_TOLERANCE = 1e-6
_BATCH_ROWS = 8192

LOGIT_TOLERANCE = 1e-3
"""How far a logit may be off, for every unit of its size above 1: the odds by a thousandth. Another order of sums
in float32, as other CPUs and batch sizes have it, is off by some 1e-5; another model by far more."""


class ScorerError(UserError):
    """A model folder or rows that cannot be used."""


class Scorer:
    """An encoder's state and a model's weights, ready to score. Build it with :meth:`load`.

    Args:
        state: The encoder's state.
        model: The model, with its weights.
        settings: What the model was built from: they say how its input is laid out, and as which scenario rows
            of an unknown one are scored, if any.
        batch_rows: Rows scored at a time, which bounds memory.
    """

    def __init__(
        self,
        state: EncoderState,
        model: ScenarioModel,
        settings: ModelSettings,
        batch_rows: int = _BATCH_ROWS,
    ) -> None:
        self.state = state
        self.layout = build_layout(settings, state.model_schema())
        self.raw_schema = pa.schema(arrow.raw_columns(state))
        self.model = model.eval()
        self._batch_rows = batch_rows
        self._unknown_scenario = settings.unknown_scenario
        self._first_and_later = (
            None if settings.ctcvr == "direct" else (settings.ctr_task or "", settings.ctcvr_task or "")
        )
        self.calibration: Calibration | None = None

    @classmethod
    def load(cls, folder: str | Path, threads: int | None = None) -> Scorer:
        """Load a model folder and score its golden rows.

        Args:
            folder: Written by :func:`save_model_folder`.
            threads: Threads of one product, for the whole process; ``None`` leaves torch's setting.

        Raises:
            ScorerError: The folder is of another format, its parts do not belong together, or a golden row
                no longer gives what it gave when the model was saved.
        """
        folder = Path(folder)
        if threads is not None:
            torch.set_num_threads(threads)
        document = _read_document(folder)
        state = EncoderState.load(folder / ENCODER_FOLDER)
        if state.digest != document["encoder_digest"]:
            raise ScorerError(
                f"{folder}: the encoder's digest is {state.digest[:12]}, the model was trained with "
                f"{str(document['encoder_digest'])[:12]}"
            )
        settings = read_saved_settings(document["model"])
        model = build_model(settings, build_layout(settings, state.model_schema()), seed=0)
        try:
            weights = torch.load(folder / WEIGHTS_FILE, map_location="cpu", weights_only=True, mmap=True)
            model.load_state_dict(weights, assign=True)
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            cause = str(error).partition("\n")[0]
            raise ScorerError(f"{folder / WEIGHTS_FILE}: not the weights of this model: {cause}") from error
        scorer = cls(state, model, settings)
        try:
            scorer.calibration = Calibration.load(folder)
        except ValueError as error:
            raise ScorerError(str(error)) from error
        scorer._check_golden(folder / GOLDEN_FILE)
        return scorer

    @property
    def scenario_names(self) -> tuple[str, ...]:
        """Names in the order of the scenario indices."""
        return self.state.scenario_names

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names in the order of the score columns."""
        return self.state.task_names

    @property
    def contract_fingerprint(self) -> str:
        """Fingerprint of the data contract that the model was trained on."""
        return self.state.fingerprint

    def score(self, rows: pa.Table | pa.RecordBatch) -> npt.NDArray[np.float32]:
        """Score raw rows.

        Args:
            rows: The raw columns of `raw_schema`, in any order; others are ignored.

        Returns:
            ``(B, N)`` probabilities, rows in input order, columns in task order.

        Raises:
            ScorerError: A raw column is missing.
            ValueError: A row is of no known scenario, and the model's settings name no stand-in
                (`unknown_scenario`); names row and value.
        """
        return self.score_encoded(self.encode(rows))

    def scenarios(self, encoded: Mapping[str, npt.NDArray[Any]]) -> list[str]:
        """Name of each encoded row's scenario."""
        return [self.scenario_names[index] for index in encoded["scenario_index"]]

    def missing_columns(self, names: Sequence[str]) -> list[str]:
        """Raw columns that a table of these columns lacks and may not lack."""
        return arrow.missing_columns(names, self.state)

    def encode(self, rows: pa.Table | pa.RecordBatch) -> dict[str, npt.NDArray[Any]]:
        """Raw rows as the model's input columns; arguments and errors as :meth:`score`."""
        missing = self.missing_columns(rows.schema.names)
        if missing:
            raise ScorerError("; ".join(_missing(name, rows.schema.names) for name in missing))
        return arrow.encode(rows, self.state, unknown_scenario=self._unknown_scenario)

    def score_encoded(
        self, encoded: Mapping[str, npt.NDArray[Any]], *, calibrated: bool = True
    ) -> npt.NDArray[np.float32]:
        """Score encoded rows: the second half of :meth:`score`.

        Args:
            encoded: From :meth:`encode`.
            calibrated: Whether the model's calibration is applied, if it has one.
        """
        scores: npt.NDArray[np.float32] = torch.sigmoid(torch.from_numpy(self.logits(encoded))).numpy()
        if self.calibration is None or not calibrated:
            return scores
        found = self.calibration.apply(
            scores, encoded["scenario_index"], self.scenario_names, self.task_names
        )
        if self._first_and_later is not None:
            # Each task is calibrated by itself; an order stays no likelier than its click all the same.
            first, later = (self.task_names.index(task) for task in self._first_and_later)
            found[:, later] = np.minimum(found[:, first], found[:, later])
        return found

    def logits(self, encoded: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Log-odds of encoded rows, ``(B, N)``: what the probabilities are the sigmoid of."""
        num_rows = len(encoded["scenario_index"])
        logits = np.empty((num_rows, len(self.task_names)), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, num_rows, self._batch_rows):
                part = {name: column[start : start + self._batch_rows] for name, column in encoded.items()}
                batch, order = self.layout.to_batch(part)
                logits[start + order] = self.model(batch).float().numpy()
        return logits

    def calibrated_logits(self, encoded: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
        """Log-odds of what :meth:`score_encoded` answers, ``(B, N)``: the logits where there is no calibration."""
        if self.calibration is None:
            return self.logits(encoded).astype(np.float64)
        probs = self.score_encoded(encoded).astype(np.float64)
        with np.errstate(divide="ignore"):  # a probability of 0 or 1
            found: npt.NDArray[np.float64] = np.log(probs) - np.log1p(-probs)
        return found

    def golden(self, rows: pa.Table) -> pa.Table:
        """Raw rows beside what they encode to and their logits, calibrated as well where the model is."""
        encoded = self.encode(rows)
        logits = self.logits(encoded)
        columns: dict[str, Any] = {_RAW + name: rows[name] for name in self.raw_schema.names}
        columns |= {_ENCODED + name: pa.array(values) for name, values in encoded.items()}
        columns |= {_LOGIT + task: pa.array(logits[:, j]) for j, task in enumerate(self.task_names)}
        if self.calibration is not None:
            calibrated = self.calibrated_logits(encoded)
            columns |= {
                _CALIBRATED + task: pa.array(calibrated[:, j]) for j, task in enumerate(self.task_names)
            }
        return pa.table(columns)

    def _check_golden(self, path: Path) -> None:
        """Refuse the model if a golden row gives something else than when it was saved."""
        expected = _read_golden(path)
        found = self.golden(_part(expected, _RAW))
        if set(found.column_names) != set(expected.column_names):
            differing = sorted(set(found.column_names) ^ set(expected.column_names))
            raise ScorerError(f"{path}: golden rows of other columns: {', '.join(differing)}")
        for name in expected.column_names:
            if name.startswith(_RAW):
                continue
            was, now = expected[name].to_numpy(), found[name].to_numpy()
            if name.startswith((_LOGIT, _CALIBRATED)):
                wrong = np.flatnonzero(~same_logits(was, now))
            else:
                off = np.abs(now.astype(np.float64) - was.astype(np.float64))
                wrong = np.flatnonzero(~(off <= _NUMBER_TOLERANCE))
            if len(wrong):
                row = int(wrong[0])
                raise ScorerError(
                    f"{path}: golden row {row}: {name} is {now[row]}, but was {was[row]} when the model was "
                    "saved; this code does not serve this model"
                )


def same_logits(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which logits are those of the same model, on whatever machine each was computed; NaN is like nothing."""
    was, now = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinite ones that are equal
        close = np.abs(now - was) <= LOGIT_TOLERANCE * np.maximum(1.0, np.abs(was))
    same: npt.NDArray[np.bool_] = (now == was) | (close & np.isfinite(was) & np.isfinite(now))
    return same


def same_probabilities(logits: npt.NDArray[Any], probs: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which probabilities are those of logits that `same_logits` would take, but for rounding to float32.

    A probability of 1e-9 is judged as strictly as one of a half: by its odds.
    """
    exact = logits.astype(np.float64)
    slack = LOGIT_TOLERANCE * np.maximum(1.0, np.abs(exact))
    with np.errstate(over="ignore"):  # of exp: the probability is 0
        low, high = (1.0 / (1.0 + np.exp(-(exact + sign * slack))) for sign in (-1.0, 1.0))
    single = np.finfo(np.float32)
    low, high = low * (1.0 - 2.0 * single.eps) - single.tiny, high * (1.0 + 2.0 * single.eps) + single.tiny
    same: npt.NDArray[np.bool_] = (low <= probs) & (probs <= high)
    return same


def save_model_folder(
    folder: str | Path,
    state: EncoderState,
    model_config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    golden_rows: pa.Table,
) -> Path:
    """Write a model folder, the artifact that `Scorer.load` reads.

    Args:
        folder: New or empty folder.
        state: The encoder's state that the training table was made with.
        model_config: Section ``model`` of the run's settings, JSON-able.
        weights: The model's ``state_dict``.
        golden_rows: Some raw rows, best a few of every scenario; also the model's input example.

    Returns:
        The folder.

    Raises:
        ScorerError: There are no golden rows, or they lack a raw column.
    """
    folder = Path(folder)
    if golden_rows.num_rows == 0:
        raise ScorerError(f"{folder}: a model needs golden rows; got none")
    state.save(folder / ENCODER_FOLDER)
    document = {
        "format": FORMAT,
        "model": dict(model_config),
        "schema": state.model_schema(),
        "contract": state.contract.name,
        "contract_fingerprint": state.fingerprint,
        "encoder_digest": state.digest,
        "torch": torch.__version__,
    }
    (folder / MODEL_FILE).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    # Cloned: a view would drag its whole storage into the file.
    plain = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
    torch.save(plain, folder / WEIGHTS_FILE)
    settings = read_settings(model_config)
    model = build_model(settings, build_layout(settings, state.model_schema()), seed=0)
    model.load_state_dict(plain)
    scorer = Scorer(state, model, settings)
    pq.write_table(scorer.golden(golden_rows), folder / GOLDEN_FILE)
    return folder


def saved_settings(folder: str | Path) -> ModelSettings:
    """The settings that the model of a model folder was built from."""
    return read_saved_settings(_read_document(Path(folder))["model"])


def golden_rows(folder: str | Path) -> pa.Table:
    """The raw golden rows of a model folder."""
    return _part(_read_golden(Path(folder) / GOLDEN_FILE), _RAW)


def _read_golden(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ScorerError(f"{path}: cannot be read: {error}") from error


def _part(table: pa.Table, prefix: str) -> pa.Table:
    """The columns under a prefix, without it."""
    names = [name for name in table.column_names if name.startswith(prefix)]
    return table.select(names).rename_columns([name.removeprefix(prefix) for name in names])


def _read_document(folder: Path) -> dict[str, Any]:
    """``model.json``, of a format that this code reads."""
    path = folder / MODEL_FILE
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ScorerError(f"{path}: cannot be read: {error}") from error
    if document.get("format") != FORMAT:
        raise ScorerError(f"{path}: format {document.get('format')}; this code reads format {FORMAT}")
    return document


def _missing(name: str, present: Sequence[str]) -> str:
    """What to say of a raw column that is not there."""
    close = difflib.get_close_matches(name, present, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"raw column '{name}' is missing{hint}"
