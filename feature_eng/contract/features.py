"""The section ``features`` of a contract: what the model reads."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from feature_eng.contract.columns import Time, Timed
from feature_eng.contract.section import Names, Section
from feature_eng.contract.values import Positive, Seconds

AGES, KINDS = "__ages", "__kinds"
"""What the columns beside a history end in; no feature's own name has two underscores."""


class _Feature(Section):
    """What all features have.

    Args:
        optional: Whether who asks for scores may leave the raw column out, which then is null.
    """

    later: ClassVar[frozenset[str]] = frozenset({"optional"})

    optional: bool = False


class Categorical(_Feature):
    """One raw value -> one index: by a vocabulary fitted on train, or by hash when ``buckets`` is given."""

    kind: Literal["categorical"]
    column: str
    min_count: Positive = 1
    buckets: Positive | None = None


class MultiValued(_Feature):
    """Several values, a list or a text of them, -> ``slots`` indices, the first ones kept.

    Args:
        separator: Between the values of a text; lists need none.
    """

    kind: Literal["multi_valued"]
    column: str
    separator: Annotated[str, Field(min_length=1)] = "|"
    slots: Positive
    min_count: Positive = 1
    buckets: Positive | None = None


class Numeric(_Feature):
    """A number, standardised on train (after ``log1p`` when so asked)."""

    kind: Literal["numeric"]
    column: str
    transform: Literal["none", "log1p"] = "none"


class Bucketed(_Feature):
    """A number -> the index of its bucket between quantiles of train."""

    kind: Literal["bucketed"]
    column: str
    num_buckets: Annotated[int, Field(ge=2)]


class _OfThePast(Timed, _Feature):
    """What features of what came before a row have.

    Args:
        within: Only what was known at most so long before the row's time.
        per_scenario: Only what was seen in the row's own scenario.
        table: Table whose rows came before, or several; the impressions when left out. It has the columns that the
            feature goes by under the impressions' names.
        time: That table's time column, or how to read it; where left out, as a label or another feature says, or
            read as the impressions'.
    """

    later: ClassVar[frozenset[str]] = _Feature.later | {"within", "per_scenario", "table", "time_given"}

    within: Seconds | None = None
    per_scenario: bool = False
    table: Names | None = None
    time_given: str | Time | None = Field(default=None, alias="time")

    def columns(self, name: str) -> tuple[str, ...]:
        """What the feature of this name is made of: its own column, then those that tell more of its slots."""
        return (name,)


class History(_OfThePast):
    """The last items strictly before the row's time, newest first, of the user; a sequence, with ages and kinds.

    Args:
        of: ``item``, or the categorical feature whose column and vocabulary it shares.
        last: How many are kept.
        when: Of the impressions only those whose label of this task was 1, and known before the row's time.
        by: Of whom: the ``user``, the ``item``, or all rows of equal value in another column.
        ages: Whether to tell of each slot how many seconds before the row it became known.
        kinds: Whether to tell of each slot which table it is of, where ``table`` names several.
    """

    later: ClassVar[frozenset[str]] = _OfThePast.later | {"by", "ages", "kinds"}

    kind: Literal["history"]
    of: str = "item"
    last: Positive
    when: str | None = None
    by: str = "user"
    ages: bool = False
    kinds: bool = False

    @model_validator(mode="after")
    def _of_several_kinds(self) -> History:
        if self.kinds and len(self.table or ()) < 2:
            raise ValueError("'kinds' tells tables apart; expected several in 'table'")
        return self

    def columns(self, name: str) -> tuple[str, ...]:
        """The items, then their ages in seconds, then the names of their tables: lists of equal lengths."""
        more = [part for part, wanted in ((AGES, self.ages), (KINDS, self.kinds)) if wanted]
        return (name, *(f"{name}{part}" for part in more))


class Count(_OfThePast):
    """How many rows the user had strictly before the row's time; or the item, or rows of equal value in a column.

    Rows of the impressions, or of other tables: carts, searches.
    """

    kind: Literal["count"]
    by: str = "user"


class Rate(_OfThePast):
    """Share of label 1 among labels known strictly before the row's time.

    Smoothed as ``(positives + prior * prior_rows) / (labels + prior_rows)``. The prior is
    a constant of the contract: one computed from data would tell of the future.
    """

    kind: Literal["rate"]
    task: str
    by: str = "user"
    prior: Annotated[float, Field(ge=0, le=1)] = 0.5
    prior_rows: Annotated[float, Field(gt=0)] = 10.0

    @model_validator(mode="after")
    def _of_labels(self) -> Rate:
        if self.table is not None or self.time_given is not None:
            raise ValueError(
                "a rate is of a task's labels, which impressions alone have; expected no 'table' and no 'time'"
            )
        return self


Behaviour = History | Count | Rate
Raw = Categorical | MultiValued | Numeric | Bucketed
Feature = Raw | Behaviour
