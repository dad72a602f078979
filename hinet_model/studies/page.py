"""Page: what a study has found, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hinet_model.studies.comparing import CONFIDENCE, Array, Estimate, over_seeds, rank_correlation
from hinet_model.studies.findings import ORACLE, Compared, Findings
from hinet_model.studies.settings import View
from hinet_model.studies.trials import code_digest

_MARKS = {"ahead": " ▲", "behind": " ▼", "tie": "", "": ""}


def render(findings: Findings, pictures: Sequence[tuple[str, str]]) -> str:
    """The page.

    Args:
        findings: What was found.
        pictures: What each shows, and its file beside the page.
    """
    study = findings.study
    parts = [f"# {study.asks}", _how(findings)]
    for view in study.views:
        parts.append(_VIEWS[view](findings))
        parts += [f"![{title}]({file})" for title, file in pictures if file.endswith(f"-{view}.svg")]
    parts.append(_trials(findings))
    return "\n\n".join(part for part in parts if part) + "\n"


def attention_tables(findings: Findings) -> dict[str, list[Array]]:
    """Learned attention tables of each variant that has them, seed by seed."""
    found = {
        row.variant: [np.array(one["attention"]) for one in row.outcomes if one["attention"] is not None]
        for row in findings.variants
    }
    return {variant: tables for variant, tables in found.items() if tables}


def _how(findings: Findings) -> str:
    study, facts, search = findings.study, findings.facts, findings.study.search
    seeds = ", ".join(str(seed) for seed in study.final.seeds)
    budgets = {variant: len(study.candidates(variant)) for variant in study.variants}
    if set(budgets.values()) == {1}:
        budget = "No search: every variant as configured."
    else:
        each = (
            f"{next(iter(budgets.values()))} settings"
            if len(set(budgets.values())) == 1
            else "settings (" + ", ".join(f"{name} {count}" for name, count in budgets.items()) + ")"
        )
        budget = (
            f"Budget of each variant: {each} tried with seed {search.seed}{_settings(search.settings)}, chosen by "
            f"validation AUC; then one trial for each of the seeds {seeds}{_settings(study.final.settings)}."
        )
    first, last = findings.days
    commits = ", ".join(f"commit `{commit}`" for commit in findings.commits)
    dates = first if first == last else f"{first} to {last}"
    rows = ", ".join(f"{count:,} {split}" for split, count in facts.rows.items())
    comparisons = len(findings.variants) - 1
    return "\n".join(
        [
            f"Contract `{facts.contract}`: {rows} rows, {len(facts.scenarios)} scenarios x {len(facts.tasks)} tasks. "
            f"{budget} The best epoch by validation is scored on the test rows, which nothing else looks at. Settings: "
            f"`conf/studies/{facts.name}.yml`; every trial and every figure of this page: [{facts.name}.jsonl]"
            f"({facts.name}.jsonl).",
            "",
            f"Run {dates} on {commits} (code `{code_digest()}`); {facts.machine}, one core "
            f"a trial. {len(findings.trials)} trials, {findings.cpu_hours:.2f} CPU-hours (those of a trial that "
            "another study has in common with this one are counted in both). Made by",
            "",
            f"    {facts.command}",
            "",
            f"AUC is that of the test rows, averaged over seeds; a mean over cells takes all cells alike. Half-widths "
            f"are of {CONFIDENCE:.0%} intervals: *seeds* is what other seeds of weights and row order would change "
            "(Student's t), *rows* what other users' test rows would (DeLong, rows added up by user). A difference is "
            "taken seed by seed on the same rows; it is called ahead or behind only where both together leave p < 0.05 "
            f"by Holm's correction over the {comparisons} comparisons of a table of means, or the "
            f"{comparisons * len(facts.cells)} of one of cells; all else is a tie within noise.",
        ]
    )


def _settings(settings: dict[str, object]) -> str:
    return (
        " (" + ", ".join(f"`{path}: {value}`" for path, value in settings.items()) + ")" if settings else ""
    )


def _ranking(findings: Findings) -> str:
    study = findings.study
    has_way = findings.oracle is not None and study.start in findings.standings
    header = [
        "variant",
        "chosen",
        "mean AUC",
        "± seeds",
        "± rows",
        f"less {study.reference}",
        "± seeds",
        "± rows",
    ]
    header += ["p (Holm)", "verdict"]
    header += [f"way from {study.start} to oracle"] if has_way else []
    header += ["dense parameters", "rows per CPU-second", "peak MiB", "CPU-minutes"]
    lines = []
    for row in findings.variants:
        one = row.overall
        line = [row.variant, row.candidate, *_estimate(one.auc), *_change(one)]
        line += [_percent(one.way)] if has_way else []
        line += [
            f"{row.outcomes[0]['dense_parameters']:,}",
            f"{row.rows_per_cpu_second:,.0f}",
            f"{max(found['peak_memory_mib'] for found in row.outcomes):,}",
            f"{row.cpu_seconds / 60:.1f}",
        ]
        lines.append(line)
    if findings.oracle is not None:
        one = findings.oracle[0]
        line = [ORACLE, "the truth", *_estimate(one.auc), *_change(one)[:3], "", ""]
        lines.append(line + ([_percent(one.way)] if has_way else []) + [""] * 4)
    return "## All cells\n\n" + _table(header, lines)


def _cells(findings: Findings) -> str:
    study = findings.study
    header = ["variant", *(f"{scenario} {task}" for scenario, task in findings.facts.cells)]
    oracle = findings.oracle
    aucs = [
        [row.variant, *(f"{_number(one.auc.value)}{_MARKS[one.verdict]}" for one in row.cells)]
        for row in findings.variants
    ]
    if oracle is not None:
        aucs.append([ORACLE, *(_number(one.auc.value) for one in oracle[1])])
    reference = findings.row(study.reference)
    aucs.append(["*± rows (of an AUC)*", *(_half(one.auc.half_rows) for one in reference.cells)])
    text = f"## Cell by cell\n\n▲ ahead of {study.reference}, ▼ behind it, no mark: a tie within noise.\n\n"
    text += _table(header, aucs)
    if oracle is not None and study.start in findings.standings:
        ways = [
            [row.variant, *(_percent(one.way) for one in row.cells)]
            for row in findings.variants
            if row.variant != study.start
        ]
        text += (
            f"\n\nShare of the way from {study.start} to the oracle; a dash where the oracle is not ahead of it by "
            f"more than noise.\n\n{_table(header, ways)}"
        )
    return text


def _curve(findings: Findings) -> str:
    parts = ["## Along the axes"]
    done = {row.variant: row for row in findings.variants}
    for axis, points in findings.study.curves.items():
        lines = [
            [f"{place:g}", variant, *_estimate(done[variant].overall.auc), *_change(done[variant].overall),
             f"{done[variant].outcomes[0]['dense_parameters']:,}"]
            for variant, place in sorted(points.items(), key=lambda point: point[1])
            if variant in done
        ]  # fmt: skip
        header = [axis, "variant", "mean AUC", "± seeds", "± rows", f"less {findings.study.reference}"]
        header += ["± seeds", "± rows", "p (Holm)", "verdict", "dense parameters"]
        parts.append(_table(header, lines))
    return "\n\n".join(parts)


def _attention(findings: Findings) -> str:
    planted = findings.facts.planted
    tables = attention_tables(findings)
    if not tables:
        return ""
    parts = ["## What the attention has learned"]
    if planted is not None:
        parts.append(
            "Spearman's correlation, within a scenario, between how much it listens to each other scenario and how "
            "similar the two were planted; the mean over scenarios, for each seed. 0 is what chance gives, 1 the same "
            "order."
        )
        lines = []
        for variant, found in tables.items():
            each = [rank_correlation(table, planted) for table in found]
            mean, half = over_seeds(each)
            lines.append(
                [variant, " ".join(f"{value:+.2f}" for value in each), f"{mean:+.2f}", _half(half, 2)]
            )
        parts.append(_table(["variant", "seeds", "mean", "± seeds"], lines))
    lines = []
    for variant, found in tables.items():
        stacked = np.stack(found)
        off = ~np.eye(stacked.shape[1], dtype=bool)
        between = stacked.std(axis=0, ddof=1)[off].mean() if len(stacked) > 1 else math.nan
        lines.append(
            [variant, f"{stacked[:, off].min():.3f}", f"{stacked[:, off].max():.3f}", _half(between, 3)]
        )
    parts.append(
        f"An even table would have 1/(M-1) = {1 / (len(findings.facts.scenarios) - 1):.3f} everywhere.\n\n"
        + _table(["variant", "least weight", "largest weight", "sd over seeds"], lines)
    )
    return "\n\n".join(parts)


def _seesaw(findings: Findings) -> str:
    study, facts = findings.study, findings.facts
    header = ["variant", *(f"{scenario} {task}" for scenario, task in facts.cells)]
    header += ["cells ahead", "cells behind", "scenarios that seesaw", "by sign alone"]
    lines = []
    for row in findings.variants:
        if row.variant == study.reference:
            continue
        verdicts = np.array([one.verdict for one in row.cells]).reshape(len(facts.scenarios), -1)
        signs = np.array([math.copysign(1, _value(one)) for one in row.cells]).reshape(verdicts.shape)
        both = ((verdicts == "ahead").any(axis=1) & (verdicts == "behind").any(axis=1)).sum()
        by_sign = ((signs > 0).any(axis=1) & (signs < 0).any(axis=1)).sum()
        cells = [f"{_signed(_value(one))}{_MARKS[one.verdict]}" for one in row.cells]
        ahead, behind = ((verdicts == word).sum() for word in ("ahead", "behind"))
        total = len(facts.scenarios)
        lines.append(
            [row.variant, *cells, str(ahead), str(behind), f"{both} of {total}", f"{by_sign} of {total}"]
        )
    return (
        f"## Seesaw\n\nEach cell's AUC less that of {study.reference}. A scenario seesaws where one task is ahead and "
        f"another behind; by sign alone half of all scenarios would, if differences were noise.\n\n"
        f"{_table(header, lines)}"
    )


def _trials(findings: Findings) -> str:
    """What each final trial gave, and the epochs at which it was best, of those that it was trained for."""
    lines = [
        [
            row.variant,
            " ".join(_number(_mean_auc(one)) for one in row.outcomes),
            ", ".join(f"{one['best_epoch'] + 1} of {len(one['validation'])}" for one in row.outcomes),
        ]
        for row in findings.variants
    ]
    return "## Seed by seed\n\n" + _table(["variant", "mean test AUC of each seed", "best epoch"], lines)


def _mean_auc(outcome: Mapping[str, Any]) -> float:
    return float(np.mean([cell["auc"] for cell in outcome["test"] if cell["auc"] is not None]))


def _value(one: Compared) -> float:
    return 0.0 if one.change is None or math.isnan(one.change.value) else one.change.value


def _estimate(one: Estimate) -> list[str]:
    return [_number(one.value), _half(one.half_seeds), _half(one.half_rows)]


def _change(one: Compared) -> list[str]:
    if one.change is None:
        return [""] * 5
    change = one.change
    return [
        _signed(change.value),
        _half(change.half_seeds),
        _half(change.half_rows),
        "-" if math.isnan(one.adjusted) else f"{one.adjusted:.3f}" if one.adjusted >= 0.001 else "< 0.001",
        one.verdict,
    ]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.4f}"


def _half(value: float, digits: int = 4) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


_VIEWS: dict[View, Callable[[Findings], str]] = {
    "ranking": _ranking,
    "cells": _cells,
    "curve": _curve,
    "attention": _attention,
    "seesaw": _seesaw,
}
