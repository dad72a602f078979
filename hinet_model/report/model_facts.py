"""Model facts: what can be seen inside a model, on a bounded sample of rows: attention, gates, experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hinet_model.models.build import num_parameters
from hinet_model.models.gate_usage import GateUsage, gate_usage
from hinet_model.serving.scorer import Scorer

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

ROWS_A_SCENARIO = 500
_SHARES = 1_000_000


@dataclass(frozen=True)
class ModelFacts:
    """What a model does inside.

    Attributes:
        scenarios: Names, in the order of the attention table.
        parameters: How many.
        attention: ``attention[i][m]``, how much scenario ``i`` listens to ``m``; ``None`` without a table.
        gates: What its gates made of the sample; empty without gates.
    """

    scenarios: Sequence[str]
    parameters: int
    attention: Sequence[Sequence[float]] | None
    gates: Sequence[GateUsage]


def model_facts(scorer: Scorer, rows: DataFrame, scenario_rows: Mapping[str, int]) -> ModelFacts:
    """Look into a model.

    Args:
        scorer: The model.
        rows: Examples, with the columns ``scenario`` and those of the contract's key.
        scenario_rows: Rows of each scenario among them, which say what share of each is looked at.
    """
    sample = sampled(rows, scorer.state.contract.stored_key, scenario_rows)
    with torch.inference_mode():
        table = scorer.model.scenario_attention()
    return ModelFacts(
        scenarios=scorer.scenario_names,
        parameters=num_parameters(scorer.model),
        attention=None if table is None else table.tolist(),
        gates=gate_usage(scorer.model, scorer.layout, scorer.encode(sample.toArrow())),
    )


def sampled(rows: DataFrame, key: Sequence[str], scenario_rows: Mapping[str, int]) -> DataFrame:
    """About `ROWS_A_SCENARIO` rows of each scenario, the same every time: by a hash of the row's key."""
    from pyspark.sql import functions as F

    hashed = F.pmod(F.xxhash64(*(F.col(f"`{name}`") for name in key)), F.lit(_SHARES))
    chosen = F.lit(False)
    for scenario, count in scenario_rows.items():
        share = int(min(1.0, ROWS_A_SCENARIO / max(count, 1)) * _SHARES)
        chosen = chosen | ((F.col("scenario") == scenario) & (hashed < share))
    return rows.where(chosen)
