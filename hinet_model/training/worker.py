"""Worker: what one Horovod process does, from the job description to the last checkpoint."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import torch

from feature_eng.snapshot import SnapshotRef
from hinet_model.data.batch import BatchLayout
from hinet_model.data.loading import SnapshotReader
from hinet_model.data.plan import EpochPlan, plan_epoch
from hinet_model.models.build import build_model
from hinet_model.models.features import build_layout
from hinet_model.models.model import ScenarioModel, table_name
from hinet_model.nn.native import library
from hinet_model.nn.row_shard import WHOLE, RowShard
from hinet_model.objective.balance import build_balance, effective_weights
from hinet_model.objective.losses import MultiTaskLoss, loss_weights
from hinet_model.objective.metrics import evaluate_cells, mean_defined
from hinet_model.settings import RunSettings
from hinet_model.training import checkpoint
from hinet_model.training.averaging import WeightAverage
from hinet_model.training.checkpoint import CheckpointError, Position
from hinet_model.training.control.reports import ReportClient, Reporter
from hinet_model.training.control.watchdog import PhaseLimits, Progress, Watchdog
from hinet_model.training.dist.world import HorovodWorld, World
from hinet_model.training.loop import AfterStep, EpochSummary, Trainer
from hinet_model.training.optimisation import RunOptimisers
from hinet_model.training.state import RunState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker needs to know; travels to it by pickle.

    Args:
        settings: The run's settings.
        snapshot: The pinned version of the training table.
        schema: The encoder's `model_schema()`.
        checkpoint_folder: This run's checkpoints, on storage that all workers share.
        log_folder: Where each worker writes its log, on its own host.
        resume: Go on from the newest whole checkpoint of the folder.
        report_address: Host and port of the driver's report channel.
        report_key: Its key.
    """

    settings: RunSettings
    snapshot: SnapshotRef
    schema: Mapping[str, Any]
    checkpoint_folder: str
    log_folder: str
    resume: bool = False
    report_address: tuple[str, int] | None = None
    report_key: bytes = field(default=b"", repr=False)


def main(job: TrainingJob, after_step: AfterStep | None = None) -> dict[str, Any]:
    """Entry of a Horovod worker: train, report, and leave last words whatever happens.

    Returns:
        The ``finished`` report, the same on all ranks but for this worker's own figures.
    """
    rank = int(os.environ["HOROVOD_RANK"])
    log_path = Path(job.log_folder) / f"rank-{rank}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress()
    assert job.report_address is not None
    watch = job.settings.watchdog
    reporter = ReportClient(
        job.report_address,
        job.report_key,
        rank,
        watch.heartbeat_seconds,
        progress.state,
        watch.reconnect_seconds,
    )
    with log_path.open("a") as log, _logging_to(log):
        reporter.send("hello", log=f"{socket.gethostname()}:{log_path}", pid=os.getpid())
        watchdog = Watchdog(progress, reporter, PhaseLimits.of_settings(watch), log)
        try:
            # Horovod first: a failure before its start takes half a minute to surface.
            world = HorovodWorld(job.settings.training.device)
            result = train(job, world, reporter, progress, after_step)
            progress.enter("exchange")
            world.close()
        except BaseException as error:
            logger.exception("worker failed")
            reporter.send(
                "failed",
                error=type(error).__name__,
                message=str(error),
                traceback=traceback.format_exc(limit=-8),
            )
            raise
        finally:
            watchdog.close()
        reporter.send(**result)
    reporter.close()
    return result


def train(
    job: TrainingJob,
    world: World,
    reporter: Reporter,
    progress: Progress,
    after_step: AfterStep | None = None,
) -> dict[str, Any]:
    """Train a model on one worker of ``world``.

    Returns:
        ``{"kind": "finished", "epochs", "global_step", "best_epoch", "plan_hash", "peak_memory_bytes", ...}``.

    Raises:
        CheckpointError: The checkpoint to resume from belongs to another run.
        WorldError: Workers disagree about the plan or the initial weights.
    """
    run = _Run(job, world, reporter, progress, after_step)
    return run.to_the_end()


class _Run:
    """The state of `train`, so that its stages can be read one by one."""

    def __init__(
        self,
        job: TrainingJob,
        world: World,
        reporter: Reporter,
        progress: Progress,
        after_step: AfterStep | None,
    ) -> None:
        self.job, self.world, self.reporter, self.progress = job, world, reporter, progress
        settings = job.settings
        if world.device.type == "cpu":
            library.prepare()
        set_threads(settings.training.threads_per_worker, world)
        self.layout = build_layout(settings.model, job.schema)
        sharded = settings.training.table == "sharded"
        shard = RowShard(world.rank, world.size) if sharded else WHOLE
        self.model = build_model(settings.model, self.layout, settings.training.seed, shard)
        self.own_weights = frozenset({table_name(self.model)} if sharded else ())
        self.model.to(world.device)
        self.folder = Path(job.checkpoint_folder)
        self.position = Position(epoch=0, step=0, global_step=0, identity=run_identity(job))
        steps_per_epoch = self.plan(0).num_steps
        self.optimisers = RunOptimisers(
            self.model, settings.optimiser, total_steps=settings.training.epochs * steps_per_epoch
        )
        loss = build_loss(settings, self.layout, job.snapshot.scenario_rows["train"]).to(world.device)
        self.average = WeightAverage(self.model)
        self.balance = build_balance(settings.loss, self.layout.num_tasks)
        self.state = RunState(self.model, self.optimisers, self.average, self.balance, sharded)
        if job.resume:
            self._resume()
        self._agree_on_weights()
        self.trainer = Trainer(
            settings.training,
            self.model,
            self.layout,
            loss,
            self.optimisers,
            settings.optimiser.clip_norm,
            world,
            reporter,
            progress,
            after_step,
            self.balance,
        )
        self.trainer.global_step = self.position.global_step

    def plan(self, epoch: int, split: str = "train") -> EpochPlan:
        """The plan of an epoch of training, or of a pass over another split."""
        return epoch_plan(self.job, epoch, split)

    def _resume(self) -> None:
        self.progress.enter("restore")
        newest = checkpoint.latest(self.folder, self.progress.alive)
        if newest is None:
            raise CheckpointError(f"nothing to resume: no whole checkpoint in {self.folder}")
        # Each rank goes on with rows and moments of its own, which nothing compares afterwards.
        with self.progress.within("agree"):
            self.world.assert_same(newest.name, "checkpoint to go on from")
        position = checkpoint.read_position(newest)
        if position.identity != self.position.identity:
            raise CheckpointError(
                f"checkpoint {newest} belongs to a run with other data, model, optimiser or plan; expected the same "
                "(epochs and workers may differ)"
            )
        self.state.restore(newest, self.world, self.progress)
        self.position = position

    def _agree_on_weights(self) -> None:
        """Rank 0's weights on all ranks, and proof of it, before the first step; but to each rank its own shard."""
        self.progress.enter("start")
        for name, tensor in self.model.state_dict().items():
            if name not in self.own_weights:
                self.world.broadcast(tensor, f"initial.{name}")
        self.world.assert_same(weights_digest(self.model, self.own_weights), "digest of the initial weights")

    def to_the_end(self) -> dict[str, Any]:
        settings = self.job.settings.training
        first_plan_hash = self.plan(0).hash
        last: EpochSummary | None = None
        with self._reader("train") as train_reader, self._reader("validation") as validation_reader:
            for epoch in range(self.position.epoch, settings.epochs):
                plan = self.plan(epoch)
                self.progress.enter("agree")
                self.world.assert_same(plan.hash, "hash of the epoch's plan")
                last = self._train_epoch(plan, train_reader)
                ended = last.stopped_at is None
                if ended and epoch >= settings.epochs - settings.average_epochs:
                    self.optimisers.settle()
                    self.average.add()
                if ended and (epoch + 1) % settings.validate_every_epochs == 0:
                    self._validate(epoch, last, validation_reader)
                self._checkpoint(epoch, last)
                if not ended or self._out_of_patience():
                    break
        return {
            "kind": "finished",
            "epochs": self.position.epoch,
            "global_step": self.position.global_step,
            "best_epoch": self.position.best_epoch,
            "best_value": self.position.best_value if self.position.best_epoch >= 0 else None,
            "stopped": last is not None and last.stopped_at is not None,
            "plan_hash": first_plan_hash,
            "weights": weights_digest(self.model, self.own_weights),
            "history": self.position.history,
            "device": str(self.world.device),
            "threads": torch.get_num_threads(),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    def _reader(self, split: str) -> SnapshotReader:
        pinned = self.world.device.type == "cuda"
        return SnapshotReader(self.job.snapshot, split, self.layout, pin_memory=pinned)

    def _train_epoch(self, plan: EpochPlan, reader: SnapshotReader) -> EpochSummary:
        start = self.position.step
        batches = reader.batches(plan, self.world.rank, self.world.size, start_step=start)
        summary = self.trainer.train_epoch(plan, batches, start)
        planned = sum(plan.global_rows(step) for step in range(start, summary.stopped_at or plan.num_steps))
        if summary.rows != planned:
            raise RuntimeError(
                f"epoch {plan.epoch}: {summary.rows} rows entered the loss, the plan has {planned}"
            )
        return summary

    def _validate(self, epoch: int, summary: EpochSummary, reader: SnapshotReader) -> None:
        plan = self.plan(0, "validation")
        with self.average.applied():
            scores = self.trainer.score(plan, reader.batches(plan, self.world.rank, self.world.size))
            attention = self.model.scenario_attention()
        self.progress.enter("judge")
        cells = evaluate_cells(scores.labels, scores.probs, scores.scenario_index, self.layout.num_scenarios)
        mean_auc = mean_defined(cell.auc for cell in cells)
        value = float("-inf") if mean_auc is None else mean_auc
        settings = self.job.settings.loss.task_weights
        entry = {
            "epoch": epoch,
            "global_step": self.trainer.global_step,
            "train_loss": sum(summary.losses) / max(len(summary.losses), 1),
            "train_cell_losses": [
                [None if loss != loss else float(loss) for loss in row] for row in summary.cell_losses
            ],
            "task_weights": effective_weights(
                self.balance, [settings.get(task, 1.0) for task in self.layout.task_names]
            ),
            "mean_auc": mean_auc,
            "cells": [asdict(cell) for cell in cells],
            "rows": summary.rows,
            "seconds": summary.seconds,
            "rows_per_second": summary.rows / max(summary.seconds, 1e-9),
            "data_wait_share": summary.wait_seconds / max(summary.seconds, 1e-9),
        }
        better = value > self.position.best_value
        # Ranks computed this from the same gathered scores; rank 0's word is taken, whatever their hosts.
        self.progress.enter("agree")
        better, entry = self.world.broadcast_object((better, entry), "validation")
        self.position = replace(
            self.position,
            best_epoch=epoch if better else self.position.best_epoch,
            best_value=value if better else self.position.best_value,
            bad_validations=0 if better else self.position.bad_validations + 1,
            history=[*self.position.history, entry],
        )
        if self.world.rank == 0:
            self.reporter.send(
                "epoch",
                **entry,
                losses=summary.losses,
                best=better,
                scenario_attention=None if attention is None else attention.tolist(),
            )

    def _checkpoint(self, epoch: int, summary: EpochSummary) -> None:
        ended = summary.stopped_at is None
        self.position = replace(
            self.position,
            epoch=epoch + 1 if ended else epoch,
            step=0 if ended else int(summary.stopped_at or 0),
            global_step=self.trainer.global_step,
        )
        best = self.position.best_epoch == epoch and ended
        final = not ended or epoch + 1 == self.job.settings.training.epochs or self._out_of_patience()
        due = best or final or (epoch + 1) % self.job.settings.checkpoint.every_epochs == 0
        self.progress.enter("checkpoint")
        if due:
            # A row that decay has not caught up with would be written as it was when last read.
            self.optimisers.settle()
        written = self.state.save(self.folder, self.position, self.world, self.progress) if due else None
        if written is not None:
            if best:
                checkpoint.mark_best(self.folder, written)
            checkpoint.prune(self.folder, self.job.settings.checkpoint.keep)
            self.reporter.send(
                "checkpoint", path=str(written), epoch=epoch, global_step=self.position.global_step
            )

    def _out_of_patience(self) -> bool:
        patience = self.job.settings.training.patience
        return patience is not None and self.position.bad_validations >= patience


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


def build_loss(settings: RunSettings, layout: BatchLayout, scenario_rows: Sequence[int]) -> MultiTaskLoss:
    """The loss that the settings describe, over a training split with these rows per scenario."""
    weights = loss_weights(settings.loss, layout.scenario_names, layout.task_names, scenario_rows)
    return MultiTaskLoss(weights.row_factors, weights.tasks, settings.loss.calibrator_weight)


def run_identity(job: TrainingJob) -> str:
    """Digest of what decides the numbers of a run, apart from how long it goes on and on how many workers."""
    settings = job.settings
    training = settings.training
    facts = {
        "table_id": job.snapshot.table_id,
        "version": job.snapshot.version,
        "encoder": job.snapshot.encoder_digest,
        "model": settings.model.model_dump(mode="json"),
        "loss": settings.loss.model_dump(mode="json"),
        "optimiser": settings.optimiser.model_dump(mode="json"),
        "batch_size": training.batch_size,
        "lanes": training.lanes,
        "window_rows": training.window_rows,
        "seed": training.seed,
        "precision": training.precision,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def weights_digest(model: torch.nn.Module | ScenarioModel, without: Set[str] = frozenset()) -> str:
    """sha256 of every tensor of the model, bit by bit, but for those named in ``without``."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name in without:
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def set_threads(wanted: int | None, world: World) -> None:
    """Intra-operation threads: as asked, or this worker's share of the cores it may use."""
    if wanted is None:
        local_size = int(os.environ.get("HOROVOD_LOCAL_SIZE", "1"))
        wanted = max(1, len(os.sched_getaffinity(0)) // local_size)
    torch.set_num_threads(wanted)


@contextmanager
def _logging_to(log: IO[str]):  # type: ignore[no-untyped-def]
    """A worker process is an entry point of its own: its log goes to its file."""
    handler = logging.StreamHandler(log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        sys.stdout.flush()
