"""The data contract: what a raw log means, as data.

A contract names the tables, the scenario column and its values, the label rules, the features
and the split. A new data set is a new contract, not new code. Reading one needs no Spark.
"""

from feature_eng.contract.columns import Columns, Scenario, ScenarioValues, Time
from feature_eng.contract.drift import Drift
from feature_eng.contract.faults import ContractError
from feature_eng.contract.features import (
    AGES,
    KINDS,
    Behaviour,
    Bucketed,
    Categorical,
    Count,
    Feature,
    History,
    MultiValued,
    Numeric,
    Rate,
    Raw,
)
from feature_eng.contract.loading import load_contract, to_contract
from feature_eng.contract.names import RELATED_EVENTS, as_key, quoted, stored_name
from feature_eng.contract.sampling import Sampling
from feature_eng.contract.schema import Contract
from feature_eng.contract.six_scenarios import SixScenarios
from feature_eng.contract.source import Csv, FileColumn, Join, Source, Table
from feature_eng.contract.split import SPLITS, Split
from feature_eng.contract.tasks import Task
from feature_eng.contract.values import to_boolean, to_instant, to_number

__all__ = [
    "AGES",
    "KINDS",
    "RELATED_EVENTS",
    "SPLITS",
    "Behaviour",
    "Bucketed",
    "Categorical",
    "Columns",
    "Contract",
    "ContractError",
    "Count",
    "Csv",
    "Drift",
    "Feature",
    "FileColumn",
    "History",
    "Join",
    "MultiValued",
    "Numeric",
    "Rate",
    "Raw",
    "Sampling",
    "Scenario",
    "ScenarioValues",
    "SixScenarios",
    "Source",
    "Split",
    "Table",
    "Task",
    "Time",
    "as_key",
    "load_contract",
    "quoted",
    "stored_name",
    "to_boolean",
    "to_contract",
    "to_instant",
    "to_number",
]
