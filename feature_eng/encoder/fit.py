"""Fitting the encoder: what it learns from the training rows, and from no other row."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from feature_eng.contract import (
    AGES,
    KINDS,
    Bucketed,
    Categorical,
    Contract,
    Count,
    History,
    MultiValued,
    Numeric,
    Rate,
    stored_name,
)
from feature_eng.encoder.entries import KEY, entries_of, is_number, one_by_one
from feature_eng.encoder.expressions import transformed
from feature_eng.encoder.state import (
    Bucket,
    EncoderError,
    EncoderState,
    Hash,
    Lookup,
    Operation,
    Slots,
    Standardise,
)
from feature_eng.events import column
from feature_eng.quantiles import quantiles

AGE_BOUNDARIES = tuple(2.0**power for power in range(1, 27))
"""Seconds between which ages of a history's slots lie: 2 to some 67 million, two years."""


_NO_SPREAD = 1.0
"""Divides numbers that do not differ."""


def fit(examples: DataFrame, contract: Contract, previous: EncoderState | None = None) -> EncoderState:
    """Learn vocabularies, boundaries, means and deviations from the rows of split ``train``.

    Args:
        examples: Raw feature columns, behaviour columns and ``split``. Read three times at most.
        contract: The data contract.
        previous: An encoder whose boundaries, means and deviations stay, where they are of the same numbers, and
            were learned of numbers that differ.

    Raises:
        EncoderError: A column has a type that its feature cannot take, or there are no training rows.
    """
    raw_types = _raw_types(examples.schema, contract)
    train = examples.where(F.col("split") == "train")
    vocabularies = _vocabularies(train, contract, raw_types) | _kinds(contract)
    kept = _kept(contract, previous) if previous is not None else {}
    statistics = _statistics(train, contract, kept)
    operations: dict[str, Operation] = {}
    for name, feature in contract.features.items():
        operations[name] = kept[name] if name in kept else _operation(name, contract, statistics, raw_types)
        if isinstance(feature, History):
            operations |= {column: _beside(column, feature.last) for column in feature.columns(name)[1:]}
    return EncoderState(contract, operations, vocabularies, raw_types)


def _kept(contract: Contract, previous: EncoderState) -> dict[str, Operation]:
    """What was learned of numbers, and is not learned anew."""
    found: dict[str, Operation] = {}
    for name, feature in contract.features.items():
        operation = previous.operations.get(name)
        if isinstance(operation, Bucket) and isinstance(feature, Bucketed):
            is_same = operation.column == feature.column and bool(operation.boundaries)
        elif isinstance(operation, Standardise) and _is_standardised(feature):
            is_same = (operation.column, operation.transform) == (_source(name, feature), _transform(feature))
            # What a column without numbers, or of one number, is given: no later one would have its scale.
            is_same &= operation.std != _NO_SPREAD
        else:
            continue
        if is_same:
            found[name] = operation
    return found


def _operation(
    name: str, contract: Contract, statistics: Mapping[str, Any], raw_types: Mapping[str, str]
) -> Operation:
    feature = contract.features[name]
    if isinstance(feature, Categorical | MultiValued):
        return _looked_up(name, feature, raw_types)
    if isinstance(feature, History):
        shared = contract.shared_feature(feature)
        shared_feature = contract.features[shared]
        assert isinstance(shared_feature, Categorical), "checked when the contract was read"
        return Slots(name, feature.last, None, _each(shared, shared_feature))
    if isinstance(feature, Bucketed):
        # Repeated quantiles, where many rows have one value, are one boundary.
        return Bucket(feature.column, tuple(sorted(set(statistics[f"quantiles__{name}"]))))
    mean, std = statistics[f"mean__{name}"], statistics[f"std__{name}"]
    return Standardise(
        _source(name, feature), _transform(feature), _rounded(mean or 0.0), _rounded(std or 0.0) or _NO_SPREAD
    )


def _looked_up(
    name: str, feature: Categorical | MultiValued, raw_types: Mapping[str, str]
) -> Lookup | Hash | Slots:
    if isinstance(feature, Categorical):
        return _each(name, feature)
    separator = feature.separator if raw_types[feature.column] == "string" else None
    return Slots(feature.column, feature.slots, separator, _each(name, feature))


def _beside(column: str, slots: int) -> Slots:
    """Ages in buckets that are each twice as long as the one before; kinds by the contract's tables."""
    each = Bucket(column, AGE_BOUNDARIES) if column.endswith(AGES) else Lookup(column, column)
    return Slots(column, slots, None, each)


def _each(name: str, feature: Categorical | MultiValued) -> Lookup | Hash:
    if feature.buckets is not None:
        return Hash(feature.column, feature.buckets)
    return Lookup(feature.column, name)


def _is_standardised(feature: object) -> bool:
    return isinstance(feature, Numeric | Count | Rate)


def _source(name: str, feature: object) -> str:
    """The column that a standardised feature is of."""
    return feature.column if isinstance(feature, Numeric) else name


def _transform(feature: object) -> Any:
    if isinstance(feature, Numeric):
        return feature.transform
    # Counts have long tails; rates do not.
    return "log1p" if isinstance(feature, Count) else "none"


def _rounded(value: float) -> float:
    # Spark adds up in whatever order partitions arrive, which changes the last bits. Without
    # them the same rows give the same state, and so the same digest.
    return float(f"{value:.10g}")


def _vocabularies(train: DataFrame, contract: Contract, raw_types: Mapping[str, str]) -> dict[str, pa.Array]:
    fitted = {
        name: feature
        for name, feature in contract.features.items()
        if isinstance(feature, Categorical | MultiValued) and feature.buckets is None
    }
    if not fitted:
        return {}
    # All vocabularies in one pass: (vocabulary, integer key or text key) -> how often.
    entries = [
        entries_of(_looked_up(name, feature, raw_types), place, raw_types[feature.column])
        for place, (name, feature) in enumerate(fitted.items())
    ]
    least = F.array(*[F.lit(feature.min_count) for feature in fitted.values()])
    counted = (
        one_by_one(train, entries)
        .where(F.col("number").isNotNull() | F.col("text").isNotNull())
        .groupBy(*KEY)
        .agg(F.count("*").alias("rows"))
        .where(F.col("rows") >= F.element_at(least, F.col("vocabulary") + 1))
        .drop("rows")
        .toArrow()
    )
    vocabularies = {}
    for place, (name, feature) in enumerate(fitted.items()):
        own = counted.filter(pc.equal(counted["vocabulary"], place))
        are_numbers = is_number(raw_types[feature.column])
        keys = own["number" if are_numbers else "text"].cast(pa.int64() if are_numbers else pa.string())
        vocabularies[name] = _whole(keys.take(pc.sort_indices(keys)) if len(keys) else keys)
    return vocabularies


def _kinds(contract: Contract) -> dict[str, pa.Array]:
    """Vocabularies of the tables that histories are of; the contract names them."""
    return {
        f"{name}{KINDS}": pa.array(sorted(feature.table or ()), pa.string())
        for name, feature in contract.features.items()
        if isinstance(feature, History) and feature.kinds
    }


def _whole(keys: pa.ChunkedArray) -> pa.Array:
    return keys.combine_chunks() if keys.num_chunks else pa.array([], keys.type)


def _statistics(train: DataFrame, contract: Contract, kept: Collection[str]) -> Mapping[str, Any]:
    wanted = [F.count("*").alias("rows")]
    parted: dict[str, tuple[Column, list[float]]] = {}
    for name, feature in contract.features.items():
        if name in kept:
            continue
        if isinstance(feature, Bucketed):
            shares = [place / feature.num_buckets for place in range(1, feature.num_buckets)]
            parted[f"quantiles__{name}"] = (transformed(column(feature.column), "none"), shares)
        elif _is_standardised(feature):
            number = transformed(column(_source(name, feature)), _transform(feature))
            wanted += [F.avg(number).alias(f"mean__{name}"), F.stddev_pop(number).alias(f"std__{name}")]
    statistics: dict[str, Any] = train.agg(*wanted).collect()[0].asDict()
    if statistics["rows"] == 0:
        raise EncoderError("there are no training rows to fit the encoder on; check the contract's split")
    return {**statistics, **quantiles(train, parted)}


def _raw_types(schema: T.StructType, contract: Contract) -> dict[str, str]:
    """Raw column -> type name, of every column that serving has to bring."""
    kinds: dict[str, str] = {}
    faults: list[str] = []
    scenario = contract.scenario.column
    kinds[scenario] = _kind_of(schema[stored_name(scenario)].dataType)
    for name, feature in contract.features.items():
        if isinstance(feature, History):
            kinds[name] = f"list<{_kind_of(schema[stored_name(contract.history_column(feature))].dataType)}>"
            for beside in feature.columns(name)[1:]:
                kinds[beside] = "list<int64>" if beside.endswith(AGES) else "list<string>"
            continue
        source = getattr(feature, "column", name)
        dtype = schema[stored_name(source)].dataType
        kind = _kind_of(dtype)
        if isinstance(feature, Categorical):
            expected: tuple[str, ...] = ("int64", "string", "decimal")
        elif isinstance(feature, MultiValued):
            expected = ("string", "list<int64>", "list<string>", "list<decimal>")
        else:
            expected = ("int64", "double")
        if kind not in expected:
            faults.append(
                f"features.{name}: column {source!r} is of type {dtype.simpleString()}; "
                f"a feature of kind {feature.kind} needs {' or '.join(expected)}"
            )
        kinds[source] = kind
    if faults:
        raise EncoderError("\n".join(faults))
    return kinds


def _kind_of(data_type: T.DataType) -> str:
    if isinstance(data_type, T.ByteType | T.ShortType | T.IntegerType | T.LongType):
        return "int64"
    if isinstance(data_type, T.FloatType | T.DoubleType | T.DecimalType):
        is_id = isinstance(data_type, T.DecimalType) and data_type.scale == 0
        return "decimal" if is_id else "double"
    if isinstance(data_type, T.ArrayType):
        return f"list<{_kind_of(data_type.elementType)}>"
    return "string" if isinstance(data_type, T.StringType) else data_type.simpleString()
