"""Raw files to a training table: events, examples, encoder, encoded rows, all in Delta."""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import dataclass
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng import delta, training_table
from feature_eng.behaviour import with_behaviour
from feature_eng.contract import SPLITS, Contract, load_contract
from feature_eng.encoder import spark as encoder
from feature_eng.encoder.agreement import check_agreement
from feature_eng.encoder.fit import fit
from feature_eng.encoder.state import EncoderState
from feature_eng.events import Events, to_events
from feature_eng.events.advice import RowCount, check_rejects
from feature_eng.events.joining import check_matches, match_counts
from feature_eng.examples import to_examples
from feature_eng.snapshot import EXAMPLES_PATH, EXAMPLES_VERSION, SOURCES, SnapshotRef
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
      --contract conf/contracts/movielens_1m.yml --source ml-1m --set split.method=random"""


@dataclass(frozen=True)
class Cell:
    """Rows of one scenario in one split, and how many of them have label 1, per task."""

    scenario: str
    split: str
    rows: int
    positives: tuple[int, ...]


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
    return parser


def main() -> None:
    """Read the arguments, start Spark and build."""
    given = arguments().parse_args()
    contract = load_contract(given.contract, given.overrides)
    started = time.monotonic()
    places = [given.warehouse, *places_of(contract.source, given.source)]
    spark = delta.build_session("build_features", places=places)
    try:
        build(spark, contract, given.source, given.warehouse, given.rows_per_group, given.seed)
        say(f"took {time.monotonic() - started:.0f} s")
    finally:
        spark.stop()


def build(
    spark: SparkSession,
    contract: Contract,
    source: str | None,
    warehouse: stores.Place,
    rows_per_group: int = training_table.ROWS_PER_GROUP,
    seed: int = 0,
) -> SnapshotRef:
    """Run the stages in order and print what came of them."""
    root = stores.join(warehouse, contract.name)
    sources = write_events(spark, contract, source, root)
    examples, examples_version = write_examples(spark, contract, root)
    cells, data_version = count_examples(examples, contract)
    state = fit(examples, contract)
    encoder_path = stores.join(root, "encoder", state.digest)
    state.save(encoder_path)
    logger.info("encoder fitted on train: %s", encoder_path)
    # Read three times: compared, counted, written.
    encoded = encoder.encode(examples, state).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        num_rows = sum(cell.rows for cell in cells)
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
            },
        )
    finally:
        encoded.unpersist()
    summarise(cells, state, snapshot, compared)
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


def write_examples(spark: SparkSession, contract: Contract, root: str) -> tuple[DataFrame, int]:
    """Events to the table of examples: labels, split, behaviour up to each row's time; and its version."""
    names = {task.table for task in contract.tasks.values() if task.table is not None}
    events = Events(
        impressions=delta.read(spark, stores.join(root, "events")),
        related={name: delta.read(spark, stores.join(root, f"events_{name}")) for name in sorted(names)},
        rejects=delta.read(spark, stores.join(root, "rejects")),
    )
    examples = with_behaviour(with_split(to_examples(events, contract), contract), contract)
    table = stores.join(root, "examples")
    version = delta.write(encoder.with_row_id(examples, contract), table)
    logger.info("examples: %s, version %d", table, version)
    return delta.read(spark, table, version), version


def count_examples(examples: DataFrame, contract: Contract) -> tuple[list[Cell], str]:
    """Rows and positives per scenario and split; and the data's version, a digest of all rows.

    The digest does not depend on the order of rows: equal data have an equal version.
    """
    positives = [F.sum(f"label__{task}").alias(f"label__{task}") for task in contract.task_names]
    digest = F.sum(F.xxhash64(*sorted(examples.columns)).cast("decimal(38, 0)")).alias("digest")
    counted = (
        examples.groupBy("scenario", "split").agg(F.count("*").alias("rows"), *positives, digest).collect()
    )
    found = {(row["scenario"], row["split"]): row for row in counted}
    cells = [
        Cell(
            scenario,
            split,
            found[scenario, split]["rows"],
            tuple(int(found[scenario, split][f"label__{task}"]) for task in contract.task_names),
        )
        for scenario in contract.scenario_names
        for split in SPLITS
        if (scenario, split) in found
    ]
    return cells, f"{sum(int(row['digest']) for row in counted) % 2**64:016x}"


def summarise(cells: list[Cell], state: EncoderState, snapshot: SnapshotRef, compared: int) -> None:
    """Print what was built."""
    say("examples")
    say_table(
        ["scenario", "split", "rows", *(f"{task} = 1" for task in state.task_names)],
        [(cell.scenario, cell.split, cell.rows, *cell.positives) for cell in cells],
    )
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
