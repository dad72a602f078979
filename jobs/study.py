"""A study: many trainings that answer one question, and the page that says what they found."""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import psutil
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng import delta
from feature_eng.contract import Contract, load_contract
from feature_eng.encoder.state import EncoderError, EncoderState
from feature_eng.origin import origin_of
from feature_eng.snapshot import (
    CONTRACT_FINGERPRINT,
    DATA_VERSION,
    ENCODER_PATH,
    SnapshotError,
    SnapshotRef,
)
from feature_eng.sources.six_scenarios.truth import true_probs
from foundation import stores
from foundation.job import job_parser, run_job, say
from foundation.redaction import redact
from foundation.session import job_session
from foundation.settings import UserError, load_settings
from hinet_model.studies.comparing import TestRows
from hinet_model.studies.findings import Facts, Findings
from hinet_model.studies.lines import lines as json_lines
from hinet_model.studies.page import render
from hinet_model.studies.pictures import save_pictures
from hinet_model.studies.recording import StudyRun
from hinet_model.studies.running import Runner, check_settings
from hinet_model.studies.settings import StudySettings, overrides_of, run_settings
from hinet_model.studies.trials import Record, Schedule, code_digest, data_version

logger = logging.getLogger("study")

EXAMPLES = """\
  python jobs/study.py --study conf/studies/comparison.yml
  python jobs/study.py --study conf/studies/comparison.yml --quick
  python jobs/study.py --study conf/studies/ablation.yml --set final.seeds=[1,2,3] --processes 2
  python jobs/study.py --study conf/studies/ablation.yml --report
  spark-submit --properties-file conf/spark/local.conf jobs/study.py --study conf/studies/attention.yml

What was run is kept below --folder, a file for each trial: a study that was stopped goes on where it was, and studies
share the trials that they have in common."""

ROW, USER = "row_id", "user__"


@dataclass(frozen=True)
class Data:
    """What all trials of a study read.

    Args:
        contract: What the data mean.
        snapshot: The pinned training table.
        version: Of its rows and of how they lie.
        rows: The test rows.
    """

    contract: Contract
    snapshot: SnapshotRef
    version: str
    rows: TestRows


def arguments() -> argparse.ArgumentParser:
    """What the job accepts."""
    parser = job_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--study", required=True, metavar="FILE", help="the study (YAML)")
    parser.add_argument("--quick", action="store_true", help="the same, too small to answer anything")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="trials side by side (%(default)s)"
    )
    parser.add_argument(
        "--report", action="store_true", help="write the page of what was run, and run nothing"
    )
    parser.add_argument(
        "--results", type=Path, metavar="DIR",
        help="where the page goes; default: docs/results, of a quick study FOLDER/quick",
    )  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, default=Path("local/studies"), help="what was run (%(default)s)"
    )
    parser.add_argument(
        "--warehouse", default="local/warehouse", metavar="PLACE", help="of tables (%(default)s)"
    )
    return parser


def main() -> None:
    """Build the data where they are missing, run what was not run yet, and say what was found."""
    given = arguments().parse_args()
    if given.processes < 1:
        raise UserError(f"--processes {given.processes}: expected at least 1")
    # Trials are processes of their own, which end with this one.
    signal.signal(signal.SIGTERM, _interrupt)
    study = load_settings(StudySettings, given.study, given.overrides)
    study = study.made_quick() if given.quick else study
    settings = run_settings(study.config, study.settings)
    name = Path(given.study).stem
    results = given.results or (given.folder / "quick" if given.quick else Path("docs/results"))
    with _alone(given.folder):
        data = prepare(study, given.warehouse, given.folder)
        schedule = Schedule(study, data.version, Record(given.folder))
        check_settings(schedule)
        run = StudyRun(settings.mlflow, name, f"{code_digest()}:{data.version}")
        status = "FAILED"
        pages: list[Path] = []
        try:
            if not given.report:
                for trial, outcome in schedule.on_record():
                    run.add(trial, outcome)
                Runner(schedule, data.snapshot, given.processes, run.add).run()
            pages = write(schedule, data, facts_of(name, data, command_of(given)), results)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            run.finish(status, *pages)
    for page in pages:
        say(f"written   {page}")
    say(f"recorded  run {run.run_id} of experiment studies, {settings.mlflow.tracking_uri}")


def prepare(study: StudySettings, warehouse: str, folder: Path) -> Data:
    """The study's table, built by the ordinary job where it is not there yet, and its test rows."""
    contract = load_contract(study.data.contract, overrides_of(study.data.settings))
    table = stores.join(warehouse, contract.name, "training")
    if not _is_there(table, contract):
        build(study, warehouse)
    with job_session("study", places=[table]) as spark:
        snapshot = delta.snapshot(spark, table)
        properties = delta.properties(table, snapshot.version)
        version = data_version(snapshot, properties[DATA_VERSION])
        place = folder / "test_rows" / f"{version}.npz"
        if not place.exists():
            logger.info("collecting the test rows")
            origin = origin_of(table, properties)
            examples = delta.read_earlier(spark, origin.examples, origin.version)
            test_rows(spark, contract, examples).save(place)
    return Data(contract, snapshot, version, TestRows.load(place))


def build(study: StudySettings, warehouse: str) -> None:
    """Make the study's table, in a process of its own: its Java must not stand beside the trials."""
    command = [sys.executable, str(Path(__file__).with_name("build_features.py"))]
    command += ["--contract", study.data.contract, "--warehouse", warehouse]
    command += ["--source", os.path.expandvars(study.data.source)] if study.data.source else []
    for override in overrides_of(study.data.settings):
        command += ["--set", override]
    logger.info("building the data: %s", " ".join(command[1:]))
    done = subprocess.run(command, check=False, stdout=sys.stderr)
    if done.returncode:
        raise UserError(
            f"data: could not be built (exit code {done.returncode}); its own message stands above"
        )


def _is_there(table: str, contract: Contract) -> bool:
    """Whether the table was made by this very contract; its fingerprint does not tell seeds and spans of splits."""
    try:
        properties = delta.properties(table)
        return (
            properties.get(CONTRACT_FINGERPRINT) == contract.fingerprint
            and EncoderState.load(properties[ENCODER_PATH]).contract == contract
        )
    except (SnapshotError, EncoderError):
        return False


def test_rows(spark: SparkSession, contract: Contract, examples: DataFrame) -> TestRows:
    """The test rows by ascending id, with the truth where data are made."""
    user = F.col(f"`{contract.stored_user}`").cast("string") if contract.stored_user else F.col(ROW)
    labels = [F.coalesce(F.col(f"label__{task}"), F.lit(-1)).alias(task) for task in contract.task_names]
    rows = examples.where(F.col("split") == "test")
    known = true_probs(spark, contract)
    truths = [] if known is None else [column for column in known.columns if column != "impression_id"]
    if known is not None:
        rows = rows.join(known, on="impression_id", how="inner")
    wanted = rows.select(ROW, "scenario", F.xxhash64(user).alias(USER), *labels, *truths)
    found = wanted.toPandas().sort_values(ROW)
    place = {name: index for index, name in enumerate(contract.scenario_names)}
    _, users = np.unique(found[USER].to_numpy(), return_inverse=True)
    return TestRows(
        scenario=found["scenario"].map(place).to_numpy(np.int64),
        user=users.astype(np.int64),
        labels=found[list(contract.task_names)].to_numpy(np.float64),
        truth=found[truths].to_numpy(np.float64) if truths else None,
    )


def facts_of(name: str, data: Data, command: str) -> Facts:
    """What there is to say of the study beside its trials."""
    rows = {split: data.snapshot.rows(split) for split in ("train", "validation", "test")}
    memory = round(psutil.virtual_memory().total / 2**30)
    return Facts(
        name=name,
        command=command,
        contract=data.contract.name,
        rows=rows,
        scenarios=data.contract.scenario_names,
        tasks=data.contract.task_names,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, {memory} GiB",
        planted=planted(data.contract),
    )


def planted(contract: Contract) -> npt.NDArray[np.float64] | None:
    """Similarity of the contract's scenarios, of data that are made scenario by scenario; else ``None``."""
    made = contract.source.six_scenarios
    if contract.source.reader != "six_scenarios" or made is None:
        return None
    places = [contract.scenario_index(number) for number in range(1, made.scenarios + 1)]
    if sorted(place for place in places if place is not None) != list(range(len(contract.scenario_names))):
        return None
    chosen = [
        number
        for number, place in sorted(enumerate(places), key=lambda one: one[1] or 0)
        if place is not None
    ]
    similarity: npt.NDArray[np.float64] = made.similarity[np.ix_(chosen, chosen)]
    return similarity


def write(schedule: Schedule, data: Data, facts: Facts, folder: Path) -> list[Path]:
    """Write the page, its pictures and its lines."""
    findings = Findings(schedule, facts, data.rows)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = save_pictures(findings, folder)
    page, lines = folder / f"{facts.name}.md", folder / f"{facts.name}.jsonl"
    lines.write_text("".join(f"{line}\n" for line in json_lines(findings)), encoding="utf-8")
    page.write_text(render(findings, pictures), encoding="utf-8")
    return [page, lines, *(folder / file for _, file in pictures)]


def command_of(given: argparse.Namespace) -> str:
    """The command that makes the page again, from what was given."""
    words: Sequence[str] = ["python jobs/study.py", f"--study {given.study}"]
    words = [*words, *(["--quick"] if given.quick else []), *(f"--set '{one}'" for one in given.overrides)]
    return redact(" ".join(words))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two studies at once would run the trials that they have in common twice, and into each other's files."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"--folder {folder}: another study is running there; wait for it") from None
        yield


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_job(main)
