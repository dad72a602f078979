"""Drift: what a build looks like, how far it lies from the build before, and whether the contract allows it.

A build's *profile* is plain data, of its cells and a sample of its rows, and goes with its training table. Values are
put into bins that mean the same in both builds: hashes of ids and texts, deciles of the earlier build for numbers.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from feature_eng import delta
from feature_eng.contract import SPLITS
from feature_eng.contract.drift import Drift
from feature_eng.contract.names import quoted, stored_name
from feature_eng.encoder import arrow
from feature_eng.encoder.state import UNKNOWN, Bucket, EncoderState, Slots, Standardise
from feature_eng.snapshot import EXAMPLES_VERSION, PROFILE, CellCount
from foundation import stores
from foundation.job import say, say_table
from foundation.settings import UserError

HASH_BINS = 20
SAMPLE_ROWS = 100_000
_STORED = "examples_version bigint, kind string, name string, before double, now double, is_beyond boolean"
_DECILES = [place / 10 for place in range(1, 10)]

Counts = npt.NDArray[np.int64]


class DriftError(UserError):
    """A build lies further from the one before than its contract allows."""


@dataclass(frozen=True)
class Measure:
    """One thing that two builds are compared by.

    Args:
        kind: ``rows``, ``labels``, ``nulls``, ``unknown`` or ``psi``: the contract's names of limits.
        name: Scenario, task in a scenario, or feature.
        before: In the build before; None for what it does not have.
        now: In this one; not a number where all labels are lost.
        is_beyond: Whether the contract's limit is passed.
    """

    kind: str
    name: str
    before: float | None
    now: float
    is_beyond: bool


def judged(
    examples: DataFrame,
    state: EncoderState,
    cells: Sequence[CellCount],
    root: str,
    examples_version: int,
    *,
    accept: bool,
) -> dict[str, Any]:
    """Compare a build with the newest training table, print and store what was found; the build's profile.

    Args:
        examples: The build's examples in train, validation and test.
        state: Its encoder.
        cells: What it counted.
        root: Folder of its tables.
        examples_version: Version of its examples.
        accept: Go on though a limit is passed.

    Raises:
        DriftError: Every measure beyond its limit.
    """
    sample = drawn(examples, state, sum(cell.rows for cell in cells if cell.split in SPLITS))
    looks = profile(sample, state, cells)
    training = stores.join(root, "training")
    before = delta.properties(training) if delta.exists(training) else {}
    if PROFILE not in before:
        return looks
    found = measures(json.loads(before[PROFILE]), looks, sample, state)
    say(f"drift     since the training table made of examples version {before[EXAMPLES_VERSION]}")
    say_table(["measure", "of", "before", "now", ""], to_rows(found))
    store(examples.sparkSession, found, stores.join(root, "drift"), examples_version)
    if not accept:
        check(found)
    return looks


def profile(sample: pa.Table, state: EncoderState, cells: Sequence[CellCount]) -> dict[str, Any]:
    """What a build looks like, as plain JSON values.

    Args:
        sample: Raw rows, drawn evenly from the examples in train, validation and test.
        state: The build's encoder.
        cells: What the build counted.
    """
    rows: dict[str, int] = {}
    labels: dict[str, list[int]] = {}
    for cell in cells:
        rows[cell.scenario] = rows.get(cell.scenario, 0) + cell.rows
        for place, task in enumerate(state.task_names):
            found = labels.setdefault(f"{task} in {cell.scenario}", [0, 0])
            found[0] += cell.positives[place]
            found[1] += cell.labels[place]
    encoded = arrow.encode(sample, state) if sample.num_rows else {}
    features: dict[str, Any] = {}
    for item in state.fields:
        values = _values(sample, item.name, state)
        found_here = features[item.name] = {"nulls": _nulls(sample, item.name, state), **_bins(values, None)}
        if item.kind != "number" and encoded:
            indices = np.concatenate([encoded[name] for name in item.columns])
            in_use = indices[indices >= 0]
            found_here["unknown"] = float((in_use == UNKNOWN).mean()) if len(in_use) else 0.0
    return {"rows": rows, "labels": labels, "features": features}


def measures(
    before: Mapping[str, Any], now: Mapping[str, Any], sample: pa.Table, state: EncoderState
) -> list[Measure]:
    """Compare a build's profile with that of the build before.

    Args:
        before: The earlier profile.
        now: This build's.
        sample: The rows that this build's profile was made of, to be put into the earlier one's bins.
        state: This build's encoder; its contract names the limits.
    """
    return list(_measures(before, now, sample, state))


def check(found: Sequence[Measure]) -> None:
    """Stop where a limit is passed.

    Raises:
        DriftError: Every measure beyond its limit.
    """
    beyond = [one for one in found if one.is_beyond]
    if beyond:
        lines = [
            f"drift.{one.kind}: {one.name} was {_shown(one.before, 'not there')} in the build before "
            f"and is {_shown(one.now, 'not there')}"
            for one in beyond
        ]
        lines.append("no training table was written; if this is meant, run again with --accept-drift")
        raise DriftError("\n".join(lines))


def to_rows(found: Sequence[Measure]) -> list[tuple[object, ...]]:
    """Measures as lines of a table."""
    return [
        (
            one.kind,
            one.name,
            _shown(one.before, "-"),
            _shown(one.now, "-"),
            "beyond its limit" if one.is_beyond else "",
        )
        for one in found
    ]


def drawn(examples: DataFrame, state: EncoderState, rows: int) -> pa.Table:
    """The rows of a profile: some 100,000 of so many, the same ones each time."""
    names = dict.fromkeys(stored_name(name) for name in state.raw_types)
    one_in = max(1, rows // SAMPLE_ROWS)
    sampled = examples.where(F.pmod(F.col("row_id"), F.lit(one_in)) == 0)
    sample: pa.Table = sampled.select(*(F.col(quoted(name)) for name in names)).toArrow()
    return sample


def store(spark: SparkSession, found: Sequence[Measure], path: stores.Place, examples_version: int) -> None:
    """Add what was found to the table of drift, one row for each measure.

    Args:
        spark: The session.
        found: The measures.
        path: Place of the table.
        examples_version: Version of the examples that the build was made of.
    """
    rows = [(examples_version, *astuple(one)) for one in found]
    delta.append(spark.createDataFrame(rows, _STORED).withColumn("at", F.current_timestamp()), path)


def stored(spark: SparkSession, path: stores.Place, examples_version: int) -> list[Measure]:
    """What was found of a build; none of the first one."""
    if not delta.exists(path):
        return []
    rows = delta.read(spark, path).where(F.col("examples_version") == examples_version).collect()
    return [Measure(row["kind"], row["name"], row["before"], row["now"], row["is_beyond"]) for row in rows]


def _measures(
    before: Mapping[str, Any], now: Mapping[str, Any], sample: pa.Table, state: EncoderState
) -> Iterator[Measure]:
    limits = state.contract.drift or Drift()
    for name in dict.fromkeys((*now["rows"], *before["rows"])):
        earlier, rows = before["rows"].get(name), float(now["rows"].get(name, 0))
        rows_before = None if earlier is None else float(earlier)
        yield Measure("rows", name, rows_before, rows, _is_far(earlier, rows, limits.rows))
    for name, (positives, labels) in now["labels"].items():
        was = before["labels"].get(name)
        earlier = was[0] / was[1] if was and was[1] else None
        if labels or earlier is not None:
            # A task that has lost all its labels has no share of them.
            share = positives / labels if labels else math.nan
            yield Measure("labels", name, earlier, share, _is_far(earlier, share, limits.labels))
    for name, feature in now["features"].items():
        was = before["features"].get(name, {})
        for kind, limit in (("nulls", limits.nulls), ("unknown", limits.unknown)):
            if kind in feature:
                earlier = was.get(kind)
                is_beyond = limit is not None and earlier is not None and abs(feature[kind] - earlier) > limit
                yield Measure(kind, name, earlier, feature[kind], is_beyond)
        if was.get("kind") == feature["kind"]:
            counts = _bins(_values(sample, name, state), was["edges"])["counts"]
            index = stability(np.array(was["counts"]), np.array(counts))
            yield Measure("psi", name, 0.0, index, limits.psi is not None and index > limits.psi)


def stability(before: Counts, now: Counts) -> float:
    """Population stability index of two counts of the same bins, less what equal populations would show by chance.

    ``sum((q - p) ln(q / p))``; of samples of n and m rows from one population it is ``(bins - 1) (1/n + 1/m)`` in the
    mean, which says nothing of drift. Half a row is added to each bin, so that empty ones are no infinity.
    """
    rows = before.sum(), now.sum()
    if min(rows) == 0:
        return 0.0 if max(rows) == 0 else math.inf
    p = (before + 0.5) / (rows[0] + 0.5 * len(before))
    q = (now + 0.5) / (rows[1] + 0.5 * len(now))
    bins = int(((before > 0) | (now > 0)).sum())
    index = float(((q - p) * np.log(q / p)).sum())
    return max(0.0, index - float((bins - 1) * (1 / rows[0] + 1 / rows[1])))


def _bins(values: pa.Array, edges: Sequence[float] | None) -> dict[str, Any]:
    """Counts by bin: of ids and texts by hash, of numbers between edges, which are made where none are given."""
    if pa.types.is_floating(values.type):
        numbers = values.drop_null().to_numpy(zero_copy_only=False)
        numbers = numbers[np.isfinite(numbers)]
        if edges is None:
            edges = np.unique(np.quantile(numbers, _DECILES)).tolist() if len(numbers) else []
        places = np.searchsorted(np.asarray(edges), numbers, side="right")
        return {"kind": "number", "edges": edges, "counts": _counted(places, len(edges) + 1)}
    distinct = values.drop_null().dictionary_encode()
    hashes = [zlib.crc32(str(key).encode()) % HASH_BINS for key in distinct.dictionary.to_pylist()]
    places = np.array(hashes, np.int64)[distinct.indices.to_numpy(zero_copy_only=False)]
    return {"kind": "id", "edges": None, "counts": _counted(places, HASH_BINS)}


def _counted(places: Counts, bins: int) -> list[int]:
    counts: list[int] = np.bincount(places, minlength=bins).tolist()
    return counts


def _shown(value: float | None, nothing: str) -> str:
    return nothing if value is None or math.isnan(value) else f"{value:.4g}"


def _is_far(before: float | None, now: float, limit: float | None) -> bool:
    if limit is None or before is None or before == now:
        return False
    return not (min(before, now) > 0 and max(before / now, now / before) <= limit)


def _values(sample: pa.Table, name: str, state: EncoderState) -> pa.Array:
    """A feature's single values: numbers as doubles, the parts of lists and texts of several each by itself."""
    operation = state.operations[name]
    values = _column(sample, operation.column)
    if isinstance(operation, Slots):
        if operation.separator is not None:
            values = pc.split_pattern(values, pattern=operation.separator)
        values, operation = values.flatten(), operation.each
    if isinstance(operation, Bucket | Standardise):
        return values.cast(pa.float64(), safe=False)
    return values


def _nulls(sample: pa.Table, name: str, state: EncoderState) -> float:
    values = _column(sample, state.operations[name].column)
    return float(values.null_count / len(values)) if len(values) else 0.0


def _column(sample: pa.Table, name: str) -> pa.Array:
    column = sample.column(stored_name(name))
    values = column.combine_chunks() if column.num_chunks else pa.array([], column.type)
    return values.cast(pa.string()) if pa.types.is_decimal(values.type) else values
