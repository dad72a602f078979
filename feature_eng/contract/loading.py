"""Reading a contract, with every fault named at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from feature_eng.contract.columns import Columns, Scenario
from feature_eng.contract.drift import Drift
from feature_eng.contract.encoding import Encoding
from feature_eng.contract.faults import ContractError, cross_faults
from feature_eng.contract.features import Feature
from feature_eng.contract.sampling import Sampling
from feature_eng.contract.schema import Contract
from feature_eng.contract.source import Source
from feature_eng.contract.split import Split
from feature_eng.contract.tasks import Task
from foundation.settings import ConfigError, faults_of, read_yaml, with_overrides


def load_contract(path: str | Path, overrides: Sequence[str] = ()) -> Contract:
    """Read and check a contract.

    Args:
        path: YAML file, see ``conf/contracts/movielens.yml``.
        overrides: ``"split.method=random"``, ``"behaviour=false"`` and the like.

    Raises:
        ContractError: Every fault, one line each.
    """
    try:
        mapping, faults = with_overrides(read_yaml(path), overrides)
    except ConfigError as error:
        raise ContractError(error.faults) from None
    try:
        contract = to_contract(mapping, str(path))
    except ContractError as error:
        raise ContractError(faults + error.faults) from None
    if faults:
        raise ContractError(faults)
    return contract


def to_contract(mapping: Mapping[str, Any], where: str = "contract") -> Contract:
    """Check a mapping of plain values as a contract.

    Raises:
        ContractError: Every fault, one line each, also those between parts of which some are faulty.
    """
    try:
        return Contract.model_validate(dict(mapping))
    except ValidationError as error:
        faults = faults_of(Contract, mapping, error, where)
        faults += [fault for fault in cross_faults(_readable_parts(mapping), mapping) if fault not in faults]
        raise ContractError(faults) from None


def _readable_parts(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a faulty contract that can be read, so that faults between them are found too."""
    sections: dict[str, Any] = {
        "source": Source, "columns": Columns, "scenario": Scenario, "split": Split, "behaviour": bool,
        "weight": str, "sampling": Sampling, "drift": Drift, "encoder": Encoding,
        "tasks": Task, "features": Annotated[Feature, Field(discriminator="kind")],
    }  # fmt: skip
    parts: dict[str, Any] = {}
    for name, schema in sections.items():
        given = mapping.get(name)
        adapter: TypeAdapter[Any] = TypeAdapter(schema)
        if name in ("tasks", "features"):
            entries = given.items() if isinstance(given, Mapping) else ()
            parts[name] = {
                key: part for key, value in entries if (part := _readable(adapter, value)) is not None
            }
        elif (part := _readable(adapter, given)) is not None:
            parts[name] = part
    return parts


def _readable(adapter: TypeAdapter[Any], value: Any) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError:
        return None
