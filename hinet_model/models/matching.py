"""Equal sizes: the widths at which one model has as many dense parameters as another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foundation.settings import ConfigError, Settings, validate
from hinet_model.models.hinet import HiNetSettings
from hinet_model.models.settings import ModelSettings

TOLERANCE = 0.02
_LARGEST = 64.0

_OWN_AFFAIR = {"name", "joint", "match_parameters", "ctcvr", "ctr_task", "ctcvr_task", "unknown_scenario"}
"""Keys of a model that say nothing of the size of a HiNet beside it."""


class _Yardstick(Settings):
    match_parameters: HiNetSettings


def yardstick(settings: ModelSettings) -> HiNetSettings:
    """The HiNet that a model is made as large as, by its `match_parameters`.

    What that does not say is as in the model's own section, where it has the key and sets it to something else than
    the model's default; else it is HiNet's default.

    Raises:
        ConfigError: `match_parameters` says what HiNet does not know.
    """
    shared = {
        key: getattr(settings, key)
        for key, field in type(settings).model_fields.items()
        if key in HiNetSettings.model_fields
        and key not in _OWN_AFFAIR
        and getattr(settings, key) != field.get_default()
    }
    given = settings.match_parameters if isinstance(settings.match_parameters, dict) else {}
    section = {"match_parameters": {**shared, **given}}
    return validate(_Yardstick, section, "match_parameters").match_parameters


def matching_widths(widths: Sequence[int], wanted: int, count: Callable[[list[int]], int]) -> list[int]:
    """Scale widths until a model has as many parameters as wanted.

    All widths are scaled by one factor; the first and then the last are fine-tuned one by one.

    Args:
        widths: What to scale.
        wanted: Dense parameters to come close to.
        count: Dense parameters at given widths; grows with each of them.

    Raises:
        ConfigError: No widths come within 2 %.
    """

    def scaled(factor: float) -> list[int]:
        return [max(1, round(width * factor)) for width in widths]

    low, high = 0.0, _LARGEST
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if count(scaled(middle)) < wanted else (low, middle)
    best = min((scaled(low), scaled(high)), key=lambda found: abs(count(found) - wanted))
    for place in (0, len(widths) - 1):
        best = _tuned(best, place, wanted, count)
    off = abs(count(best) - wanted) / wanted
    if off > TOLERANCE:
        raise ConfigError(
            [
                f"model.match_parameters: {count(best):,} dense parameters at best, {off:.0%} off the {wanted:,} of "
                f"HiNet (expert_dims {best}); expected within {TOLERANCE:.0%}: change experts or tower_dims"
            ]
        )
    return best


def _tuned(widths: list[int], place: int, wanted: int, count: Callable[[list[int]], int]) -> list[int]:
    """Move one width, a step at a time, as long as that comes closer."""
    step = 1 if count(widths) < wanted else -1
    while True:
        moved = list(widths)
        moved[place] += step
        if moved[place] < 1 or abs(count(moved) - wanted) >= abs(count(widths) - wanted):
            return widths
        widths = moved
