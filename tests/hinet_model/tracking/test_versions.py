"""The start-up self-check."""

from __future__ import annotations

import pytest

from hinet_model.tracking import versions

REQUIREMENTS = [
    "numpy==1.26.4",
    "torch==2.12.1",
    "horovod==0.28.1",
    "pyarrow==14.0.2",
    "pandas>=2,<3",
    "mypy; extra == 'dev'",
]
FITTING = {
    "python": "3.11.7",
    "pyspark": "4.0.2",
    "delta-spark": "4.0.1",
    "petastorm": "0.13.1",
    "pyarrow": "14.0.2",
    "numpy": "1.26.4",
    "torch": "2.12.1",
    "horovod": "0.28.1+torch2.12.1",
    "mlflow": "3.17.2",
}  # fmt: skip


def test_this_environment_fits() -> None:
    assert versions.check().keys() == FITTING.keys()


def test_fitting_versions_have_no_fault() -> None:
    assert versions.mismatches(FITTING, REQUIREMENTS) == []


@pytest.mark.parametrize(
    ("name", "found", "fault"),
    [
        ("pyarrow", "15.0.0", "pyarrow: installed 15.0.0, expected ==14.0.2"),
        ("numpy", "none", "numpy: installed none, expected ==1.26.4"),
        ("horovod", "0.28.1+torch2.11.0", "horovod: built for torch2.11.0, expected torch2.12.1"),
        ("horovod", "0.28.1", "horovod: built for an unknown torch, expected torch2.12.1"),
    ],
)
def test_a_mismatch_is_named_with_both_sides(name: str, found: str, fault: str) -> None:
    assert versions.mismatches({**FITTING, name: found}, REQUIREMENTS) == [fault]


def test_a_torch_of_another_build_needs_another_horovod() -> None:
    changed = {**FITTING, "torch": "2.12.1+cu130", "horovod": "0.28.1+torch2.12.1.cu130"}
    assert versions.mismatches(changed, REQUIREMENTS) == []
    assert versions.mismatches({**FITTING, "torch": "2.12.1+cu130"}, REQUIREMENTS) == [
        "horovod: built for torch2.12.1, expected torch2.12.1.cu130"
    ]


def test_all_faults_come_in_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda: {**FITTING, "numpy": "2.0.0", "pyarrow": "15.0.0"})
    with pytest.raises(versions.VersionError, match=r"pyarrow: .*numpy: .*make setup"):
        versions.check()
