"""Faults between labels, sampling and split, which none of these sections can see alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from feature_eng.contract.features import Behaviour
from feature_eng.contract.sampling import Sampling
from feature_eng.contract.split import Split
from foundation.settings import suggestion


def label_faults(parts: Mapping[str, Any], task_names: list[str]) -> Iterator[str]:
    """Faults between parts that can be read; names are looked up where they are declared."""
    scenario = parts.get("scenario")
    scenario_names = list(scenario.values) if scenario else None
    for name, task in parts.get("tasks", {}).items():
        yield from _unknown(f"tasks.{name}.scenarios", "scenario", task.scenarios or (), scenario_names)
    sampling: Sampling | None = parts.get("sampling")
    if sampling is not None:
        yield from _unknown("sampling.by_scenario", "scenario", sampling.by_scenario, scenario_names)
        yield from _unknown("sampling.task", "task", [sampling.task] if sampling.task else [], task_names)
        if sampling.correction == "shift" and sampling.task is None and len(task_names) > 1:
            yield (
                "sampling.task: is missing; correction 'shift' needs the task whose label tells negatives, "
                f"one of {', '.join(task_names)}"
            )
    split: Split | None = parts.get("split")
    if split is None or split.allow_leakage or not parts.get("behaviour", True):
        return
    telling = [
        name
        for name, part in parts.get("features", {}).items()
        if isinstance(part, Behaviour) and _tells_of_other_splits(part, split)
    ]
    if telling:
        yield (
            f"split.method: '{split.method}' would show training rows what test rows did, by way of "
            f"{', '.join(telling)}; expected 'time' or 'dates', behaviour: false, or split.allow_leakage: true"
        )


def _tells_of_other_splits(feature: Behaviour, split: Split) -> bool:
    """Whether a training row's value is made of test rows: of the user's at a random split, of others' at any."""
    if split.method == "user_disjoint":
        return feature.by != "user"
    return split.method in ("random", "column")


def _unknown(where: str, what: str, given: Any, known: list[str] | None) -> Iterator[str]:
    for name in given:
        if known is not None and name not in known:
            hint = suggestion(name, known)
            yield f"{where}: no {what} is called {name!r}; expected one of {', '.join(known)}{hint}"
