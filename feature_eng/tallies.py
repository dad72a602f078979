"""Tallies of days: what was counted of each day of the examples, kept so that a build counts new days alone."""

from __future__ import annotations

import hashlib
import json
from datetime import date

from pyspark.sql import DataFrame

from feature_eng import delta
from feature_eng.cells import Tally, tally
from feature_eng.contract import Contract
from feature_eng.dates import ON_DATE, is_one_of
from foundation import stores

FORMAT = 2
"""Of what is counted: raised, all days are counted again (`feature_eng.meaning`)."""


def tallies(examples: DataFrame, contract: Contract, root: str, version: int) -> list[Tally]:
    """What there is of each scenario in each split; of examples by date of each day.

    Args:
        examples: All of a version.
        contract: What they were made by.
        root: Folder of the tables.
        version: The version of the examples.
    """
    if ON_DATE not in examples.columns:
        return tally(examples, contract)
    return [one for of_day in by_day(examples, contract, root, version).values() for one in of_day]


def by_day(examples: DataFrame, contract: Contract, root: str, version: int) -> dict[date, list[Tally]]:
    """The tallies of each day of examples by date, counted where its files are others than they were."""
    files = delta.partitions(stores.join(root, "examples"), version, ON_DATE)
    keys = {day: _digest(contract, names) for day, names in files.items()}
    place = stores.join(root, "tallies.json")
    known = _known(place)
    missing = {day for day, key in keys.items() if key not in known}
    if missing:
        counted = tally(examples.where(is_one_of(missing)), contract, ON_DATE)
        for day in missing:
            known[keys[day]] = [
                {name: value for name, value in one.items() if name != ON_DATE}
                for one in counted
                if one[ON_DATE] == day
            ]
        stores.write_text(place, json.dumps({key: known[key] for key in sorted(keys.values())}))
    return {day: known[key] for day, key in keys.items()}


def _known(place: str) -> dict[str, list[Tally]]:
    """What was counted before; nothing where that cannot be read, and all is counted again."""
    try:
        found = json.loads(stores.read_text(place)) if stores.exists(place) else {}
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def _digest(contract: Contract, files: frozenset[str]) -> str:
    """Of the files of a day, which are never written twice, and of what is counted in them."""
    return hashlib.sha256(json.dumps([FORMAT, contract.fingerprint, *sorted(files)]).encode()).hexdigest()
