"""Lines: everything that a study found, as JSON, one fact a line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from hinet_model.studies.findings import ORACLE, Compared, Findings
from hinet_model.studies.trials import code_digest


def lines(findings: Findings) -> Iterator[str]:
    """The study, its trials, what they say of variants and of cells; ``null`` for what is not defined."""
    facts = {key: value for key, value in asdict(findings.facts).items() if key != "planted"}
    code = {"code": code_digest(), "data": findings.schedule.data, "commits": findings.commits}
    hours = {"asks": findings.study.asks, "cpu_hours": round(findings.cpu_hours, 3)}
    yield _line("study", {**facts, **code, **hours})
    for trial, outcome in findings.trials:
        yield _line("trial", {**asdict(trial), **outcome})
    for row in findings.variants:
        yield from _compared(
            findings, {"variant": row.variant, "candidate": row.candidate}, row.overall, row.cells
        )
    if findings.oracle is not None:
        yield from _compared(findings, {"variant": ORACLE}, *findings.oracle)


def _compared(
    findings: Findings, known: Mapping[str, str], overall: Compared, cells: tuple[Compared, ...]
) -> Iterator[str]:
    yield _line("variant", {**known, **_plain(overall)})
    for (scenario, task), one in zip(findings.facts.cells, cells, strict=True):
        yield _line("cell", {"variant": known["variant"], "scenario": scenario, "task": task, **_plain(one)})


def _plain(one: Compared) -> dict[str, Any]:
    change = None if one.change is None else asdict(one.change)
    return {
        "auc": asdict(one.auc),
        "change": change,
        "adjusted_p": one.adjusted,
        "verdict": one.verdict,
        "way": one.way,
    }


def _line(kind: str, content: Mapping[str, Any]) -> str:
    return json.dumps({"kind": kind, **_without_nan(content)}, ensure_ascii=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
