"""Raw files to a training table: events, examples, encoder, encoded rows, all in Delta."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from pyspark import StorageLevel
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from feature_eng import by_date, delta, drift, training_table
from feature_eng.as_of import check_before, known
from feature_eng.behaviour import check_told
from feature_eng.cells import add_up, blind_spots, cells_rows, check_splits
from feature_eng.contract import SPLITS, Contract, ContractError, load_contract, to_instant
from feature_eng.dates import Dates, is_one_of
from feature_eng.encoder import spark as encoder
from feature_eng.encoder.agreement import check_agreement
from feature_eng.encoder.growth import fit_or_grow
from feature_eng.encoder.state import EncoderState
from feature_eng.events.dates_alone import check_times
from feature_eng.events.quiet import quiet_tables
from feature_eng.events.stored import stored_events
from feature_eng.events.tables import write_events
from feature_eng.examples_table import write_examples
from feature_eng.later_rows import check_matches as check_label_matches
from feature_eng.meaning import MEANING
from feature_eng.reencoding import days_to_encode
from feature_eng.sampling import check_shift
from feature_eng.snapshot import (
    AS_OF,
    CELLS,
    DATA_VERSION,
    END,
    EXAMPLES_PATH,
    EXAMPLES_VERSION,
    MEANING_OF_ROWS,
    PROFILE,
    SOURCES,
    TABLES,
    CellCount,
    SnapshotRef,
)
from feature_eng.sources.tables import bytes_of, places_of
from feature_eng.tallies import tallies
from foundation import stores
from foundation.job import job_parser, run_job, say, say_table, stage
from foundation.session import job_session
from foundation.turns import one_at_a_time

logger = logging.getLogger("build_features")

SAMPLE_ROWS = 2_000

EXAMPLES = """\
  python jobs/build_features.py --contract conf/contracts/movielens.yml
  python jobs/build_features.py --contract conf/contracts/movielens.yml --set behaviour=false
  python jobs/build_features.py --contract conf/contracts/shop.yml --dates 2024-01-05 \\
      --set 'split={method: dates, train: [null, 2024-01-04], test: [2024-01-05, null]}'
  spark-submit --properties-file conf/spark/local.conf jobs/build_features.py \\
      --contract conf/contracts/movielens_1m.yml --source ml-1m --set split.seed=1"""


def arguments() -> argparse.ArgumentParser:
    """What the job accepts."""
    parser = job_parser(__doc__, EXAMPLES)
    parser.add_argument("--contract", required=True, metavar="FILE", help="data contract (YAML)")
    parser.add_argument(
        "--source", metavar="PATH", help="folder of the raw files; default: what the reader finds"
    )
    parser.add_argument(
        "--warehouse",
        default="local/warehouse",
        metavar="PLACE",
        help="where tables go, a path or a URI (%(default)s)",
    )
    parser.add_argument(
        "--rows-per-group", type=number_of_rows, metavar="N",
        help=f"most rows of a row group of the training table (default: {training_table.ROWS_PER_GROUP:,}, or "
        f"{training_table.ROWS_PER_GROUP_OF_A_DAY:,} of a table by date)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, help="of the training table's order of rows (%(default)s)"
    )
    parser.add_argument(
        "--dates", metavar="A:B",
        help="read the rows of these days, A to B, or of one; an open end is the first or last one there is. Rows of "
        "other days stay, and of their examples those are made anew that these concern",
    )  # fmt: skip
    parser.add_argument(
        "--as-of", metavar="TIME",
        help="what is known: nothing later than this date (its end) or ISO time, UTC unless it says otherwise; "
        "default: all, and the data end with their last row",
    )  # fmt: skip
    parser.add_argument(
        "--accept-drift", action="store_true",
        help="write the training table though it lies further from the one before than the contract allows",
    )  # fmt: skip
    return parser


def number_of_rows(text: str) -> int:
    """Read a number of rows, 1 at least.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 1 or more")
    return int(text)


def main() -> None:
    """Read the arguments, start Spark and build."""
    given = arguments().parse_args()
    contract = load_contract(given.contract, given.overrides)
    as_of = second_of(given.as_of, contract)
    dates = None if given.dates is None else by_date.dates_of(given.dates, contract)
    started = time.monotonic()
    places = [given.warehouse, *places_of(contract.source, given.source)]
    with job_session(
        "build_features", places=places, data_bytes=lambda: bytes_of(contract.source, given.source)
    ) as spark:
        layout = (given.rows_per_group, given.seed)
        with one_at_a_time(stores.join(given.warehouse, contract.name), "another build of this contract"):
            build(spark, contract, given.source, given.warehouse, *layout, as_of, given.accept_drift, dates)
        say(f"took {time.monotonic() - started:.0f} s")


def second_of(as_of: str | None, contract: Contract) -> int | None:
    """The last second that ``--as-of`` counts as known.

    Raises:
        ContractError: It is no time, or the contract's rows have none.
    """
    if as_of is None:
        return None
    if contract.columns.time is None:
        raise ContractError(["--as-of: the contract names no columns.time"])
    try:
        return to_instant(as_of, is_end=True)
    except ValueError as error:
        raise ContractError([f"--as-of: {error}"]) from None


def build(
    spark: SparkSession,
    contract: Contract,
    source: str | None,
    warehouse: stores.Place,
    rows_per_group: int | None = None,
    seed: int = 0,
    as_of: int | None = None,
    accept_drift: bool = False,
    dates: Dates | None = None,
) -> SnapshotRef:
    """Run the stages in order and print what came of them."""
    root = stores.join(warehouse, contract.name)
    if dates is not None and not dates.is_all:
        check_before(stores.join(root, "training"), contract, as_of)
    with stage("events"):
        sources, versions, replaced = write_events(spark, contract, source, root, dates)
    with stage("examples"):
        examples, examples_version, end = write_examples(spark, contract, root, versions, as_of, replaced)
        logger.info("examples: %s, version %d", stores.join(root, "examples"), examples_version)
    with stage("what there is to learn"):
        cells, data_version = add_up(tallies(examples, contract, root, examples_version), contract)
        describe(cells, contract)
        describe_tables(spark, contract, root, versions, cells)
        check_splits(cells, contract)
        told, events = known(examples, stored_events(spark, contract, root, versions), contract, as_of)
        check_times(events, contract)
        # A table of a whole log that holds nothing is a mistake; in the first of its days it may be to come.
        quiet = set() if dates is None or dates.is_all else quiet_tables(events, contract)
        check_label_matches(events, cells, contract, quiet)
        check_told(told, events, contract, quiet)
        check_shift(examples, contract)
    examples = examples.where(F.col("split").isin(list(SPLITS)))
    with stage("encoder"):
        state = fit_or_grow(examples, contract, stores.join(root, "training"), data_version)
        encoder_path = stores.join(root, "encoder", state.digest)
        state.save(encoder_path)
        logger.info("encoder fitted on train: %s", encoder_path)
        rows_per_group = rows_per_group or training_table.most_rows(examples)
        layout = training_table.layout(rows_per_group, seed)
        days = days_to_encode(examples, state, root, examples_version, layout)
    with stage("drift"):
        looks = drift.judged(examples, state, cells, root, examples_version, accept=accept_drift)
    if days is not None:
        examples = examples.where(is_one_of(days))
    # Read five times: counted, compared, its order counted, ends of files found, written.
    encoded = encoder.encode(examples, state).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        with stage("encoding"):
            compared = check_agreement(examples, encoded, state, SAMPLE_ROWS)
        with stage("training table"):
            snapshot = training_table.write(
                encoded,
                stores.join(root, "training"),
                state,
                encoder_path,
                rows_per_group=rows_per_group,
                seed=seed,
                properties={
                    DATA_VERSION: data_version,
                    MEANING_OF_ROWS: str(MEANING),
                    SOURCES: json.dumps(sources),
                    TABLES: json.dumps(versions),
                    **({} if as_of is None else {AS_OF: str(as_of)}),
                    **({} if end is None else {END: str(end)}),
                    **by_date.spans_of(contract),
                    EXAMPLES_PATH: stores.join(root, "examples"),
                    EXAMPLES_VERSION: str(examples_version),
                    CELLS: json.dumps([asdict(cell) for cell in cells]),
                    PROFILE: json.dumps(looks),
                },
                days=days,
            )
    finally:
        encoded.unpersist()
    summarise(state, snapshot, compared)
    return snapshot


def describe(cells: Sequence[CellCount], contract: Contract) -> None:
    """Print what there is to learn and to judge, and what there is not."""
    say("examples")
    say_table(*cells_rows(cells, contract.task_names))
    if spots := blind_spots(cells, contract):
        say("what training cannot learn, or metrics cannot judge")
        say_table(["scenario", "task", "split", "because"], spots)


def describe_tables(
    spark: SparkSession,
    contract: Contract,
    root: str,
    versions: Mapping[str, int],
    cells: Sequence[CellCount],
) -> None:
    """Print how many rows the labels' tables have beside how many impressions have label 1 by them.

    A join that loses most rows is no error, and nothing else would show it.
    """
    lines = []
    for place, (name, task) in enumerate(contract.tasks.items()):
        if task.table is not None:
            table = contract.events_of(task.table)
            rows = delta.num_rows(spark, stores.join(root, table), versions[table])
            lines.append((name, task.table, rows, sum(cell.positives[place] for cell in cells)))
    if lines:
        say("labels of other tables")
        say_table(["task", "table", "rows", "label 1"], lines)


def summarise(state: EncoderState, snapshot: SnapshotRef, compared: int) -> None:
    """Print what was built."""
    say(f"encoder   {len(state.fields)} inputs, {compared:,} rows encoded alike by Spark and Arrow")
    for split, sizes in training_table.group_sizes(snapshot).items():
        if sizes:
            say(
                f"{split + ' ':<10}{sum(sizes):,} rows in {len(sizes)} row groups of {sizes[-1]:,} to {sizes[0]:,}"
            )
    say(f"encoder   {snapshot.encoder_path}")
    say(f"snapshot  table {snapshot.table} version {snapshot.version}")


if __name__ == "__main__":
    run_job(main)
