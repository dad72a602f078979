"""Contest: registered models on the same labelled rows, from one scoring pass to judgements by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from foundation.settings import UserError, suggestion
from hinet_model.lifecycle.judging.aggregation import aggregate
from hinet_model.lifecycle.judging.counting import Columns
from hinet_model.lifecycle.judging.judgements import Field, Judgement, judge
from hinet_model.lifecycle.judging.measures import CONFIDENCE
from hinet_model.lifecycle.judging.sums import Shape
from hinet_model.serving.on_spark import (
    SCENARIO_INDEX,
    ModelShipment,
    score_side_by_side,
    side_by_side_column,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

MOST_SLICE_VALUES = 50


@dataclass(frozen=True)
class Roles:
    """Columns of the labelled rows, beside the labels ``label__<task>``.

    Args:
        user: Unit of the bootstrap and of the GAUC.
        weight: Weight of a row; ``None``: all weigh 1.
        listed: With the user, the list that a row stood in; ``None``: rows form no lists.
        slices: Columns whose values are judged too, each over all scenarios; a null is a value of its own.
    """

    user: str
    weight: str | None = None
    listed: str | None = None
    slices: tuple[str, ...] = ()

    @property
    def named(self) -> tuple[str, ...]:
        """All columns, each once."""
        names = (self.user, self.weight, self.listed, *self.slices)
        return tuple(dict.fromkeys(name for name in names if name is not None))


def label_columns(task_names: Sequence[str]) -> tuple[str, ...]:
    """``label__<task>`` of each task."""
    return tuple(f"label__{task}" for task in task_names)


def compare(
    rows: DataFrame,
    shipments: Mapping[str, ModelShipment],
    roles: Roles,
    training_rows: Mapping[str, int],
    shape: Shape,
    pair: tuple[str, str] | None,
) -> tuple[Judgement, ...]:
    """Score labelled raw rows with every model, in one pass, and judge what comes out.

    Args:
        rows: Raw columns of the models, labels, and the columns of ``roles``.
        shipments: The models by name; the first says what scenarios and tasks there are.
        roles: What the other columns are.
        training_rows: Rows that the first was trained on, by scenario.
        shape: Bins, steps, resamples and lists; contestants are counted here.
        pair: Models to be compared, the first less the second; ``None`` compares nobody.

    Raises:
        UserError: A slice or the weight names no column, or a slice one of too many values.
    """
    from pyspark.sql import functions as F

    first = next(iter(shipments.values()))
    labels = label_columns(first.task_names)
    _check_columns(rows, roles)
    if roles.weight is not None:
        rows = rows.where(F.col("`" + roles.weight.replace("`", "``") + "`") != 0)
    values = _slice_values(rows, roles.slices)
    scored = score_side_by_side(rows, list(shipments.values()), (*labels, *roles.named))
    strata = [SCENARIO_INDEX]
    start = len(first.scenario_names)
    for place, (name, found) in enumerate(values.items()):
        where = F.array_position(F.array(*map(F.lit, found)), _text(name)) - 1 + start
        # The position of a row of no listed value would be that of the slice before.
        scored = scored.withColumn(f"slice__{place}", F.when(where >= start, where))
        strata.append(f"slice__{place}")
        start += len(found)
    columns = Columns(
        strata=tuple(strata),
        labels=labels,
        scores=tuple(
            tuple(side_by_side_column(place, task) for place in range(len(shipments)))
            for task in first.task_names
        ),
        user=roles.user,
        weight=roles.weight,
        listed=roles.listed,
    )
    shape = replace(shape, contestants=len(shipments), lists_at=shape.lists_at if roles.listed else 0)
    field = Field(
        models=tuple(shipments),
        scenarios=first.scenario_names,
        tasks=first.task_names,
        slices=tuple(f"{name}={value}" for name, found in values.items() for value in found),
        served={
            name: frozenset((scenario, task) for scenario in one.scenario_names for task in one.task_names)
            for name, one in shipments.items()
        },
        training_rows=training_rows,
    )
    return judge(aggregate(scored, columns, shape), shape, field, pair)


def methods(shape: Shape) -> dict[str, object]:
    """How the figures of a judgement come about, for whoever reads them."""
    return {
        "confidence": CONFIDENCE,
        "auc": "DeLong (1988); logit scale; paired covariance for a difference",
        "other metrics, and means": f"Poisson bootstrap by user, {shape.replicates} resamples, normal",
        "ece": f"{shape.bins} bins of equal weight by the cell's own scores; its interval covers the binned figure",
        "means": "over the cells in which a metric is defined, all cells alike",
        "lists_at": shape.lists_at,
        "bins": shape.bins,
        "replicates": shape.replicates,
    }


def _text(name: str):  # type: ignore[no-untyped-def]
    from pyspark.sql import functions as F

    return F.coalesce(F.col("`" + name.replace("`", "``") + "`").cast("string"), F.lit("null"))


def _check_columns(rows: DataFrame, roles: Roles) -> None:
    """Refuse columns that a user named and the rows do not have."""
    named = [("slices", name) for name in roles.slices] + [("weight", roles.weight)]
    faults = [
        f"{role}: the rows have no column '{name}'{suggestion(name, rows.columns)}"
        for role, name in named
        if name is not None and name not in rows.columns
    ]
    if faults:
        raise UserError("\n".join(faults))


def _slice_values(rows: DataFrame, slices: Sequence[str]) -> dict[str, list[str]]:
    """The values of each slice, sorted."""
    values: dict[str, list[str]] = {}
    for name in slices:
        found = rows.select(_text(name).alias("value")).distinct().limit(MOST_SLICE_VALUES + 1).toArrow()
        values[name] = sorted(found["value"].to_pylist())
        if len(values[name]) > MOST_SLICE_VALUES:
            raise UserError(
                f"slices: column '{name}' has more than {MOST_SLICE_VALUES} values; expected one that parts the rows "
                "into few groups"
            )
    return values
