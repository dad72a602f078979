"""How fast one worker's loader is, and what it costs the core that it shares with training.

    python -m benchmarks.loader [--rows 800000] [--row-group 16384]

A table of random rows is read twice: as fast as it goes, and by a consumer that takes batches at the pace of a model
(``--pace`` rows/s), for which the share of time spent waiting for data is what counts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.pairing import Measured
from feature_eng.snapshot import DataFile, SnapshotRef, schema_hash
from hinet_model.data.batch import BatchLayout
from hinet_model.data.loading import SnapshotReader
from hinet_model.data.plan import plan_epoch

NUM_SCENARIOS, SLOTS, NUMBERS, VOCABULARY = 3, 14, 4, 5_000
ROWS, ROW_GROUP, PACE = 800_000, 16_384, 40_000.0


def make_table(folder: Path, rows: int, row_group: int) -> tuple[SnapshotRef, BatchLayout]:
    """A training table of random rows: 14 id columns, 4 numbers, two labels."""
    rng = np.random.default_rng(0)
    columns: dict[str, np.ndarray[Any, Any]] = {
        "row_id": rng.permutation(rows).astype(np.int64),
        "scenario_index": rng.integers(0, NUM_SCENARIOS, rows).astype(np.int32),
        **{f"label__{task}": rng.integers(0, 2, rows).astype(np.float32) for task in ("click", "like")},
        **{f"id_{slot}": rng.integers(0, VOCABULARY, rows).astype(np.int32) for slot in range(SLOTS)},
        **{f"number_{place}": rng.normal(size=rows).astype(np.float32) for place in range(NUMBERS)},
    }
    path = folder / "train.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=row_group)
    footer = pq.read_metadata(path)
    groups = tuple(footer.row_group(place).num_rows for place in range(footer.num_row_groups))
    types = tuple((name, str(values.dtype)) for name, values in columns.items())
    snapshot = SnapshotRef(
        table="benchmark", version=0, table_id="benchmark",
        files=(DataFile(str(path), path.stat().st_size, "train", groups),),
        columns=types, schema_hash=schema_hash(types), contract_name="benchmark", contract_fingerprint="",
        encoder_path="", encoder_digest="", scenario_rows={"train": (rows, 0, 0)},
    )  # fmt: skip
    field = {"slots": 1, "shares": None}
    schema = {
        "fields": [
            *(
                {**field, "name": n, "kind": "index", "size": VOCABULARY, "columns": [n]}
                for n in columns
                if n[:2] == "id"
            ),
            *(
                {**field, "name": n, "kind": "number", "size": 0, "columns": [n]}
                for n in columns
                if n[:2] == "nu"
            ),
        ],
        "scenario_names": [f"scenario {index}" for index in range(NUM_SCENARIOS)],
        "task_names": ["click", "like"],
    }
    return snapshot, BatchLayout.from_schema(schema)


def read(reader: SnapshotReader, batch_size: int, pace: float | None) -> dict[str, float]:
    """Read one epoch; ``pace`` holds the consumer to so many rows a second."""
    plan = plan_epoch(reader.row_groups, batch_size=batch_size, lanes=8, seed=0, epoch=0, window_rows=65_536)
    started, cpu, waited = time.perf_counter(), time.process_time(), reader.wait_seconds
    rows = 0
    for batch in reader.batches(plan, rank=0, world_size=1):
        rows += batch.num_rows
        if pace is not None:
            time.sleep(batch.num_rows / pace)
    seconds = time.perf_counter() - started
    assert rows == plan.num_rows
    return {
        "rows_per_second": rows / seconds,
        "cpu_seconds_per_million_rows": 1e6 * (time.process_time() - cpu) / rows,
        "wait_share": (reader.wait_seconds - waited) / seconds,
    }


def measure(rows: int, row_group: int, batch_size: int, pace: float) -> Measured:
    """Read the table unpaced, then paced."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="hinet-loader-") as folder:
        snapshot, layout = make_table(Path(folder), rows, row_group)
        with SnapshotReader(snapshot, "train", layout) as reader:
            found["unpaced"] = read(reader, batch_size, None)
            found[f"paced at {pace:,.0f} rows/s"] = read(reader, batch_size, pace)
    return Measured(raw=found)


def report(measured: Measured) -> str:
    """The two readings as lines."""
    return "\n".join(
        f"{name:<24}{found['rows_per_second']:>12,.0f} rows/s"
        f"{found['cpu_seconds_per_million_rows']:>8.2f} CPU-s per million rows"
        f"{100 * found['wait_share']:>7.1f} % waiting"
        for name, found in measured.raw.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--row-group", type=int, default=ROW_GROUP)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--pace", type=float, default=PACE, help="rows/s of the paced consumer")
    given = parser.parse_args()
    measured = measure(given.rows, given.row_group, given.batch_size, given.pace)
    sys.stdout.write(report(measured) + "\n")


if __name__ == "__main__":
    main()
