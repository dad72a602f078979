"""The sections ``columns`` and ``scenario`` of a contract: columns that have a role."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from feature_eng.contract.values import to_number
from foundation.settings import Settings


class Columns(Settings):
    """Raw columns of the impression table that have a role.

    Args:
        key: Identifies one example; a repeated key is a reject.
        user: Whose behaviour history it is.
        item: What was shown.
        time: When; whole seconds since the epoch, or ISO text.
        position: The row's place in the raw file, which the user-disjoint split needs.
    """

    key: Annotated[tuple[str, ...], Field(min_length=1)]
    user: str
    item: str
    time: str | None = None
    position: str | None = None


class ScenarioValues(Settings):
    """Raw values that make one scenario: an inclusive range (``null`` = open end), or a list."""

    range: tuple[float | None, float | None] | None = None
    one_of: Annotated[tuple[int | float | str, ...], Field(min_length=1)] | None = Field(
        default=None, alias="in"
    )

    @model_validator(mode="after")
    def _exactly_one_form(self) -> ScenarioValues:
        if (self.range is None) == (self.one_of is None):
            raise ValueError("expected exactly one of 'range: [low, high]' and 'in: [values]'")
        if self.range is not None:
            low, high = self.range
            if low is not None and high is not None and low > high:
                raise ValueError(f"range [{low:g}, {high:g}] is empty; expected low <= high")
        return self

    def matches(self, value: object) -> bool:
        """Whether a raw value belongs to this scenario; numbers compare as numbers, text as text."""
        if value is None:
            return False
        number = to_number(value)
        if self.range is not None:
            low, high = self.range
            return number is not None and (low is None or number >= low) and (high is None or number <= high)
        return any(
            str(value) == wanted if isinstance(wanted, str) else number is not None and number == wanted
            for wanted in self.one_of or ()
        )


class Scenario(Settings):
    """The column that tells scenarios apart; the order of ``values`` is the order of scenario_index."""

    column: str
    values: Annotated[dict[str, ScenarioValues], Field(min_length=1)]
