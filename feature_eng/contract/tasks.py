"""The section ``tasks`` of a contract: how labels come about."""

from __future__ import annotations

from pydantic import Field, model_validator

from feature_eng.contract.columns import Time, reading_of
from feature_eng.contract.section import Section
from feature_eng.contract.values import Seconds


class Task(Section):
    """How a label comes about: by a value of the row itself, or by a later row of another table.

    Args:
        column: Column of the impression; with exactly one of ``greater_than``, ``at_least``, ``equals``.
        table: Table in which a row with equal ``join_on`` columns makes the label 1.
        join_on: Columns by which impression and later row belong together.
        within: Attribution window after the impression, both ends included.
        time: The table's time column, or how to read it; read as the impression's when left out.
    """

    column: str | None = None
    greater_than: float | None = None
    at_least: float | None = None
    equals: bool | int | float | str | None = None
    table: str | None = None
    join_on: tuple[str, ...] = ()
    within: Seconds | None = None
    time_given: str | Time | None = Field(default=None, alias="time")

    @model_validator(mode="after")
    def _exactly_one_form(self) -> Task:
        rules = [rule for rule in (self.greater_than, self.at_least, self.equals) if rule is not None]
        if (self.column is None) == (self.table is None):
            raise ValueError("expected exactly one of 'column' and 'table'")
        if self.column is not None:
            if len(rules) != 1:
                raise ValueError("expected exactly one of 'greater_than', 'at_least', 'equals'")
            if self.join_on or self.within is not None or self.time_given is not None:
                raise ValueError("'join_on', 'within' and 'time' go with 'table', not with 'column'")
        else:
            if rules:
                raise ValueError("'greater_than', 'at_least', 'equals' go with 'column', not with 'table'")
            if not self.join_on or self.within is None:
                raise ValueError("a label from a table needs 'join_on' and 'within'")
        return self

    @property
    def is_delayed(self) -> bool:
        """Whether the label is known only some time after the impression."""
        return self.table is not None

    @property
    def time(self) -> str | None:
        """The table's time column, where one is named."""
        reading = self.time_reading
        return reading.column if reading else None

    @property
    def time_reading(self) -> Time | None:
        """How to read the table's time column, where one is named."""
        return reading_of(self.time_given)
