"""Assemble: settings and a snapshot in, the parts of a run out. Below, nothing reads the settings as a whole."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from foundation.cores import available_cores
from hinet_model.data.batch import BatchLayout
from hinet_model.data.loading import SnapshotReader
from hinet_model.models.build import build_model
from hinet_model.models.features import build_layout
from hinet_model.models.model import ScenarioModel, table_name
from hinet_model.nn.native import library
from hinet_model.nn.normalisation import ScenarioNorm
from hinet_model.nn.row_shard import WHOLE, RowShard
from hinet_model.objective.balance import build_balance
from hinet_model.objective.losses import MultiTaskLoss, loss_weights
from hinet_model.settings import RunSettings
from hinet_model.training.averaging import WeightAverage
from hinet_model.training.callbacks import (
    AverageWeights,
    Callback,
    KeepBest,
    Patience,
    Profile,
    ReportEpoch,
    ReportProgress,
    StopAfterSteps,
    StopWhenAsked,
)
from hinet_model.training.control.reports import Reporter
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.dist.dense_exchange import GradientExchange
from hinet_model.training.dist.table_exchange import build_table_exchange
from hinet_model.training.dist.world import World
from hinet_model.training.job import TrainingJob, epoch_plan, run_identity
from hinet_model.training.loop import StepOptions, StepParts, Trainer
from hinet_model.training.optimisers import RunOptimisers
from hinet_model.training.position import curve
from hinet_model.training.resources import ReportResources
from hinet_model.training.run import Run, RunInputs
from hinet_model.training.saving import SaveCheckpoints
from hinet_model.training.state import RunState, weights_digest
from hinet_model.training.statistics import StepStatistics
from hinet_model.training.validation import Validation
from hinet_model.training.warm_start import WarmStart

logger = logging.getLogger(__name__)

_RESOURCES_SECONDS = 10.0
"""Time between two reports of what a worker uses."""


@dataclass(frozen=True)
class DataShape:
    """What the parts of a run must know of its data.

    Args:
        layout: Features, scenarios and tasks.
        scenario_rows: Training rows of each scenario.
        whole: What they weigh before negatives are sampled; the rows where left out.
        trained: What they weigh as they are trained on; the rows where left out.
        total_steps: Steps of the whole run.
    """

    layout: BatchLayout
    scenario_rows: Sequence[int]
    total_steps: int
    whole: Sequence[float] | None = None
    trained: Sequence[float] | None = None


def assemble(
    job: TrainingJob,
    world: World,
    reporter: Reporter,
    progress: Progress,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """A run that stands at its beginning, or where the job says that it goes on.

    Args:
        job: What to train.
        world: The workers.
        reporter: Told about the run; asked whether to stop.
        progress: Where this worker is, for heartbeat and watchdog.
        callbacks: What else shall happen, after the run's own callbacks.

    Raises:
        CheckpointError: There is no checkpoint to go on from, or it belongs to another run.
        WorldError: Workers disagree about the initial weights.
    """
    settings = job.settings
    if world.device.type == "cpu":
        library.prepare()
    set_threads(settings.training.threads_per_worker, world)
    layout = build_layout(settings.model, job.schema)
    steps = settings.training.epochs * epoch_plan(job, 0).num_steps
    snapshot = job.snapshot
    weights = snapshot.whole_weights(), snapshot.trained_weights()
    data = DataShape(layout, snapshot.scenario_rows["train"], steps, *weights)
    parts = build_parts(settings, data, world, progress)
    if settings.model.warm_start is not None and not job.resume:
        WarmStart.load(job.checkpoint_folder).apply(parts.model)
    average = WeightAverage(parts.model)
    state = RunState(parts, average, run_identity(settings, job.snapshot))
    if job.resume:
        progress.enter("restore")
        state.restore(job.checkpoint_folder, progress)
        _tell_resumed(state, world, reporter)
    first_averaged = settings.training.epochs - settings.training.average_epochs
    if average.keep_from(first_averaged):
        logger.info("the mean of earlier epochs is dropped: epoch %d is the first of it", first_averaged + 1)
    _agree_on_weights(parts.model, world, progress)
    options = StepOptions(settings.training.seed, settings.training.precision, settings.optimiser.clip_norm)
    pinned = world.device.type == "cuda"
    return Run(
        Trainer(parts, options, reporter, progress),
        state,
        RunInputs(
            partial(epoch_plan, job),
            lambda split: SnapshotReader(job.snapshot, split, layout, pin_memory=pinned),
        ),
        settings.training.epochs,
        [*_callbacks(job, world, state, first_averaged), *callbacks],
    )


def build_parts(
    settings: RunSettings,
    data: DataShape,
    world: World,
    progress: Progress,
    model: ScenarioModel | None = None,
) -> StepParts:
    """What takes part in a run's steps, as configured; with a model of one's own, where one is given."""
    training = settings.training
    if model is None:
        sharded = training.table == "sharded"
        shard = RowShard(world.rank, world.size) if sharded else WHOLE
        model = build_model(settings.model, data.layout, training.seed, shard)
    model.to(world.device)
    balance = build_balance(settings.loss, data.layout.num_tasks)
    assert training.table == "replicated" or not balance.per_task
    norms = [part for part in model.modules() if isinstance(part, ScenarioNorm)]
    statistics = StepStatistics(data.layout.num_scenarios, data.layout.num_tasks, norms)
    optimisers = RunOptimisers(model, settings.optimiser, data.total_steps)
    exchange = GradientExchange(model.dense_parameters(), world, num_statistics=statistics.size)
    table = build_table_exchange(training.table, model.embedding, optimisers.table, exchange, world, progress)
    loss = build_loss(settings, data).to(world.device)
    return StepParts(world, model, loss, balance, optimisers, statistics, exchange, table)


def build_loss(settings: RunSettings, data: DataShape) -> MultiTaskLoss:
    """The loss that the settings describe, over such training rows."""
    layout, rows = data.layout, data.scenario_rows
    weights = loss_weights(
        settings.loss, layout.scenario_names, layout.task_names, rows, data.whole, data.trained
    )
    return MultiTaskLoss(weights.row_factors, weights.tasks, settings.loss.calibrator_weight)


def _callbacks(job: TrainingJob, world: World, state: RunState, first_averaged: int) -> list[Callback]:
    """A run's own callbacks. Their order matters: averaged, then validated, then judged, told, and written."""
    training, kept = job.settings.training, job.settings.checkpoint
    listed: list[Callback] = [StopWhenAsked()]
    if training.max_steps is not None:
        listed.append(StopAfterSteps(training.max_steps))
    listed += [ReportProgress(training.log_every_steps), AverageWeights(first_averaged)]
    listed += [Validation(training.validate_every_epochs), KeepBest()]
    if training.patience is not None:
        listed.append(Patience(training.patience))
    saved_step = state.global_step if job.resume else -1
    listed += [
        ReportResources(_RESOURCES_SECONDS),
        ReportEpoch(),
        SaveCheckpoints(job.checkpoint_folder, kept, saved_step),
    ]
    if training.profile_steps:
        trace = Path(job.log_folder) / f"trace-rank-{world.rank}.json"
        listed.append(Profile(training.profile_steps, trace))
    return listed


def _tell_resumed(state: RunState, world: World, reporter: Reporter) -> None:
    """What was measured before, for curves that begin where the run began."""
    if world.rank == 0:
        before = len(state.losses) - state.step
        reporter.send(
            "resumed",
            epoch=state.epoch,
            step=state.step,
            history=list(state.history),
            losses=curve(state.losses[:before], first_step=1),
        )


def _agree_on_weights(model: ScenarioModel, world: World, progress: Progress) -> None:
    """Rank 0's weights on all ranks, and proof of it, before the first step; but to each rank its own shard."""
    progress.enter("start")
    own = {table_name(model)} if model.embedding.shard.count > 1 else set()
    for name, tensor in model.state_dict().items():
        if name not in own:
            world.broadcast(tensor, f"initial.{name}")
    world.assert_same(weights_digest(model, own), "digest of the initial weights")


def set_threads(wanted: int | None, world: World) -> None:
    """Intra-operation threads: as asked, or this worker's share of the cores it may use."""
    if wanted is None:
        local_size = int(os.environ.get("HOROVOD_LOCAL_SIZE", "1"))
        wanted = max(1, available_cores() // local_size)
    torch.set_num_threads(wanted)
