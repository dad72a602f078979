"""Growth: an encoder that goes on from the one before, so that an index means the same value in both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame

from feature_eng import delta
from feature_eng.contract import Contract
from feature_eng.encoder.fit import fit
from feature_eng.encoder.state import EncoderError, EncoderState, Lookup, Slots
from feature_eng.snapshot import DATA_VERSION, ENCODER_PATH
from foundation.job import say, say_table


def fit_or_grow(examples: DataFrame, contract: Contract, training: str, data_version: str) -> EncoderState:
    """An encoder that is fitted anew, or grown from that of the newest training table where the contract says so.

    Args:
        examples: As `fit` reads them.
        contract: The data contract.
        training: Place of the training table.
        data_version: Digest of all examples: a build that is run again makes no value older.

    Raises:
        EncoderError: There is none to go on from, though there is a table; or as `fit` has it.
    """
    if contract.encoder is None or contract.encoder.begins != "previous" or not delta.exists(training):
        return fit(examples, contract)
    record = delta.properties(training)
    try:
        previous = EncoderState.load(record[ENCODER_PATH])
    except EncoderError as error:
        raise EncoderError(
            f"encoder.from: there is nothing to go on from: {error}; to fit one anew, and then train anew: "
            "--set 'encoder={from: nothing}'"
        ) from None
    is_again = record.get(DATA_VERSION) == data_version
    found = grown(fit(examples, contract, previous), previous, is_again=is_again)
    sizes = [
        (name, len(previous.vocabularies.get(name, ())), len(keys))
        for name, keys in found.vocabularies.items()
    ]
    if sizes:
        say("encoder   grown from that of the newest training table")
        say_table(["vocabulary", "indices before", "now"], sizes)
    return found


def grown(fresh: EncoderState, previous: EncoderState, *, is_again: bool = False) -> EncoderState:
    """The previous encoder, with the values that are new.

    Every value keeps its index; what is new in the contract is as it was fitted. A new value takes an index that was
    freed, or one behind all others.

    Args:
        fresh: Fitted on this build's training rows alone, but for the numbers that `fit` keeps.
        previous: The encoder of the build before.
        is_again: Whether both builds are of the same rows, so that no value was unseen for longer.
    """
    forget_after = fresh.contract.encoder.forget_after if fresh.contract.encoder else None
    vocabularies, ages = {}, {}
    sources = {one.vocabulary: one.column for one in _lookups(fresh)}
    sources_before = {one.vocabulary: one.column for one in _lookups(previous)}
    for name, keys in fresh.vocabularies.items():
        before = previous.vocabularies.get(name)
        if before is None or before.type != keys.type or sources[name] != sources_before.get(name):
            before = pa.array([], keys.type)
        age = previous.ages.get(name)
        if age is None or len(age) != len(before):
            age = pa.array(np.zeros(len(before), np.int32))
        vocabularies[name], ages[name] = _grown(keys, before, age, forget_after, 0 if is_again else 1)
    return replace(fresh, vocabularies=vocabularies, ages=ages)


def _grown(
    fresh: pa.Array, before: pa.Array, age: pa.Array, forget_after: int | None, builds: int
) -> tuple[pa.Array, pa.Array]:
    """Keys in the order of their indices, null where one is free; and how many builds each was not seen."""
    is_seen = pc.is_in(before, value_set=fresh)
    ages = np.where(is_seen.to_numpy(zero_copy_only=False), 0, age.to_numpy(zero_copy_only=False) + builds)
    if forget_after is not None:
        before = pc.if_else(pa.array(ages < forget_after), before, pa.scalar(None, before.type))
    free = np.flatnonzero(before.is_null().to_numpy(zero_copy_only=False))
    new = fresh.filter(pc.invert(pc.is_in(fresh, value_set=before.drop_null())))
    taken = free[: len(new)]
    mask = np.zeros(len(before), bool)
    mask[taken] = True
    if len(taken):
        before = pc.replace_with_mask(before, pa.array(mask), new[: len(taken)])
    ages[taken] = 0
    behind = new[len(taken) :]
    keys = pa.concat_arrays([before, behind])
    return keys, pa.array(np.append(ages, np.zeros(len(behind), np.int64)).astype(np.int32))


def _lookups(state: EncoderState) -> list[Lookup]:
    each = (one.each if isinstance(one, Slots) else one for one in state.operations.values())
    # Of a vocabulary that a history shares its owner comes first or last, with the same column.
    return [one for one in each if isinstance(one, Lookup)]
