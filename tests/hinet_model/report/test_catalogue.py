"""The catalogue of models is what the models' own files say, and says something of every key."""

from __future__ import annotations

from pathlib import Path

from hinet_model.models.registry import REGISTRY
from hinet_model.models.settings import ModelSettings
from hinet_model.report.catalogue import page

PAGE = Path(__file__).parents[3] / "docs" / "models.md"


def test_the_page_is_what_the_models_files_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "write it anew: python -m hinet_model.report.catalogue > docs/models.md"
    )


def test_every_key_of_every_model_has_a_meaning() -> None:
    fields = {
        (name, key): field
        for name, kind in REGISTRY.items()
        for key, field in kind.settings.model_fields.items()
        if key != "name"
    }
    assert len(fields) > 12 * (len(ModelSettings.model_fields) - 1)
    assert [where for where, field in fields.items() if not field.description] == []


def test_the_page_names_papers_own_keys_and_exemptions() -> None:
    text = page()
    assert "| `ple` | `levels` | `2` | Levels of customised gate control that are stacked. |" in text
    assert "Progressive Layered Extraction (RecSys 2020)" in text
    assert "gates: no experts to choose among" in text
    assert [name for name in REGISTRY if f"\n| `{name}` | " not in text] == []
