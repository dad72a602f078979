"""Re-encoding: which days of a training table are not what the encoder makes of the examples, or why none can stay.

A day stays as it is while its examples are those that it was made of and every value in them has the index that it had.
So a table of which only some days were written is, row for row, what encoding all examples anew would give.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from feature_eng import delta
from feature_eng.dates import ON_DATE, is_one_of, listed
from feature_eng.differences import differing
from feature_eng.encoder.entries import KEY, as_entries, entries_of, one_by_one
from feature_eng.encoder.state import EncoderError, EncoderState, Lookup, Slots
from feature_eng.snapshot import CONTRACT_FINGERPRINT, ENCODER_PATH, EXAMPLES_VERSION, LAYOUT, SnapshotError
from foundation import stores
from foundation.job import say


def days_to_encode(
    examples: DataFrame, state: EncoderState, root: str, examples_version: int, layout: str
) -> set[date] | None:
    """Days of the training table that have to be written; ``None`` for all, in a table that is made anew.

    Says in one line which of the two it is, and why.

    Args:
        examples: All that are in train, validation and test.
        state: The encoder.
        root: Folder of the tables.
        examples_version: Version of the examples.
        layout: How rows are laid out (`feature_eng.training_table.layout`).
    """
    if ON_DATE not in examples.columns:
        return None
    training = stores.join(root, "training")
    before = _before(training, state, layout)
    if isinstance(before, str):
        say(f"training  all days are encoded anew: {before}")
        return None
    record, previous = before
    table = stores.join(root, "examples")
    try:
        found = differing(table, int(record[EXAMPLES_VERSION]), examples_version)
    except SnapshotError:
        say("training  all days are encoded anew: the examples that it was made of can no longer be read")
        return None
    moved = moved_values(previous, state)
    holding = _holding(examples.where(~is_one_of(found)), state, moved)
    days = found | holding
    say(
        f"training  {len(days):,} days are encoded anew{listed(days)}; {len(found):,} by their examples, "
        f"{len(holding):,} by values whose index is new or free"
    )
    return days


def moved_values(before: EncoderState, now: EncoderState) -> dict[str, pa.Array]:
    """Of each vocabulary the values that do not have the index that they had; none of one that moved nothing."""
    found = {}
    for name, keys in now.vocabularies.items():
        earlier = before.vocabularies[name]
        rows = max(len(earlier), len(keys))
        earlier, keys = (
            pa.concat_arrays([one, pa.nulls(rows - len(one), one.type)]) for one in (earlier, keys)
        )
        # A null is a free index, and neither equal nor unequal to anything.
        stays = pc.fill_null(pc.equal(earlier, keys), False)
        moved = pc.invert(stays)
        values = pa.concat_arrays([earlier.filter(moved), keys.filter(moved)]).drop_null().unique()
        if len(values):
            found[name] = values
    return found


def _before(
    training: stores.Place, state: EncoderState, layout: str
) -> tuple[Mapping[str, str], EncoderState] | str:
    """Properties and encoder of a table whose days may stay; or why they may not."""
    if not delta.exists(training):
        return "there was no table"
    record = delta.properties(training)
    if delta.partition_columns(training) != ["split", ON_DATE] or EXAMPLES_VERSION not in record:
        return "it was not kept by date"
    if record.get(LAYOUT) != layout:
        return f"its layout was {record.get(LAYOUT)} and is {layout}"
    if record[CONTRACT_FINGERPRINT] != state.fingerprint:
        return "it was made by another contract"
    try:
        previous = EncoderState.load(record[ENCODER_PATH])
    except EncoderError as error:
        return str(error)
    if previous.raw_types != state.raw_types:
        return "columns are of other types than before"
    names = [name for name in state.operations if state.operations[name] != previous.operations.get(name)]
    if names or list(previous.operations) != list(state.operations):
        return f"the encoder was fitted anew, {', '.join(names)} among what it learned otherwise"
    return record, previous


def _holding(examples: DataFrame, state: EncoderState, moved: Mapping[str, pa.Array]) -> set[date]:
    """Days of examples that hold one of some values of vocabularies."""
    if not moved:
        return set()
    places = {name: place for place, name in enumerate(moved)}
    entries = []
    for operation in state.operations.values():
        each = operation.each if isinstance(operation, Slots) else operation
        if isinstance(operation, Slots | Lookup) and isinstance(each, Lookup) and each.vocabulary in moved:
            kind = state.raw_types[operation.column]
            entries.append(entries_of(operation, places[each.vocabulary], kind))
    asked = examples.sparkSession.createDataFrame(
        pa.concat_tables([as_entries(place, moved[name]) for name, place in places.items()])
    )
    held = one_by_one(examples, entries, ON_DATE)
    is_asked = [held[name].eqNullSafe(asked[name]) for name in KEY]
    found = held.join(F.broadcast(asked), is_asked, "left_semi").select(ON_DATE).distinct()
    return {row[0] for row in found.collect()}
