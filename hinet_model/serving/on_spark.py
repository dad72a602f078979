"""Scoring on Spark: the same `Scorer` as REST, once per Python worker, over Arrow batches.

The model folder travels to each executor once, as an archive, and stays loaded in the worker process from
task to task. Nothing here imports Spark at the top: a `ModelShipment` is handed a session.
"""

from __future__ import annotations

import atexit
import re
import shutil
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_eng.encoder.state import NO_LABEL, EncoderState
from hinet_model.objective.metrics import CellMetrics, evaluate_cells
from hinet_model.serving.scorer import ENCODER_FOLDER, Scorer

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

SCENARIO_INDEX = "scenario_index"
SCENARIO = "scenario"

# Of one worker process: path of the unpacked model -> scorer.
_SCORERS: dict[str, Scorer] = {}

_USER_ERROR = re.compile(r"^(?:[\w.]+\.)?(?:EncoderError|ScorerError|BatchError): (.*)$", re.MULTILINE)


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
        scorer = self._scorer()
        for batch in batches:
            encoded = scorer.encode(batch)
            scores = scorer.score_encoded(encoded).astype("float64")
            columns = [batch.column(name) for name in self.keep]
            columns += [pa.array(encoded["scenario_index"]), pa.array(scorer.scenarios(encoded), pa.string())]
            columns += [pa.array(scores[:, j]) for j in range(len(scorer.task_names))]
            names = [*self.keep, SCENARIO_INDEX, SCENARIO, *probability_columns(scorer.task_names)]
            yield pa.RecordBatch.from_arrays(columns, names=names)

    def _scorer(self) -> Scorer:
        from pyspark import SparkFiles

        folder = SparkFiles.get(self.archive)
        if folder not in _SCORERS:
            # One model at a time: a worker that goes on to another version frees this one's memory.
            _SCORERS.clear()
            _SCORERS[folder] = Scorer.load(folder, threads=self.threads)
        return _SCORERS[folder]


@dataclass(frozen=True)
class ModelShipment:
    """A model on its way to the executors. Build it with :func:`ship`.

    Args:
        archive: As in `ArrowScorer`.
        task_names: Tasks that the model scores.
        threads: As in `ArrowScorer`.
    """

    archive: str
    task_names: tuple[str, ...]
    threads: int

    def score(self, rows: DataFrame, keep: Sequence[str]) -> DataFrame:
        """Score raw rows, lazily.

        Args:
            rows: The model's raw columns, among others.
            keep: Columns to pass through. ``scenario`` and ``scenario_index`` are the model's own.

        Returns:
            ``keep``, ``scenario_index`` int, ``scenario`` string, and ``<task>_prob`` double per task.
        """
        kept = [f"`{name}` {rows.schema[name].dataType.simpleString()}" for name in keep]
        made = [f"`{SCENARIO_INDEX}` int", f"`{SCENARIO}` string"]
        made += [f"`{name}` double" for name in probability_columns(self.task_names)]
        function = ArrowScorer(self.archive, tuple(keep), self.threads)
        return rows.mapInArrow(function, ", ".join(kept + made))


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
    return ModelShipment(unique, state.task_names, threads)


def user_message(error: BaseException) -> str | None:
    """What a user must know of a failed Spark job: a refusal by encoder or scorer on a worker, if it was one."""
    found = _USER_ERROR.search(str(error))
    return found.group(1) if found else None


def evaluate(rows: DataFrame, shipment: ModelShipment, scenario_names: Sequence[str]) -> list[CellMetrics]:
    """Score labelled raw rows on Spark and judge them exactly, on the driver.

    Labels and scores of all rows come to the driver: 12 bytes a row and task.

    Args:
        rows: The model's raw columns and ``label__<task>`` of each of its tasks, null where there is none.
        shipment: The model.
        scenario_names: In the model's order.
    """
    labels = [f"label__{task}" for task in shipment.task_names]
    found = shipment.score(rows, keep=labels).drop(SCENARIO).toArrow()
    return evaluate_cells(
        _matrix(found, labels),
        _matrix(found, probability_columns(shipment.task_names)),
        found[SCENARIO_INDEX].to_numpy(),
        num_scenarios=len(scenario_names),
    )


def _matrix(table: pa.Table, names: Sequence[str]) -> npt.NDArray[np.float32]:
    """``(R, len(names))`` of the named columns, -1 for a null."""
    columns = [pc.fill_null(table[name], NO_LABEL) for name in names]
    return np.stack([column.to_numpy().astype(np.float32) for column in columns], axis=1)
