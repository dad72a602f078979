"""Raw files to a training table: events, examples, encoder, encoded rows, all in Delta."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng import delta, training_table
from feature_eng.behaviour import with_behaviour
from feature_eng.cells import blind_spots, cells_rows, check_splits, count_cells
from feature_eng.contract import SPLITS, Contract, ContractError, load_contract, to_instant
from feature_eng.encoder import spark as encoder
from feature_eng.encoder.agreement import check_agreement
from feature_eng.encoder.fit import fit
from feature_eng.encoder.state import EncoderState
from feature_eng.events import Events, to_events
from feature_eng.events.advice import RowCount, check_rejects
from feature_eng.events.joining import check_matches, match_counts
from feature_eng.examples import to_examples
from feature_eng.later_rows import check_matches as check_label_matches
from feature_eng.sampling import check_shift, with_sampling
from feature_eng.snapshot import CELLS, EXAMPLES_PATH, EXAMPLES_VERSION, SOURCES, CellCount, SnapshotRef
from feature_eng.sources.faults import as_user_errors
from feature_eng.sources.lineage import described
from feature_eng.sources.raw import read_raw
from feature_eng.sources.tables import pinned, places_of
from feature_eng.split import with_split
from foundation import stores
from foundation.job import job_parser, run_job, say, say_table

logger = logging.getLogger("build_features")

SAMPLE_ROWS = 2_000

EXAMPLES = """\
  python jobs/build_features.py --contract conf/contracts/movielens.yml
  python jobs/build_features.py --contract conf/contracts/movielens.yml --set behaviour=false
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
        "--rows-per-group", type=int, default=training_table.ROWS_PER_GROUP, metavar="N",
        help="most rows of a row group of the training table (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, help="of the training table's order of rows (%(default)s)"
    )
    parser.add_argument(
        "--as-of", metavar="TIME",
        help="what is known: nothing later than this date (its end) or ISO time, UTC unless it says otherwise; "
        "default: all, and the data end with their last row",
    )  # fmt: skip
    return parser


def main() -> None:
    """Read the arguments, start Spark and build."""
    given = arguments().parse_args()
    contract = load_contract(given.contract, given.overrides)
    as_of = second_of(given.as_of, contract)
    started = time.monotonic()
    places = [given.warehouse, *places_of(contract.source, given.source)]
    spark = delta.build_session("build_features", places=places)
    try:
        build(spark, contract, given.source, given.warehouse, given.rows_per_group, given.seed, as_of)
        say(f"took {time.monotonic() - started:.0f} s")
    finally:
        spark.stop()


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
    rows_per_group: int = training_table.ROWS_PER_GROUP,
    seed: int = 0,
    as_of: int | None = None,
) -> SnapshotRef:
    """Run the stages in order and print what came of them."""
    root = stores.join(warehouse, contract.name)
    sources = write_events(spark, contract, source, root)
    events = stored_events(spark, contract, root)
    examples, examples_version = write_examples(events, contract, root, as_of)
    cells, data_version = count_cells(examples, contract)
    describe(cells, contract)
    check_splits(cells, contract)
    check_label_matches(events, cells, contract)
    check_shift(examples, contract)
    examples = examples.where(F.col("split").isin(list(SPLITS)))
    state = fit(examples, contract)
    encoder_path = stores.join(root, "encoder", state.digest)
    state.save(encoder_path)
    logger.info("encoder fitted on train: %s", encoder_path)
    # Read three times: compared, counted, written.
    encoded = encoder.encode(examples, state).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        num_rows = sum(cell.rows for cell in cells if cell.split in SPLITS)
        compared = check_agreement(examples, encoded, state, SAMPLE_ROWS, num_rows)
        snapshot = training_table.write(
            encoded,
            stores.join(root, "training"),
            state,
            encoder_path,
            rows_per_group=rows_per_group,
            seed=seed,
            properties={
                "hinet.data_version": data_version,
                SOURCES: json.dumps(sources),
                EXAMPLES_PATH: stores.join(root, "examples"),
                EXAMPLES_VERSION: str(examples_version),
                CELLS: json.dumps([asdict(cell) for cell in cells]),
            },
        )
    finally:
        encoded.unpersist()
    summarise(state, snapshot, compared)
    return snapshot


def write_events(
    spark: SparkSession, contract: Contract, source: str | None, root: str
) -> dict[str, list[dict[str, Any]]]:
    """Raw rows to the tables of events and rejects, every row into one of them; which versions were read."""
    main_table = contract.source.main_table
    with as_user_errors("the raw tables cannot be read"):
        pins = pinned(spark, contract.source, source)
        raw = read_raw(spark, contract, source, pins)
        events = to_events(raw, contract)
        rows_of = {
            main_table: stores.join(root, "events"),
            **{name: stores.join(root, f"events_{name}") for name in events.related},
        }
        delta.write(events.impressions, rows_of[main_table])
        delta.write(events.rejects, stores.join(root, "rejects"))
        for name, rows in events.related.items():
            delta.write(rows, rows_of[name])
        rows_in = {name: raw[name].count() for name in rows_of}
    rejects = delta.read(spark, stores.join(root, "rejects"))
    rejected = rejects.groupBy("table", "reason").agg(F.count("*").alias("rows"))
    reasons = rejected.orderBy("table", "reason").collect()
    counts = {}
    for name, place in rows_of.items():
        rows_rejected = sum(row["rows"] for row in reasons if row["table"] == name)
        count = RowCount(rows_in[name], delta.read(spark, place).count(), rows_rejected)
        if count.rows_in != count.rows_out + count.rejected:
            raise RuntimeError(
                f"{name}: {count.rows_in} rows in, {count.rows_out} out and {count.rejected} rejected"
            )
        counts[name] = count
    say("raw rows")
    say_table(
        ["table", "in", "out", "rejected"],
        [(name, count.rows_in, count.rows_out, count.rejected) for name, count in counts.items()],
    )
    if reasons:
        say_table(["table", "rejected because", "rows"], [tuple(row) for row in reasons])
    check_rejects(counts, reasons, rejects, contract)
    matched = match_counts(delta.read(spark, rows_of[main_table]))
    if matched:
        say_table(
            ["side table", "rows that found theirs", "unmatched"],
            [(name, found, rows - found) for name, (found, rows) in matched.items()],
        )
        check_matches(matched, raw, contract)
    return described(raw, contract.source, pins)


def stored_events(spark: SparkSession, contract: Contract, root: str) -> Events:
    """The tables of events and rejects."""
    names = {task.table for task in contract.tasks.values() if task.table is not None}
    return Events(
        impressions=delta.read(spark, stores.join(root, "events")),
        related={name: delta.read(spark, stores.join(root, f"events_{name}")) for name in sorted(names)},
        rejects=delta.read(spark, stores.join(root, "rejects")),
    )


def write_examples(events: Events, contract: Contract, root: str, as_of: int | None) -> tuple[DataFrame, int]:
    """Events to the table of examples: labels, split, behaviour up to each row's time; and its version."""
    spark = events.impressions.sparkSession
    parted = with_split(to_examples(events, contract, as_of), contract)
    examples = with_behaviour(with_sampling(parted, contract), contract)
    table = stores.join(root, "examples")
    version = delta.write(encoder.with_row_id(examples, contract), table)
    logger.info("examples: %s, version %d", table, version)
    return delta.read(spark, table, version), version


def describe(cells: Sequence[CellCount], contract: Contract) -> None:
    """Print what there is to learn and to judge, and what there is not."""
    say("examples")
    say_table(*cells_rows(cells, contract.task_names))
    if spots := blind_spots(cells, contract):
        say("what training cannot learn, or metrics cannot judge")
        say_table(["scenario", "task", "split", "because"], spots)


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
