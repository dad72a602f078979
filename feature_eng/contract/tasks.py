"""The section ``tasks`` of a contract: how labels come about, and when they are known."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from feature_eng.contract.columns import Time, Timed
from feature_eng.contract.section import Section
from feature_eng.contract.values import Seconds, as_seconds


def _column_or_seconds(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ValueError(f"{value!r} is neither a column nor a length of time such as '30m'")
    seconds = as_seconds(value)
    if isinstance(seconds, int) and seconds <= 0:
        raise ValueError(f"{value!r} is not after the row's time; expected more than 0 seconds")
    return value if seconds is None else seconds


class Task(Timed, Section):
    """How a label comes about: by a value of the row itself, or by later rows of another table.

    A label is 1, 0, or not there: the loss and the metrics of its task then pass over the row.

    Args:
        column: Column of the impression; with exactly one of ``greater_than``, ``at_least``, ``equals``.
        null_is: What a null in ``column`` means: label 0, a row to reject, or no label (``missing``).
        known_after: How long after the row's time the label of the row itself is known: a length of time,
            or the column that holds it in seconds (a dwell time is known when it has ended).
        table: Table in which a row with equal ``join_on`` columns makes the label 1.
        join_on: Columns by which impression and later row belong together.
        within: Attribution window after the impression, both ends included.
        time: The table's time column, or how to read it; read as the impression's when left out.
        sum: Number column of the table whose sum over the window is compared, by ``greater_than`` or
            ``at_least``; where left out, one row is enough.
        attribution: Which impressions a later row counts for, of those in whose windows it falls: every
            one, the first alone or the last alone.
        scenarios: The only scenarios in which the task has labels; all when left out.
    """

    later: ClassVar[frozenset[str]] = frozenset({"null_is", "known_after", "sum", "attribution", "scenarios"})

    column: str | None = None
    greater_than: float | None = None
    at_least: float | None = None
    equals: bool | int | float | str | None = None
    table: str | None = None
    join_on: tuple[str, ...] = ()
    within: Seconds | None = None
    time_given: str | Time | None = Field(default=None, alias="time")
    null_is: Literal[0, "reject", "missing"] = "reject"
    known_after: Annotated[int | str | None, BeforeValidator(_column_or_seconds)] = None
    sum: str | None = None
    attribution: Literal["every", "first", "last"] = "every"
    scenarios: tuple[str, ...] | None = None

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
            if self.sum is not None or self.attribution != "every":
                raise ValueError("'sum' and 'attribution' go with 'table', not with 'column'")
            return self
        if self.sum is None and rules:
            raise ValueError("'greater_than', 'at_least', 'equals' go with 'column', not with 'table'")
        if self.sum is not None and (len(rules) != 1 or self.equals is not None):
            raise ValueError("a label by 'sum' needs exactly one of 'greater_than' and 'at_least'")
        if not self.join_on or self.within is None:
            raise ValueError("a label from a table needs 'join_on' and 'within'")
        if self.null_is != "reject" or self.known_after is not None:
            raise ValueError("'null_is' and 'known_after' go with 'column', not with 'table'")
        return self

    @model_validator(mode="after")
    def _some_scenario(self) -> Task:
        if self.scenarios is not None and not self.scenarios:
            raise ValueError("'scenarios' is empty; expected one at least, or leave it out for all")
        return self

    @property
    def is_delayed(self) -> bool:
        """Whether the label is known only some time after the impression."""
        return self.table is not None or self.known_after is not None

    @property
    def known_after_column(self) -> str | None:
        """The impression's column that says how many seconds later the label is known."""
        return self.known_after if isinstance(self.known_after, str) else None
