"""A small generic log's contract, from which tests make their variants."""

from __future__ import annotations

from typing import Any

from feature_eng.contract import Contract, to_contract

FEATURES: dict[str, Any] = {
    "what": {"kind": "categorical", "column": "what"},
    "price": {"kind": "numeric", "column": "price"},
}


def small_contract(**sections: Any) -> Contract:
    """Two scenarios by page, one task; sections given replace the ones here."""
    mapping: dict[str, Any] = {
        "name": "small",
        "source": {"reader": "tables", "tables": {"shown": {"path": "shown.csv", "format": "csv"}}},
        "columns": {"key": ["row"], "user": "who", "item": "what", "time": "at"},
        "scenario": {"column": "page", "values": {"home": {"in": [1]}, "search": {"in": [2, 3]}}},
        "tasks": {"click": {"column": "clicked", "equals": 1}},
        "features": FEATURES,
        "split": {"method": "random", "allow_leakage": True},
    }
    return to_contract({**mapping, **sections})
