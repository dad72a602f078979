"""Job: what travels to the workers, the plans that follow from it, and what must be the same to go on with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from feature_eng.snapshot import SnapshotRef
from foundation.settings import flatten
from hinet_model.data.plan import EpochPlan, plan_epoch
from hinet_model.settings import RunSettings


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker needs to know; travels to it by pickle.

    Args:
        settings: The run's settings.
        snapshot: The pinned version of the training table.
        schema: The encoder's `model_schema()`.
        checkpoint_folder: This run's checkpoints, on storage that all workers share.
        log_folder: Where each worker writes its log, on its own host.
        store_token: What the driver wrote there, for the workers to read back (`control.store_check`).
        resume: Go on from the newest whole checkpoint of the folder.
        report_address: Host and port of the driver's report channel.
        report_key: Its key.
    """

    settings: RunSettings
    snapshot: SnapshotRef
    schema: Mapping[str, Any]
    checkpoint_folder: str
    log_folder: str
    store_token: str = ""
    resume: bool = False
    report_address: tuple[str, int] | None = None
    report_key: bytes = field(default=b"", repr=False)


def epoch_plan(job: TrainingJob, epoch: int, split: str = "train") -> EpochPlan:
    """The plan of an epoch of training, or of a pass over another split in the order of its files."""
    training = job.settings.training
    return plan_epoch(
        [rows for file in job.snapshot.files_of(split) for rows in file.row_groups],
        batch_size=training.batch_size,
        lanes=training.lanes,
        seed=training.seed,
        epoch=epoch,
        window_rows=training.window_rows,
        shuffle=split == "train",
    )


def run_identity(settings: RunSettings, snapshot: SnapshotRef) -> dict[str, str]:
    """What decides the numbers of a run, apart from how long it goes on and on how many workers: settings as text."""
    training = settings.training
    return flatten(
        {
            "data": {
                "table_id": snapshot.table_id,
                "version": snapshot.version,
                "encoder": snapshot.encoder_digest,
            },
            "model": settings.model.model_dump(mode="json"),
            "loss": settings.loss.model_dump(mode="json"),
            "optimiser": settings.optimiser.model_dump(mode="json"),
            "training": {
                "batch_size": training.batch_size,
                "lanes": training.lanes,
                "window_rows": training.window_rows,
                "seed": training.seed,
                "precision": training.precision,
            },
        }
    )
