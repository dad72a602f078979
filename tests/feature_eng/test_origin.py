"""What a training table was made of is read from its properties, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from feature_eng.origin import Origin, origin_of
from feature_eng.snapshot import EXAMPLES_PATH, EXAMPLES_VERSION, TABLES, SnapshotError

PROPERTIES = {
    EXAMPLES_PATH: "/warehouse/shop/examples",
    EXAMPLES_VERSION: "10",
    TABLES: json.dumps({"events": 3, "rejects": 2}),
}


def test_it_names_the_examples_and_the_events_behind_them() -> None:
    origin = origin_of("training", PROPERTIES)
    assert origin == Origin("/warehouse/shop/examples", 10, {"events": 3, "rejects": 2})
    assert origin.root == "/warehouse/shop"


@pytest.mark.parametrize("missing", sorted(PROPERTIES))
def test_a_table_that_does_not_say_it_is_refused_by_name(missing: str, tmp_path: Path) -> None:
    rest = {name: value for name, value in PROPERTIES.items() if name != missing}
    with pytest.raises(SnapshotError) as error:
        origin_of(tmp_path / "training", rest)
    assert str(error.value) == (
        f"{tmp_path}/training: does not say what it was made of (no {missing}); "
        "expected a training table of jobs/build_features.py: build the features again"
    )
