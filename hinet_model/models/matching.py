"""Equal sizes: the widths at which one model has as many dense parameters as another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foundation.settings import ConfigError

TOLERANCE = 0.02
_LARGEST = 64.0


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
