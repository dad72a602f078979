"""The meaning of events and examples: one number, raised when a release makes other rows of the same log.

Builds by date leave days as they are that an earlier release made. If a label, a behaviour feature, the typing of raw
values, the choice among rows of one key, a split or a weight came to mean something else, such a table would hold
days of either kind, and nobody could tell. So each table by date says by which number its days were made, and a build
of another number refuses to go on with it. The training table of any build says it too: requests are told of the past
by that build's rows, in the way of the release that scores them.

`tests/feature_eng/test_meaning.py` holds what a small log came to, column by column, and fails when any of it changes.
The answer to such a failure is one of three:

- the change is a mistake: mend it;
- rows of events or examples mean something else now: raise `MEANING`, and users build all days once;
- only what follows from them does: raise ``FORMAT`` of `feature_eng.tallies` (days are counted again, unasked), or of
  `feature_eng.encoder.state` (all days are encoded again; encoders and models of before are refused).

A setting that contracts did not have before is no reason: a contract that names it has another fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping

from feature_eng.snapshot import FIRST_MEANING, MEANING_OF_ROWS, SnapshotError

MEANING = 2


def check_meaning(table: str, properties: Mapping[str, str]) -> None:
    """Stop where rows of a build mean something else than this release makes of them.

    Args:
        table: The build's training table.
        properties: Of the version in question. Builds before there was a number were of the first.

    Raises:
        SnapshotError: Says both numbers.
    """
    found = properties.get(MEANING_OF_ROWS, FIRST_MEANING)
    if found != str(MEANING):
        raise SnapshotError(
            f"{table}: was built by another release, in which rows meant something else (meaning {found}, now "
            f"{MEANING}); build the features again, and train on them"
        )
