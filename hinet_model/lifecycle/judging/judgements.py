"""Judgements: what is said of each cell, each scenario and all of them, in names and plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from hinet_model.lifecycle.judging.aggregation import Totals
from hinet_model.lifecycle.judging.curves import curves
from hinet_model.lifecycle.judging.measures import (
    METRICS,
    CellSums,
    Measure,
    bootstrapped,
    differences,
    mean_samples,
    measures,
)
from hinet_model.lifecycle.judging.sums import Shape

Kind = Literal["cell", "scenario", "overall", "slice"]
_LISTED = ("ndcg", "mrr")


@dataclass(frozen=True)
class Judgement:
    """What the rows of one cell say of each model, or the mean over several cells.

    Attributes:
        kind: ``cell``: rows of a scenario, by a task; ``slice``: rows with a column's value, over all scenarios, by a
            task; ``scenario``: mean over a scenario's tasks; ``overall``: mean over all cells. A mean is over the
            cells in which a metric is defined, all alike, so that no scenario is judged by its size.
        scenario: Name of the scenario, ``column=value`` of a slice, ``*`` overall.
        task: Name of the task; ``*`` in a mean.
        rows, positives: What it rests on; of a mean, summed over cells.
        users, lists: The same; of a mean, the most of any cell.
        training_rows: Rows that the challenger was trained on in this scenario; ``None`` where it is not known.
        measures: Model -> metric -> measure. A model that does not serve the cell is left out.
        differences: Metric -> challenger less champion, paired; empty without both.
        curves: Model -> ``roc``, ``reliability``, ``scores`` (`judging.curves`); cells only.
    """

    kind: Kind
    scenario: str
    task: str
    rows: int
    positives: int
    users: int
    lists: int
    training_rows: int | None
    measures: Mapping[str, Mapping[str, Measure]]
    differences: Mapping[str, Measure] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``<scenario>/<task>``, as in the metric names."""
        return f"{self.scenario}/{self.task}"

    def measure(self, model: str, metric: str) -> Measure:
        """A measure, undefined where the model does not serve the cell."""
        return self.measures.get(model, {}).get(metric, Measure(None, why="not served"))

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict, read back by :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Judgement:
        """Rebuild a judgement from :meth:`to_json`'s dict."""
        models = {
            model: {name: Measure(**one) for name, one in of_model.items()}
            for model, of_model in content["measures"].items()
        }
        compared = {name: Measure(**one) for name, one in content["differences"].items()}
        return cls(**{**content, "measures": models, "differences": compared})


@dataclass(frozen=True)
class Field:
    """Who is judged, on what.

    Args:
        models: Contestants by name, in the order of the scores.
        scenarios: Names in the order of their strata.
        tasks: Names in the order of the labels.
        slices: ``column=value`` of each further stratum, in order.
        served: Of each model the (scenario, task) pairs that it serves.
        training_rows: By scenario.
    """

    models: tuple[str, ...]
    scenarios: tuple[str, ...]
    tasks: tuple[str, ...]
    slices: tuple[str, ...]
    served: Mapping[str, frozenset[tuple[str, str]]]
    training_rows: Mapping[str, int]


def judge(totals: Totals, shape: Shape, field: Field, pair: tuple[str, str] | None) -> tuple[Judgement, ...]:
    """Judge every cell, slice and mean.

    Args:
        totals: Of all rows.
        shape: What was summed.
        field: Who is judged, on what.
        pair: Models to be compared, first less second; ``None`` compares nobody.
    """
    empty = CellSums.empty(shape)
    found: list[Judgement] = []
    cells: dict[tuple[str, str], CellSums] = {}
    for stratum, name in enumerate((*field.scenarios, *field.slices)):
        is_scenario = stratum < len(field.scenarios)
        for place, task in enumerate(field.tasks):
            number = stratum * len(field.tasks) + place
            sums = totals.cells.get(number, empty)
            if is_scenario:
                cells[name, task] = sums
            serving = [
                model for model in field.models
                if all((one, task) in field.served[model] for one in ([name] if is_scenario else field.scenarios))
            ]  # fmt: skip
            found.append(
                Judgement(
                    kind="cell" if is_scenario else "slice",
                    scenario=name,
                    task=task,
                    **{count: sums.count(shape, count) for count in ("rows", "positives", "users", "lists")},
                    training_rows=field.training_rows.get(name, 0) if is_scenario else None,
                    measures={model: measures(sums, shape, field.models.index(model)) for model in serving},
                    differences=_compared(sums, shape, field, serving, pair),
                    curves={
                        model: curves(sums, shape, c, totals.rankings.get((number, c)))
                        for c, model in enumerate(field.models)
                        if model in serving
                    },
                )
            )
    for name in field.scenarios:
        found.append(_mean("scenario", name, cells, shape, field, pair))
    found.append(_mean("overall", "*", cells, shape, field, pair))
    return tuple(found)


def _compared(
    sums: CellSums, shape: Shape, field: Field, serving: Sequence[str], pair: tuple[str, str] | None
) -> dict[str, Measure]:
    if pair is None or not set(pair) <= set(serving):
        return {}
    return differences(sums, shape, *(field.models.index(model) for model in pair))


def _mean(
    kind: Kind, name: str, cells: Mapping[tuple[str, str], CellSums], shape: Shape, field: Field,
    pair: tuple[str, str] | None,
) -> Judgement:  # fmt: skip
    """The mean over a scenario's cells, or over all; of a difference over those that both models serve."""
    chosen = {key: sums for key, sums in cells.items() if kind == "overall" or key[0] == name}
    metrics = [metric for metric in METRICS if shape.lists_at or metric not in _LISTED]

    def samples(c: int, model_names: Sequence[str]) -> Any:
        kept = [sums for key, sums in chosen.items() if all(key in field.served[one] for one in model_names)]
        return mean_samples(kept or [CellSums.empty(shape)], c)

    def named(values: Any, *, difference: bool = False) -> dict[str, Measure]:
        return {
            metric: _with_reason(bootstrapped(metric, values[METRICS.index(metric)], difference=difference))
            for metric in metrics
        }

    compared: dict[str, Measure] = {}
    if pair is not None:
        first, second = (samples(field.models.index(model), pair) for model in pair)
        compared = named(first - second, difference=True)
    counts = {
        count: [sums.count(shape, count) for sums in chosen.values()]
        for count in ("rows", "positives", "users", "lists")
    }
    scenarios = [name] if kind == "scenario" else list(field.scenarios)
    return Judgement(
        kind=kind,
        scenario=name,
        task="*",
        rows=sum(counts["rows"]),
        positives=sum(counts["positives"]),
        users=max(counts["users"]),
        lists=max(counts["lists"]),
        training_rows=sum(field.training_rows.get(scenario, 0) for scenario in scenarios),
        measures={model: named(samples(c, [model])) for c, model in enumerate(field.models)},
        differences=compared,
    )


def _with_reason(measure: Measure) -> Measure:
    return measure if measure.value is not None else Measure(None, why="not defined in any cell")
