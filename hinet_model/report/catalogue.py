"""Catalogue: the page `docs/models.md`, which lists every model with its paper, its keys and what it does not have.

``python -m hinet_model.report.catalogue > docs/models.md`` writes it anew.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from inspect import getmodule

from pydantic.fields import FieldInfo

from hinet_model.models.model import ModelKind
from hinet_model.models.registry import REGISTRY
from hinet_model.models.settings import ModelSettings

_INTRODUCTION = """# Models

Written by `python -m hinet_model.report.catalogue` from the settings and the first lines of each model's file in
`hinet_model/models/`. A run takes one of them by the section `model` of its settings: by `--set model.name=ple` where
a file says nothing else of the model, by `--set 'model={name: ple, levels: 3}'` in place of what it says. A key that
a model does not have is refused by name. A count is one number for all, or a mapping where its meaning says so, which
must then name all. The properties are those of the conformance suite
(`tests/hinet_model/models/test_conformance.py`), which every model has but for those that it lacks by its nature.
"""


def page() -> str:
    """The whole page."""
    models = [
        (f"`{name}`", _first_line(kind), _paper(kind) or "-", _lacks(kind)) for name, kind in REGISTRY.items()
    ]
    common = {key: field for key, field in ModelSettings.model_fields.items() if key != "name"}
    own = [
        (f"`{name}`", *_line(key, field))
        for name, kind in REGISTRY.items()
        for key, field in _own(kind).items()
    ]
    return "\n".join(
        [
            _INTRODUCTION,
            _table(("model", "what it is", "paper", "properties it lacks, and why"), models),
            "## Keys of every model\n",
            _table(("key", "default", "meaning"), [_line(key, field) for key, field in common.items()]),
            "## Keys of one model\n",
            _table(("model", "key", "default", "meaning"), own),
        ]
    )


def _own(kind: ModelKind) -> dict[str, FieldInfo]:
    """The keys that are not every model's, or mean something else here."""
    common = ModelSettings.model_fields
    return {
        key: field
        for key, field in kind.settings.model_fields.items()
        if key != "name" and (key not in common or field.annotation != common[key].annotation)
    }


def _docstring(kind: ModelKind) -> str:
    module = getmodule(kind.settings)
    assert module is not None
    assert module.__doc__ is not None
    return " ".join(module.__doc__.split())


def _first_line(kind: ModelKind) -> str:
    return _docstring(kind).partition(". ")[0].removesuffix(".")


def _paper(kind: ModelKind) -> str:
    """Title, venue and year of what the module's docstring names as its source; empty where that is no paper."""
    found = re.search(r"Source: ([^.]+? \([^)]*\d{4}[^)]*\))", _docstring(kind))
    return found.group(1) if found else ""


def _lacks(kind: ModelKind) -> str:
    return ", ".join(f"{part.replace('_', ' ')}: {why}" for part, why in kind.exempt.items()) or "-"


def _line(key: str, field: FieldInfo) -> tuple[str, str, str]:
    return f"`{key}`", f"`{json.dumps(field.get_default())}`", " ".join((field.description or "").split())


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(page())
