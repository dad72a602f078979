"""Scoring on Spark: the same `Scorer` as REST, once per Python worker, over Arrow batches.

A model folder travels to each executor once, as an archive, and stays loaded in the worker process from
task to task. Nothing here imports Spark at the top: a `ModelShipment` is handed a session.
"""

from __future__ import annotations

import atexit
import re
import shutil
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_eng.contract import quoted, stored_name
from feature_eng.encoder.state import EncoderState
from foundation.settings import UserError
from hinet_model.serving.scorer import ENCODER_FOLDER, Scorer, ScorerError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

SCENARIO_INDEX = "scenario_index"
SCENARIO = "scenario"

# Of one worker process: path of the unpacked model -> scorer.
_SCORERS: dict[str, Scorer] = {}

_USER_ERROR = re.compile(
    r"^(?:[\w.]+\.)?(?:EncoderError|ScorerError|BatchError|JudgingError): (.*)$", re.MULTILINE
)
_NOT_SERVED = 0.5


def probability_columns(task_names: Sequence[str]) -> tuple[str, ...]:
    """``<task>_prob`` of each task, in task order."""
    return tuple(f"{task}_prob" for task in task_names)


@dataclass(frozen=True)
class ArrowScorer:
    """The function for `DataFrame.mapInArrow`: raw rows in, kept columns and probabilities out.

    Args:
        archive: Name under which the model folder lies unpacked on every executor.
        keep: Columns of the input that are passed through.
        threads: Threads of one product: the cores of one Spark task.
    """

    archive: str
    keep: tuple[str, ...]
    threads: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Score batch by batch, rows in order."""
        scorer = _loaded((self.archive,), self.threads)[0]
        for batch in batches:
            encoded = scorer.encode(batch)
            scores = scorer.score_encoded(encoded).astype("float64")
            columns = [batch.column(name) for name in self.keep]
            columns += [pa.array(encoded["scenario_index"]), pa.array(scorer.scenarios(encoded), pa.string())]
            columns += [pa.array(scores[:, j]) for j in range(len(scorer.task_names))]
            names = [*self.keep, SCENARIO_INDEX, SCENARIO, *probability_columns(scorer.task_names)]
            yield pa.RecordBatch.from_arrays(columns, names=names)


def side_by_side_column(place: int, task: str) -> str:
    """Column with the probabilities of the model at a place, for a task."""
    return f"{task}__prob_{place}"


@dataclass(frozen=True)
class SideBySideScorer:
    """The function for `DataFrame.mapInArrow`: raw rows in; kept columns, scenario and every model's probabilities out.

    Rows are of the first model's scenarios, and scored for its tasks. What another model does not serve gets 0.5.

    Args:
        shipments: The models.
        keep: Columns of the input that are passed through.
    """

    shipments: tuple[ModelShipment, ...]
    keep: tuple[str, ...]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Score batch by batch, rows in order."""
        scorers = _loaded(tuple(one.archive for one in self.shipments), self.shipments[0].threads)
        for batch in batches:
            index = _encoded(self.shipments[0], scorers[0], batch)["scenario_index"]
            columns = [batch.column(name) for name in self.keep] + [pa.array(index)]
            names = [*self.keep, SCENARIO_INDEX]
            for place, (shipment, scorer) in enumerate(zip(self.shipments, scorers, strict=True)):
                served = np.isin(index, self._shared_scenarios(shipment))
                scores = self._scores(shipment, scorer, batch, served)
                columns += [pa.array(scores[:, j]) for j in range(scores.shape[1])]
                names += [side_by_side_column(place, task) for task in self.shipments[0].task_names]
            yield pa.RecordBatch.from_arrays(columns, names=names)

    def _shared_scenarios(self, shipment: ModelShipment) -> list[int]:
        """Scenarios of the first model that another one serves too."""
        names = self.shipments[0].scenario_names
        return [place for place, name in enumerate(names) if name in shipment.scenario_names]

    def _scores(
        self, shipment: ModelShipment, scorer: Scorer, batch: pa.RecordBatch, served: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float64]:
        tasks = self.shipments[0].task_names
        scores = np.full((batch.num_rows, len(tasks)), _NOT_SERVED)
        if not served.any():
            return scores
        encoded = _encoded(shipment, scorer, batch.filter(pa.array(served)))
        found = scorer.score_encoded(encoded, calibrated=shipment.calibrated)
        for place, task in enumerate(tasks):
            if task in scorer.task_names:
                scores[served, place] = found[:, scorer.task_names.index(task)]
        return scores


def _encoded(shipment: ModelShipment, scorer: Scorer, batch: pa.RecordBatch) -> dict[str, npt.NDArray[Any]]:
    """Raw rows as the model's input; a row that it refuses is told with the model's name."""
    try:
        return scorer.encode(batch)
    except (UserError, ValueError) as error:
        raise ScorerError(f"{shipment.name}: {error}") from error


def _loaded(archives: tuple[str, ...], threads: int) -> list[Scorer]:
    """The scorers of these archives. Models of other jobs are let go: a worker goes on from version to version."""
    from pyspark import SparkFiles

    folders = [SparkFiles.get(archive) for archive in archives]
    for other in set(_SCORERS) - set(folders):
        del _SCORERS[other]
    for folder in folders:
        if folder not in _SCORERS:
            _SCORERS[folder] = Scorer.load(folder, threads=threads)
    return [_SCORERS[folder] for folder in folders]


@dataclass(frozen=True)
class ModelShipment:
    """A model on its way to the executors. Build it with :func:`ship`.

    Args:
        archive: As in `ArrowScorer`.
        name: Name and version of the model, for messages.
        scenario_names: Scenarios that the model knows, in its order.
        task_names: Tasks that the model scores.
        raw_columns: Columns that the model reads.
        threads: As in `ArrowScorer`.
        calibrated: Whether the model's calibration is applied, if it has one (`SideBySideScorer`).
    """

    archive: str
    name: str
    scenario_names: tuple[str, ...]
    task_names: tuple[str, ...]
    raw_columns: tuple[str, ...]
    threads: int
    calibrated: bool = True

    def score(self, rows: DataFrame, keep: Sequence[str]) -> DataFrame:
        """Score raw rows, lazily.

        Args:
            rows: The model's raw columns, among others.
            keep: Columns to pass through. ``scenario`` and ``scenario_index`` are the model's own.

        Returns:
            ``keep``, ``scenario_index`` int, ``scenario`` string, and ``<task>_prob`` double per task.
        """
        made = {SCENARIO_INDEX: "int", SCENARIO: "string"}
        made |= dict.fromkeys(probability_columns(self.task_names), "double")
        function = ArrowScorer(self.archive, tuple(keep), self.threads)
        return _read(rows, [self], keep).mapInArrow(function, _schema(rows, keep, made))


def ship(spark: SparkSession, folder: Path, name: str) -> ModelShipment:
    """Send a model folder to the executors, once.

    The archive stays until this process ends: an executor that joins later fetches it too.

    Args:
        spark: The session; ``spark.task.cpus`` gives the threads of a task.
        folder: Model folder, on the driver.
        name: Name and version of the model; names the archive.
    """
    state = EncoderState.load(folder / ENCODER_FOLDER)
    unique = re.sub(r"[^\w.-]", "_", f"model-{name}-{uuid.uuid4().hex[:8]}")
    scratch = Path(tempfile.mkdtemp(prefix="hinet-model-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    archive = scratch / f"{unique}.tar"
    with tarfile.open(archive, "w") as tar:
        # One by one: Spark refuses the entry "./" that adding the folder itself would make.
        for part in sorted(folder.iterdir()):
            tar.add(part, arcname=part.name)
    spark.sparkContext.addArchive(f"{archive}#{unique}")
    threads = int(spark.sparkContext.getConf().get("spark.task.cpus", "1") or 1)
    return ModelShipment(
        unique, name, state.scenario_names, state.task_names, tuple(state.raw_types), threads
    )


def user_message(error: BaseException) -> str | None:
    """What a user must know of a failed Spark job: a refusal by encoder or scorer on a worker, if it was one."""
    found = _USER_ERROR.search(str(error))
    return found.group(1) if found else None


def score_side_by_side(rows: DataFrame, shipments: Sequence[ModelShipment], keep: Sequence[str]) -> DataFrame:
    """Score the same raw rows with several models in one pass, lazily.

    Args:
        rows: The models' raw columns, among others.
        shipments: The models; the first one says what scenarios and tasks there are.
        keep: Columns to pass through.

    Returns:
        ``keep``, ``scenario_index`` int, and `side_by_side_column` of every model and task.
    """
    places, tasks = range(len(shipments)), shipments[0].task_names
    made = {SCENARIO_INDEX: "int"}
    made |= {side_by_side_column(place, task): "double" for place in places for task in tasks}
    function = SideBySideScorer(tuple(shipments), tuple(keep))
    return _read(rows, shipments, keep).mapInArrow(function, _schema(rows, keep, made))


def _read(rows: DataFrame, shipments: Sequence[ModelShipment], keep: Sequence[str]) -> DataFrame:
    """The columns that are read: Spark cannot see what a function of Arrow batches leaves alone."""
    raw = {name for shipment in shipments for name in shipment.raw_columns}
    read = {*keep, *raw, *map(stored_name, raw)}
    return rows.select(*(quoted(name) for name in rows.columns if name in read))


def _schema(rows: DataFrame, keep: Sequence[str], made: Mapping[str, str]) -> str:
    """The columns that are passed through and those that are made, name -> type, as DDL."""
    kept = [(name, rows.schema[name].dataType.simpleString()) for name in keep]
    return ", ".join(f"`{name}` {kind}" for name, kind in [*kept, *made.items()])
