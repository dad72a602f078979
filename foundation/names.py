"""Names that become parts of a path: plain enough that they can lead nowhere else."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_PART = r"[A-Za-z0-9][A-Za-z0-9_-]*"
_PLAIN = re.compile(_PART)
_DOTTED = re.compile(rf"{_PART}(\.{_PART})*")


def _plain(name: str) -> str:
    if not _PLAIN.fullmatch(name):
        raise ValueError(
            f"{name!r} is not usable as a name; expected letters, digits, '_' and '-', a letter or digit first"
        )
    return name


def _dotted(name: str) -> str:
    if not _DOTTED.fullmatch(name):
        raise ValueError(
            f"{name!r} is not usable as a name; expected letters, digits, '_' and '-', a letter or digit first, or "
            "several such names with dots between them"
        )
    return name


PlainName = Annotated[str, AfterValidator(_plain)]
"""Becomes a folder: of a contract, below the warehouse."""

DottedName = Annotated[str, AfterValidator(_dotted)]
"""The same, or ``catalog.schema.name`` as Unity Catalog has it."""
