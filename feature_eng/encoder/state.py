"""Encoder state: what was learned from the training rows, as data.

The operations are a closed set, so that Spark (building tables) and Arrow (serving) can
be held to equal results: integers exactly, floats computed in double and cast last. What
is learned (vocabularies, boundaries, means) stands here; what is configured stands in the
contract, which the state carries along. Reading a state needs numpy and pyarrow alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_eng.contract import Contract, History, to_contract
from foundation import stores
from foundation.settings import UserError

FORMAT = 1
"""Of a state, and of what values become by it: raised, encoders and models of before are refused."""
STATE_FILE = "encoder.json"
VOCABULARY_FOLDER = "vocabularies"
UNKNOWN = 0
PADDING = -1
NO_LABEL = -1.0
"""What stands for a label that is not there: the training table holds no nulls."""

_AT_ONCE = 1 << 16
"""Texts of a vocabulary that are Python's strings at a time."""

KeyType = Literal["int64", "string"]
ARROW_TYPES: Mapping[str, pa.DataType] = {
    "int64": pa.int64(),
    "string": pa.string(),
    "double": pa.float64(),
    # Whole numbers that may exceed 64 bits, as their decimal text.
    "decimal": pa.string(),
    "list<int64>": pa.list_(pa.int64()),
    "list<string>": pa.list_(pa.string()),
    "list<decimal>": pa.list_(pa.string()),
}


class EncoderError(UserError):
    """An encoder that cannot be read, or values that it cannot encode."""


@dataclass(frozen=True)
class Lookup:
    """Value -> 1 + its place in a vocabulary; 0 for null and for what is not in it.

    Args:
        column: Raw column.
        vocabulary: Name of the vocabulary.
    """

    column: str
    vocabulary: str
    op: Literal["lookup"] = "lookup"


@dataclass(frozen=True)
class Hash:
    """Value -> 1 + CRC-32 of its UTF-8 text modulo ``buckets``; 0 for null.

    Integers are hashed as their decimal text.
    """

    column: str
    buckets: int
    op: Literal["hash"] = "hash"


@dataclass(frozen=True)
class Bucket:
    """Number -> 1 + how many boundaries it reaches; 0 for null, NaN and infinities."""

    column: str
    boundaries: tuple[float, ...]
    op: Literal["bucket"] = "bucket"


@dataclass(frozen=True)
class Standardise:
    """Number -> ``(f(x) - mean) / std`` with ``f`` the transform.

    0.0, the mean, for null, NaN and infinities, and where the outcome is no finite float32.
    """

    column: str
    transform: Literal["none", "log1p"]
    mean: float
    std: float
    op: Literal["standardise"] = "standardise"


@dataclass(frozen=True)
class Slots:
    """List of values, or text of several, -> ``slots`` indices, the first values kept.

    Empty parts of a text and nulls in a list are no values. Slots left over hold -1.

    Args:
        column: Raw column.
        slots: How many indices.
        separator: What parts a text; ``None`` when the column holds lists.
        each: What is done to each value.
    """

    column: str
    slots: int
    separator: str | None
    each: Lookup | Hash | Bucket
    op: Literal["slots"] = "slots"


Operation = Lookup | Hash | Bucket | Standardise | Slots


@dataclass(frozen=True)
class EncodedField:
    """One model input.

    Args:
        name: Feature name.
        kind: ``index`` is one slot, ``indices`` several with padding -1, ``number`` a float.
        slots: Number of index slots; 1 for ``index`` and ``number``.
        size: Number of distinct indices, 0 = unknown among them; 0 for ``number``.
        columns: Its columns in the training table.
        shares: Field whose vocabulary, and so whose embedding, it shares.
        beside: Field of whose slots it tells more: slot ``k`` of both is of one value, and padded in both.
    """

    name: str
    kind: Literal["index", "indices", "number"]
    slots: int
    size: int
    columns: tuple[str, ...]
    shares: str | None
    beside: str | None = None


@dataclass(frozen=True)
class EncoderState:
    """Everything that turns raw columns into model inputs.

    Args:
        contract: The data contract.
        operations: Feature name -> what is done to its column, in the contract's order.
        vocabularies: Name -> distinct values in the order of their indices: ascending (text by its UTF-8 bytes) where
            fitted anew, behind the earlier ones where grown; null where an index is free.
        raw_types: Raw column -> type name, a key of ``ARROW_TYPES``.
        ages: Of vocabularies that grow: how many builds in a row each value was not seen in.
    """

    contract: Contract
    operations: Mapping[str, Operation]
    vocabularies: Mapping[str, pa.Array] = field(repr=False)
    raw_types: Mapping[str, str]
    ages: Mapping[str, pa.Array] = field(default_factory=dict, repr=False)

    @property
    def scenario_names(self) -> tuple[str, ...]:
        """Scenario names; a name's place is its scenario_index."""
        return self.contract.scenario_names

    @property
    def task_names(self) -> tuple[str, ...]:
        """Task names in label and head order."""
        return self.contract.task_names

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the contract."""
        return self.contract.fingerprint

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all that is configured and learned."""
        return hashlib.sha256(json.dumps(self._content()).encode()).hexdigest()

    @cached_property
    def fields(self) -> tuple[EncodedField, ...]:
        """The model's inputs, in the contract's order."""
        return tuple(self._field(name, operation) for name, operation in self.operations.items())

    @cached_property
    def look_ups(self) -> Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[np.int32]]]:
        """Vocabulary -> its values in ascending order, and the index of each.

        Text sorts by code point, which is UTF-8's order too.
        """
        return {name: _look_up(keys) for name, keys in self.vocabularies.items()}

    def size_of(self, operation: Lookup | Hash | Bucket) -> int:
        """Number of distinct indices an operation gives, 0 among them."""
        if isinstance(operation, Bucket):
            return len(operation.boundaries) + 2
        if isinstance(operation, Hash):
            return operation.buckets + 1
        return len(self.vocabularies[operation.vocabulary]) + 1

    def model_schema(self) -> dict[str, Any]:
        """What a model must know to be built, as plain JSON values."""
        schema: dict[str, Any] = {
            "fields": [_plain(item) for item in self.fields],
            "scenario_names": list(self.scenario_names),
            "task_names": list(self.task_names),
        }
        if self.contract.has_row_weights:
            schema["row_weights"] = True
        if self.contract.shifted_task is not None:
            schema["shift"] = {
                "task": self.task_names.index(self.contract.shifted_task),
                "kept_negatives": list(self.contract.kept_negatives),
            }
        return schema

    def to_json(self) -> str:
        """The state without its vocabularies' values, which their digests stand for."""
        return json.dumps({**self._content(), "digest": self.digest}, indent=1)

    def save(self, folder: stores.Place) -> None:
        """Write the state: one Parquet file per vocabulary, and ``encoder.json``.

        ``encoder.json`` comes last: without it there is no state. A folder that holds this very state is left
        alone; what a save that was cut left of it is written again.

        Args:
            folder: A place of `foundation.stores`.

        Raises:
            EncoderError: If the folder holds something else.
        """
        if stores.exists(stores.join(folder, STATE_FILE)):
            if EncoderState.load(folder).digest != self.digest:
                raise EncoderError(f"{folder}: holds another encoder; expected digest {self.digest}")
            return
        foreign = [
            name for name in stores.names(folder) if name != VOCABULARY_FOLDER and not name.startswith(".")
        ]
        if foreign:
            raise EncoderError(f"{folder}: holds {', '.join(foreign)}; expected a new or empty folder")
        for name, keys in self.vocabularies.items():
            content = pa.BufferOutputStream()
            columns = {"key": keys, **({"age": self.ages[name]} if name in self.ages else {})}
            pq.write_table(pa.table(columns), content)
            stores.write_bytes(_keys_place(folder, name), content.getvalue().to_pybytes())
        stores.write_text(stores.join(folder, STATE_FILE), self.to_json())

    @classmethod
    def load(cls, folder: stores.Place) -> EncoderState:
        """Read what :meth:`save` wrote, and check every digest.

        Raises:
            EncoderError: If something is missing, damaged or of another format.
        """
        try:
            content: dict[str, Any] = json.loads(stores.read_text(stores.join(folder, STATE_FILE)))
            if content.get("format") != FORMAT:
                raise EncoderError(
                    f"{folder}: encoder of format {content.get('format')}; expected {FORMAT}, build it again"
                )
            tables = {name: _read_keys(_keys_place(folder, name)) for name in content["vocabularies"]}
            state = cls(
                contract=to_contract(content["contract"], stores.join(folder, STATE_FILE)),
                operations={name: _operation(given) for name, given in content["operations"].items()},
                vocabularies={name: columns["key"] for name, columns in tables.items()},
                raw_types=content["raw_types"],
                ages={name: columns["age"] for name, columns in tables.items() if "age" in columns},
            )
        except (OSError, KeyError, TypeError, json.JSONDecodeError, pa.ArrowInvalid) as error:
            raise EncoderError(f"{folder}: not a whole encoder: {error}") from None
        if state.digest != content["digest"]:
            raise EncoderError(
                f"{folder}: damaged, its content has digest {state.digest} and claims {content['digest']}"
            )
        return state

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "contract": self.contract.model_dump(mode="json", by_alias=True),
            "operations": {name: asdict(operation) for name, operation in self.operations.items()},
            "vocabularies": {name: keys_digest(keys) for name, keys in self.vocabularies.items()},
            "raw_types": dict(self.raw_types),
            **({"ages": {name: keys_digest(age) for name, age in self.ages.items()}} if self.ages else {}),
        }

    def _field(self, name: str, operation: Operation) -> EncodedField:
        if isinstance(operation, Standardise):
            return EncodedField(name, "number", 1, 0, (name,), None)
        if isinstance(operation, Bucket):
            return EncodedField(name, "index", 1, self.size_of(operation), (name,), None)
        if isinstance(operation, Slots):
            feature = self.contract.features.get(name)
            shares = self.contract.shared_feature(feature) if isinstance(feature, History) else None
            columns = tuple(f"{name}__{place}" for place in range(operation.slots))
            size, beside = self.size_of(operation.each), self.contract.slots_told.get(name)
            return EncodedField(name, "indices", operation.slots, size, columns, shares, beside)
        return EncodedField(name, "index", 1, self.size_of(operation), (name,), None)


def _plain(item: EncodedField) -> dict[str, Any]:
    plain = {**asdict(item), "columns": list(item.columns)}
    if item.beside is None:
        del plain["beside"]
    return plain


def keys_digest(keys: pa.Array) -> str:
    """SHA-256 (hex) of a vocabulary's type and values, whatever the file format's version."""
    digest = hashlib.sha256(str(keys.type).encode())
    if keys.null_count:
        digest.update(pc.indices_nonzero(keys.is_null()).to_numpy().tobytes())
        keys = keys.drop_null()
    if pa.types.is_integer(keys.type):
        digest.update(keys.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    else:
        for start in range(0, len(keys), _AT_ONCE):
            for text in (key.encode() for key in keys.slice(start, _AT_ONCE).to_pylist()):
                digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def _keys_place(folder: stores.Place, vocabulary: str) -> str:
    return stores.join(folder, VOCABULARY_FOLDER, f"{vocabulary}.parquet")


def _look_up(keys: pa.Array) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
    places = pc.indices_nonzero(keys.is_valid()).to_numpy()
    values = keys.drop_null().to_numpy(zero_copy_only=False)
    order = np.argsort(values, kind="stable")
    return values[order], (places[order] + 1).astype(np.int32)


def _read_keys(place: str) -> dict[str, pa.Array]:
    with stores.open_input(place) as stream:
        table = pq.read_table(stream)
    columns = {name: table.column(name) for name in table.column_names}
    return {
        name: column.combine_chunks() if column.num_chunks else pa.array([], column.type)
        for name, column in columns.items()
    }


def _operation(given: Mapping[str, Any]) -> Operation:
    kinds: dict[str, Any] = {
        "lookup": Lookup, "hash": Hash, "bucket": Bucket, "standardise": Standardise, "slots": Slots,
    }  # fmt: skip
    values = dict(given)
    if values["op"] == "slots":
        values["each"] = _operation(values["each"])
    if values["op"] == "bucket":
        values["boundaries"] = tuple(np.asarray(values["boundaries"], dtype=np.float64).tolist())
    operation: Operation = kinds[values["op"]](**values)
    return operation
