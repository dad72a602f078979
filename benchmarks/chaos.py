"""``make chaos``: one fault after the other, planted into real runs of two workers, and a table of what came of each.

examples:
    python -m benchmarks.chaos --seeds 1
    python -m benchmarks.chaos --seeds 1 2 3 --table docs/chaos_table.md
    python -m benchmarks.chaos --only "SIGSTOP of rank 1"
    python -m benchmarks.chaos --goodput 200

Every run trains the same small table, on Spark tasks with Horovod, in the same session; the seed draws the step at
which the fault comes. A run that goes on by itself, or by ``--resume`` once the cause is mended, must end with the
weights of the run that nothing happened to, bit by bit, and every epoch must have had its planned rows.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import faults
from benchmarks.faults import KINDS, Order
from benchmarks.small_flow import SmallFlow, write_flow
from feature_eng import delta
from feature_eng.encoder.state import EncoderState
from foundation.job import configure_logging
from foundation.session import build_session
from foundation.settings import UserError, load_settings
from hinet_model.settings import RunSettings
from hinet_model.training.control.monitor import TrainingError
from hinet_model.training.control.restarts import Attempts
from hinet_model.training.job import TrainingJob, epoch_plan

ROOT = Path(__file__).parents[1]
_NOTICED = ("failed", "stalled", "disconnected")


@dataclass(frozen=True)
class Row:
    """What came of one fault.

    Args:
        kind: Of the fault.
        step: After which it came, or from which on.
        noticed: Seconds until the driver knew; None where there was nothing to notice.
        happened: In words.
        rows: Lost or repeated, over all epochs; None where none was trained on.
        equal: Whether the weights are those of the undisturbed run; None where there are none.
        goodput: Of the last attempts.
        right: Whether all is as it must be.
    """

    kind: str
    step: int
    noticed: float | None
    happened: str
    rows: int | None
    equal: bool | None
    goodput: float
    right: bool


class Rehearsal:
    """Runs with faults, beside the one without.

    Args:
        spark: The session.
        job: What is trained, without a place of its own.
        folder: Holds the runs.
    """

    def __init__(self, spark: Any, job: TrainingJob, folder: Path) -> None:
        self._spark, self._job, self._folder = spark, job, folder
        self._file = next(file.path for file in job.snapshot.files if file.split == "train")
        results, self.seconds = self._train(Attempts(self._placed("undisturbed"), lambda report: None), None)
        self._expected = results[0]["weights"]
        self._planned = [entry["rows"] for entry in results[0]["history"]]
        self.steps = int(results[0]["global_step"])

    def _placed(self, name: str) -> TrainingJob:
        place = self._folder / name
        return replace(self._job, checkpoint_folder=str(place), log_folder=str(place / "logs"))

    def _train(self, attempts: Attempts, entry: Any) -> tuple[list[dict[str, Any]], float]:
        started = time.monotonic()
        results = attempts.run(self._spark, entry) if entry else attempts.run(self._spark)
        return results, time.monotonic() - started

    def meet(self, kind: str, step: int, seed: int) -> Row:
        """Plant one fault into one run."""
        job = self._placed(f"{seed}-{list(KINDS).index(kind)}")
        Order(kind, (step,), self._file).write(job)
        noticed: list[float] = []

        def on_report(report: Any) -> None:
            if report["kind"] in _NOTICED:
                noticed.append(time.time())

        spare = Path(self._file).with_suffix(".spare")
        shutil.copy2(self._file, spare)
        attempts = Attempts(job, on_report)
        try:
            results, _ = self._train(attempts, faults.main)
            happened = "goes on by itself" if attempts.restarts else "is not disturbed"
            said = ""
        except (TrainingError, UserError) as error:
            noticed.append(time.time())
            said = str(error)
        finally:
            at = next(iter(faults.happened_at(job)), None)
            spare.replace(self._file)
        if said:
            attempts = Attempts(replace(job, resume=True), lambda report: None)
            results, _ = self._train(attempts, None)
            happened = "ends, goes on by --resume"
        rows = sum(
            abs(entry["rows"] - planned)
            for entry, planned in zip(results[0]["history"], self._planned, strict=True)
        )
        equal = results[0]["weights"] == results[1]["weights"] == self._expected
        outside = kind not in ("a raise after init", "a raise before init")
        right = happened == KINDS[kind].outcome and rows == 0 and equal and at is not None
        right = right and not (outside and "Traceback" in said)
        if said:
            happened += f": {said.splitlines()[0]}"
        after = None if at is None or not noticed else max(0.0, noticed[0] - at)
        return Row(kind, step, after, happened, rows, equal, attempts.goodput, right)

    def three_kills(self, epochs: int, seed: int) -> None:
        """Say what three kills cost a longer run, and what it has of its time without them."""
        training = self._job.settings.training.model_copy(update={"epochs": epochs, "restarts": 3})
        saved = self._job.settings.checkpoint.model_copy(update={"every_steps": 100, "every_epochs": 50})
        sections = {"training": training, "checkpoint": saved}
        self._job = replace(self._job, settings=self._job.settings.model_copy(update=sections))
        straight = Attempts(self._placed("straight"), lambda report: None)
        expected, _ = self._train(straight, None)
        job = self._placed("three kills")
        quarter = int(expected[0]["global_step"]) // 4
        draw = random.Random(seed)
        steps = tuple(quarter * place + draw.randint(-quarter // 4, quarter // 4) for place in (1, 2, 3))
        Order("kill -9 of rank 1 in compute", steps, self._file).write(job)
        killed = Attempts(job, lambda report: None)
        results, _ = self._train(killed, faults.main)
        for name, attempts in (("undisturbed", straight), ("three kills", killed)):
            say(f"{name}: {attempts.seconds:.0f} s, {100 * attempts.goodput:.0f} % of it useful")
        same = results[0]["weights"] == results[1]["weights"] == expected[0]["weights"]
        say(f"killed after steps {steps} of {4 * quarter}; weights {'equal' if same else 'DIFFER'}")


def build(flow: SmallFlow) -> None:
    """The training table, by the job."""
    subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "build_features.py"), "--contract", str(flow.contract),
         "--warehouse", str(flow.warehouse)],
        check=True, cwd=flow.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def rehearse(folder: Path, seeds: Sequence[int], only: Sequence[str], goodput: int = 0) -> list[Row]:
    """All faults, for every seed; or what three kills cost a run of so many epochs."""
    flow = write_flow(folder / "flow", restarts=2)
    build(flow)
    overrides = [f"watchdog.{name}" for name in ("stall_seconds=8", "judge_seconds=8", "heartbeat_seconds=0.5",
                 "start_seconds=60", "checkpoint_seconds=8")]  # fmt: skip
    settings = load_settings(RunSettings, flow.config, overrides)
    os.chdir(flow.folder)
    # Workers import what they meet with from this checkout, wherever they run.
    os.environ["PYTHONPATH"] = str(ROOT)
    spark = build_session("chaos", {"spark.master": "local[2]"}, [settings.data.location])
    try:
        snapshot = delta.snapshot(spark, settings.data.location, None)
        schema = EncoderState.load(snapshot.encoder_path).model_schema()
        job = TrainingJob(settings, snapshot, schema, "", "")
        rehearsal = Rehearsal(spark, job, folder)
        say(f"undisturbed: {rehearsal.seconds:.0f} s, {rehearsal.steps} steps")
        if goodput:
            rehearsal.three_kills(goodput, seeds[0])
            return []
        # Within the second epoch, so that files are opened, and an epoch validated, once more after it.
        steps = epoch_plan(job, 0).num_steps
        rows = []
        for seed in seeds:
            for kind in only:
                step = random.Random(f"{seed} {kind}").randint(steps + 1, 2 * steps - 2)
                rows.append(met(kind, step, partial(rehearsal.meet, kind, step, seed)))
        return rows
    finally:
        with contextlib.suppress(Exception):
            spark.stop()


HEADER = (
    "| fault | after step | noticed after | what happened | rows lost or repeated | weights equal |\n"
    "|---|---|---|---|---|---|\n"
)


def as_line(rows: Sequence[Row]) -> str:
    """One line of the table: a kind, met once or with several seeds, steps and seconds side by side."""
    steps = ", ".join(str(row.step) for row in rows)
    seconds = ["-" if row.noticed is None else f"{row.noticed:.1f}" for row in rows]
    noticed = "-" if set(seconds) == {"-"} else f"{', '.join(seconds)} s"
    told = dict.fromkeys(row.happened.splitlines()[0].replace("|", "/")[:160] for row in rows)
    counts = [row.rows for row in rows if row.rows is not None]
    verdicts = {row.equal for row in rows}
    equal = "NO" if False in verdicts else "yes" if verdicts == {True} else "-"
    return f"| {rows[0].kind} | {steps} | {noticed} | {' / '.join(told)} | {max(counts, default='-')} | {equal} |"


def met(kind: str, place: int, meet: Callable[[], Row]) -> Row:
    """What came of one fault, said at once; whatever else went wrong is its row.

    Args:
        kind: Of the fault.
        place: The step or epoch after which it comes.
        meet: Plants it.
    """
    started = time.monotonic()
    try:
        row = meet()
    except Exception as error:
        row = Row(kind, place, None, f"{type(error).__name__}: {error}", None, None, 0.0, False)
        say(str(error))
    say(f"{'  ' if row.right else '! '}{as_line([row])} ({time.monotonic() - started:.0f} s)")
    return row


def end(rows: Sequence[Row], table: Path | None) -> NoReturn:
    """Write the table, a line for each kind, and end with exit code 1 if anything is not as it must be."""
    if table is not None:
        kinds = dict.fromkeys(row.kind for row in rows)
        lines = [as_line([row for row in rows if row.kind == kind]) for kind in kinds]
        table.write_text(HEADER + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    wrong = [row.kind for row in rows if not row.right]
    say(f"{len(rows)} faults, {len(rows) - len(wrong)} as they must be")
    raise SystemExit(1 if wrong else 0)


def say(text: str) -> None:
    """Write one line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--table", type=Path, help="file that the table is written to")
    parser.add_argument(
        "--goodput",
        type=int,
        default=0,
        metavar="EPOCHS",
        help="what three kills cost a run, and nothing else",
    )
    given = parser.parse_args()
    configure_logging()
    table = None if given.table is None else given.table.resolve()
    with tempfile.TemporaryDirectory() as folder:
        rows = rehearse(Path(folder), given.seeds, given.only, given.goodput)
    end(rows, table)


if __name__ == "__main__":
    main()
