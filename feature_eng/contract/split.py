"""The section ``split`` of a contract: train, validation and test."""

from __future__ import annotations

from typing import ClassVar, Literal
from zoneinfo import ZoneInfo

from pydantic import field_validator, model_validator

from feature_eng.contract.section import Section
from feature_eng.contract.values import IsoDate, Seconds, to_instant

SPLITS: tuple[str, str, str] = ("train", "validation", "test")

Span = tuple[IsoDate | None, IsoDate | None]


class Split(Section):
    """How examples are parted into train, validation and test.

    Args:
        method: ``time``: one cut-off for all, by shares of rows. ``dates``: spans that are named.
            ``random``: by a hash of the key. ``user_disjoint``: by users. ``column``: as a column says.
        fractions: Shares of train, validation and test; not read by ``dates`` and ``column``.
        seed: Of the split ``random``.
        train: First and last date of the training rows, both included; null is an open end.
        validation: The same of validation, after it; left out, there is none.
        test: The same of test, after both.
        column: Column that says ``train``, ``validation`` or ``test``, for data that come parted; rows that say
            anything else are in none.
        zone: IANA name of the zone that dates are in.
        gap: Rows at most so long before the first second of the next split are in none: their labels
            would be known only in its time. For ``time`` and ``dates``.
        allow_leakage: A random split shows training rows what later rows of test did, by way of behaviour
            features, as may one by a column, and a user-disjoint one by way of those by item; true says that this
            is meant.
    """

    later: ClassVar[frozenset[str]] = frozenset(
        {"train", "validation", "test", "column", "zone", "gap", "allow_leakage"}
    )

    method: Literal["time", "dates", "random", "user_disjoint", "column"]
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    train: Span | None = None
    validation: Span | None = None
    test: Span | None = None
    column: str | None = None
    zone: str = "UTC"
    gap: Seconds | None = None
    allow_leakage: bool = False

    @field_validator("fractions")
    @classmethod
    def _sum_to_one(cls, fractions: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(fractions) < 0 or fractions[0] == 0 or abs(sum(fractions) - 1) > 1e-9:
            raise ValueError(f"{list(fractions)} are not shares; expected three that sum to 1, train above 0")
        return fractions

    @field_validator("zone")
    @classmethod
    def _known_zone(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"{zone!r} is no time zone; expected one such as 'Asia/Shanghai'") from None
        return zone

    @model_validator(mode="after")
    def _fits_the_method(self) -> Split:
        if self.gap is not None and self.method not in ("time", "dates"):
            raise ValueError(f"'gap' goes with method 'time' or 'dates', not with '{self.method}'")
        if (self.column is not None) != (self.method == "column"):
            raise ValueError("method 'column' and 'column: NAME' go together")
        given = [name for name in SPLITS if getattr(self, name) is not None]
        if self.method != "dates":
            if given:
                raise ValueError(f"'{given[0]}' goes with method 'dates', not with '{self.method}'")
            return self
        if self.train is None:
            raise ValueError("method 'dates' needs 'train: [first, last]'")
        before: tuple[str, int | None] | None = None
        for name, (first, last) in self.spans.items():
            if first is not None and last is not None and first > last:
                raise ValueError(f"'{name}' ends before it begins")
            if before is not None and (before[1] is None or first is None or first <= before[1]):
                raise ValueError(f"'{name}' must begin after '{before[0]}' has ended")
            before = (name, last)
        return self

    @property
    def spans(self) -> dict[str, tuple[int | None, int | None]]:
        """Split -> its first and last second since the epoch, ``None`` for an open end; of ``dates``."""
        given = {name: span for name in SPLITS if (span := getattr(self, name)) is not None}
        return {
            name: (
                None if first is None else to_instant(first, self.zone),
                None if last is None else to_instant(last, self.zone, is_end=True),
            )
            for name, (first, last) in given.items()
        }

    @property
    def wanted(self) -> tuple[str, ...]:
        """The splits that must have rows."""
        if self.method == "dates":
            return tuple(self.spans)
        if self.method == "column":
            return ("train", "test")
        return tuple(name for name, share in zip(SPLITS, self.fractions, strict=True) if share > 0)
