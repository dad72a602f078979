"""Train HiNet on Spark: a pinned version of the training table, Horovod workers, an MLflow run, a challenger."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from feature_eng import delta
from feature_eng.cells import blind_spots
from feature_eng.encoder.state import EncoderState
from feature_eng.golden import golden_rows
from feature_eng.origin import origin_of
from feature_eng.snapshot import SnapshotRef
from foundation import stores
from foundation.job import comes_from_outside, complain, job_parser, run_job, say, say_table
from foundation.redaction import redact
from foundation.session import job_session
from foundation.settings import UserError, load_settings
from hinet_model.lifecycle.ancestry import BEGAN_WITH
from hinet_model.lifecycle.calibrating import calibrate
from hinet_model.lifecycle.evaluation import to_results
from hinet_model.models.build import build_model, num_parameters
from hinet_model.models.features import build_layout
from hinet_model.objective.metrics import CellMetrics
from hinet_model.report.card import model_card
from hinet_model.report.progress import ProgressDisplay
from hinet_model.report.tables import cells_table
from hinet_model.serving.calibration import Method
from hinet_model.settings import RunSettings
from hinet_model.tracking import versions
from hinet_model.tracking.lineage import Lineage
from hinet_model.tracking.tracker import Tracker
from hinet_model.training import checkpoint
from hinet_model.training.control.monitor import TrainingError
from hinet_model.training.control.reports import Report
from hinet_model.training.control.restarts import Attempts
from hinet_model.training.earlier_model import earlier_model
from hinet_model.training.job import TrainingJob, epoch_plan, run_identity
from hinet_model.training.recording import RunRecorder, export_model

logger = logging.getLogger("train")

EXIT_TRAINING_FAILED = 4
GOLDEN_ROWS_PER_SCENARIO = 4

EXAMPLES = """\
  python jobs/train.py --config conf/train/movielens.yml
  python jobs/train.py --config conf/train/movielens.yml --set training.epochs=3 --set loss.scheme=uniform
  python jobs/train.py --config conf/train/movielens.yml --set model.warm_start=models:/hinet-movielens@champion
  python jobs/train.py --config conf/train/movielens.yml --resume latest
  spark-submit --properties-file conf/spark/local.conf jobs/train.py --config conf/train/movielens.yml
exit codes: 0 trained and registered, 2 wrong settings or data, 4 training failed, 130 interrupted, 143 ended by
SIGTERM, 1 anything else"""


def arguments() -> argparse.ArgumentParser:
    """What the job accepts."""
    parser = job_parser(__doc__, EXAMPLES)
    parser.add_argument("--config", required=True, metavar="FILE", help="settings of the run (YAML)")
    parser.add_argument(
        "--resume", metavar="RUN", help="go on from the newest checkpoint of this run (an id, or 'latest')"
    )
    return parser


def main() -> int:
    """Train, record, register."""
    given = arguments().parse_args()
    settings = load_settings(RunSettings, given.config, given.overrides)
    versions.check()
    workers = settings.training.workers
    with job_session(
        "train", {"spark.master": f"local[{max(2, workers)}]"}, [settings.data.location]
    ) as spark:
        snapshot = delta.snapshot(spark, settings.data.location, settings.data.version)
        state = EncoderState.load(snapshot.encoder_path)
        if state.digest != snapshot.encoder_digest:
            raise UserError(
                f"{snapshot.encoder_path}: not the encoder that version {snapshot.version} of {snapshot.table} was "
                "made with; build the features again"
            )
        describe(settings, snapshot, state)
        resumed = run_to_resume(given.resume, settings, snapshot)
        # A run that goes on has begun already.
        begins_with, source = (None, None) if resumed else earlier_model(settings, state)
        tracker = Tracker(settings.mlflow, settings.checkpoint.local_folder)
        run_id = tracker.start_run(resumed)
        source = tracker.began_with(source)
        local_folder = settings.checkpoint.local_folder / run_id
        job = TrainingJob(
            settings=settings,
            snapshot=snapshot,
            schema=state.model_schema(),
            checkpoint_folder=stores.join(settings.checkpoint.folder, run_id),
            log_folder=str(local_folder / "logs"),
            resume=resumed is not None,
        )
        if begins_with is not None:
            begins_with.save(job.checkpoint_folder)
        try:
            return train(spark, job, state, tracker, source)
        except TrainingError as error:
            tracker.finish("FAILED")
            complain(f"training failed: {error}")
            say_how_to_go_on(job, run_id)
            return EXIT_TRAINING_FAILED
        except (KeyboardInterrupt, SystemExit):
            tracker.finish("KILLED")
            say_how_to_go_on(job, run_id)
            raise
        except BaseException as error:
            tracker.finish("FAILED")
            if not comes_from_outside(error):
                raise
            complain(f"training failed: {error}")
            say_how_to_go_on(job, run_id)
            return EXIT_TRAINING_FAILED


def train(
    spark: Any, job: TrainingJob, state: EncoderState, tracker: Tracker, began_with: str | None = None
) -> int:
    """Run the workers under a tracked run; register what they made, and the version that it began with."""
    settings, snapshot = job.settings, job.snapshot
    training = settings.training
    lineage = Lineage.of(
        snapshot, plan_hash=epoch_plan(job, 0).hash, world_size=training.workers, seed=training.seed
    )
    recorder = RunRecorder(tracker, settings, state)
    if not job.resume:
        tracker.log_settings(settings.model_dump(mode="json"))
    tracker.log_lineage(lineage)
    tracker.log_snapshot(snapshot)
    recorder.log_loss_weights(snapshot)
    display = ProgressDisplay(
        training.epochs,
        snapshot.rows("train"),
        state.scenario_names,
        state.task_names,
    )

    def on_report(report: Report) -> None:
        display.show(report)
        recorder.record(report)

    say(f"starting {training.workers} workers; logs in {job.log_folder}")
    attempts = Attempts(job, on_report)
    try:
        results = attempts.run(spark)
    finally:
        recorder.log_goodput(attempts)
    recorder.log_outcome(results)
    recorder.log_figures()
    model_folder = export_model(
        job.checkpoint_folder,
        settings.checkpoint.local_folder / tracker.run_id / "model",
        state,
        settings,
        golden_rows(spark, snapshot, state, GOLDEN_ROWS_PER_SCENARIO),
    )
    if settings.calibration != "none":
        calibrate_model(spark, model_folder, settings.calibration, snapshot)
    card = model_card(
        settings.model.name, settings.model.unknown_scenario, snapshot, state, results[0]["history"]
    )
    tags = {
        "model": settings.model.name,
        "tasks": ",".join(state.task_names),
        "calibration": settings.calibration,
        **({} if began_with is None else {BEGAN_WITH: began_with}),
    }
    version = tracker.log_model(model_folder, lineage, card, tags)
    tracker.finish()
    summarise(results, state, tracker, version)
    share, seconds = 100 * attempts.goodput, attempts.seconds
    say(f"goodput   {share:.0f} % of {seconds:,.0f} s with workers, {attempts.restarts} restarts")
    return 0


def calibrate_model(spark: Any, folder: Path, method: Method, snapshot: SnapshotRef) -> None:
    """Fit the model's calibration on the validation rows of the examples that the snapshot was made of."""
    origin = origin_of(snapshot.table, delta.properties(snapshot.table, snapshot.version))
    rows = delta.read_earlier(spark, origin.examples, origin.version).where("split = 'validation'")
    described = {"table": origin.examples, "version": origin.version, "split": "validation"}
    found = calibrate(folder, rows, method, described)
    say(f"calibration {method}, of {len(found.cells)} cells on validation rows")
    for cell, why in found.skipped.items():
        say(f"  {cell} keeps its probabilities: {why}")


def say_how_to_go_on(job: TrainingJob, run_id: str) -> None:
    """The command that goes on with a run that ended before its time."""
    newest = checkpoint.latest(job.checkpoint_folder)
    if newest is None:
        sys.stderr.write("no checkpoint was written yet; start the job again\n")
        return
    given = arguments().parse_args()
    overrides = [part for override in given.overrides for part in ("--set", override)]
    words = [sys.argv[0], "--config", given.config, *overrides, "--resume", run_id]
    # Spark tells a Python that it started itself where to find it.
    program = "spark-submit <its options>" if "PYSPARK_GATEWAY_PORT" in os.environ else "python"
    command = redact(f"{program} {shlex.join(words)}")
    sys.stderr.write(f"go on from {stores.name_of(newest)} with: {command}\n")


def run_to_resume(asked: str | None, settings: RunSettings, snapshot: SnapshotRef) -> str | None:
    """Id of the run to go on with; its numbers must be decided by the same settings.

    Raises:
        UserError: It has no whole checkpoint, or was made with other settings; names them.
    """
    if asked is None:
        return None
    folder = stores.normalised(settings.checkpoint.folder)
    if asked == "latest":
        run = checkpoint.newest_run(folder)
        if run is None:
            raise UserError(f"--resume latest: no checkpoint below {folder}")
        asked = run
    newest = checkpoint.latest(stores.join(folder, asked))
    if newest is None:
        raise UserError(f"--resume {asked}: no whole checkpoint in {stores.join(folder, asked)}")
    checkpoint.check_identity(newest, checkpoint.read_position(newest), run_identity(settings, snapshot))
    return asked


def describe(settings: RunSettings, snapshot: SnapshotRef, state: EncoderState) -> None:
    """Say what is about to be trained, before anything is paid for."""
    layout = build_layout(settings.model, state.model_schema())
    with torch.device("meta"):  # shapes without numbers: a table may have no room on the driver
        model = build_model(settings.model, layout, settings.training.seed)
    say(f"table     {snapshot.table} version {snapshot.version}: {snapshot.rows('train'):,} training rows")
    say(
        f"model     {settings.model.name}, {num_parameters(model):,} parameters, {len(state.scenario_names)} scenarios "
        f"x {len(state.task_names)} tasks"
    )
    if spots := blind_spots(snapshot.cells, state.contract):
        say("what this run cannot learn, or its metrics cannot judge")
        say_table(["scenario", "task", "split", "because"], spots)


def summarise(results: list[dict[str, Any]], state: EncoderState, tracker: Tracker, version: Any) -> None:
    """Print the best validation, and where everything is."""
    history = results[0]["history"]
    best = next((entry for entry in history if entry["epoch"] == results[0]["best_epoch"]), None)
    if best is not None:
        say(f"validation, epoch {best['epoch'] + 1} (best)")
        cells = [CellMetrics(**cell) for cell in best["cells"]]
        say(cells_table(to_results(cells, state.scenario_names, state.task_names)))
    peak = max(result["peak_memory_bytes"] for result in results) / 2**20
    say(f"workers   {len(results)}, peak memory of one {peak:,.0f} MiB")
    say(f"run       {tracker.run_id}")
    if version is not None:
        say(f"model     {version.name} version {version.version}, alias challenger")


if __name__ == "__main__":
    run_job(main)
