"""Counts per scenario and task, from what a configuration says: one for all, or one per name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from foundation.settings import suggestion


def counts_of(
    where: str, value: int | Mapping[str, int], names: Sequence[str], faults: list[str]
) -> tuple[int, ...]:
    """One count per name, from one for all or a complete mapping; what is wrong is added to ``faults``."""
    if isinstance(value, int):
        return (value,) * len(names)
    faults.extend(_name_faults(where, value, names))
    return tuple(value.get(name, 1) for name in names)


def specific_of(
    where: str,
    value: int | Mapping[str, int | dict[str, int]],
    scenarios: Sequence[str],
    tasks: Sequence[str],
    faults: list[str],
) -> tuple[tuple[int, ...], ...]:
    """A count per scenario and task, from one count, a map of tasks, or scenarios of those."""
    if isinstance(value, int):
        return ((value,) * len(tasks),) * len(scenarios)
    if set(value) & set(scenarios) and not set(value) <= set(tasks):
        faults.extend(_name_faults(where, value, scenarios))
        return tuple(counts_of(f"{where}.{name}", value.get(name, 1), tasks, faults) for name in scenarios)
    nested = [
        f"{where}.{name}: a mapping; expected a count"
        for name, count in value.items()
        if isinstance(count, dict)
    ]
    if nested and set(value) <= set(tasks):
        faults.extend(nested)
        return ()
    if nested:
        faults.extend(_name_faults(where, value, scenarios))
        return ()
    flat = {name: count for name, count in value.items() if isinstance(count, int)}
    return (counts_of(where, flat, tasks, faults),) * len(scenarios)


def one_count(where: str, value: int | Mapping[str, int], faults: list[str]) -> int:
    """A count that is one for all; a mapping is added to ``faults``."""
    if isinstance(value, int):
        return value
    faults.append(f"{where}: a mapping; expected one count, since these experts are shared by all scenarios")
    return 1


def unknown_name(where: str, name: str, names: Sequence[str]) -> str:
    """What to say of a name that is not among those there are."""
    return f"{where}: unknown name '{name}'; expected one of {', '.join(names)}{suggestion(name, names)}"


def _name_faults(where: str, value: Mapping[str, object], names: Sequence[str]) -> list[str]:
    unknown = [unknown_name(f"{where}.{name}", name, names) for name in value if name not in names]
    missing = [f"{where}: no count for '{name}'" for name in names if name not in value]
    return unknown + missing
