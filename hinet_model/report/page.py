"""Page: a version's evaluation as one HTML file that asks nothing of any network.

The verdict comes first, then what it rests on, down to the settings of the run. What is not there says so in a line.
Figures are drawn by the templates beside this file, in the colours of the page; every name that comes from a contract
or a user is escaped there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import jinja2

from hinet_model.lifecycle.evaluation import CHALLENGER, CHAMPION, UNCALIBRATED, Evaluation
from hinet_model.lifecycle.judging.judgements import Judgement
from hinet_model.lifecycle.judging.measures import Measure
from hinet_model.lifecycle.promotion import Decision
from hinet_model.report import charts
from hinet_model.report.model_facts import ModelFacts
from hinet_model.report.run_facts import RunFacts

MOST_CHARTS = 24
"""Cells whose curves are drawn: on a page of hundreds nobody finds any."""
MOST_GATES = 240
READABLE_ATTENTION = 16
"""Scenarios up to which the attention is a table; above, each scenario's strongest."""
_STRONGEST = 5
_METRICS = (
    ("gauc", "GAUC"),
    ("pr_auc", "PR-AUC"),
    ("log_loss", "log-loss"),
    ("normalised_entropy", "NE"),
    ("pcoc", "PCOC"),
    ("ece", "ECE"),
    ("ndcg", "NDCG"),
    ("mrr", "MRR"),
)


class RawTable(Protocol):
    """Rows of one raw table, as `feature_eng.accounts.Account` counts them."""

    @property
    def table(self) -> str:
        """Its name."""

    @property
    def taken(self) -> int:
        """Rows that came in."""

    @property
    def kept(self) -> int:
        """Rows that went on."""

    @property
    def rejected(self) -> Mapping[str, int]:
        """Reason -> rows."""


@dataclass(frozen=True)
class DataFacts:
    """What the build of the features made of the raw rows.

    Attributes:
        raw: Every raw table; empty where it cannot be read.
        note: What to know about these figures, or why there are none.
        drift: How the build lies to the one before: measure, of what, before, now, verdict; empty for the first.
    """

    raw: Sequence[RawTable] = ()
    note: str = ""
    drift: Sequence[tuple[object, ...]] = ()


@dataclass(frozen=True)
class Findings:
    """All that a page is made of.

    Attributes:
        evaluation: Of the version.
        decision: What promotion would make of it now.
        policy: Whose rules: words for the reader.
        margin: AUC that a cell may lose by these rules.
        run: Of the run that trained it.
        model: Of the model; ``None`` where it was not looked into.
        data: Of the build.
    """

    evaluation: Evaluation
    decision: Decision
    policy: str
    margin: float
    run: RunFacts = field(default_factory=RunFacts)
    model: ModelFacts | None = None
    data: DataFacts = field(default_factory=DataFacts)


def render(findings: Findings) -> str:
    """The page, as HTML text."""
    template = _environment().get_template("page.html.j2")
    judged, decision = findings.evaluation, findings.decision
    cells, others = list(judged.cells), list(judged.of_kind("scenario", "overall"))
    names = [(cell.scenario, cell.task) for cell in cells]
    drawn = _drawn(cells, decision)
    return template.render(
        judged=judged,
        decision=decision,
        policy=findings.policy,
        margin=findings.margin,
        run=findings.run,
        model=findings.model,
        data=findings.data,
        CHALLENGER=CHALLENGER,
        CHAMPION=CHAMPION,
        UNCALIBRATED=UNCALIBRATED,
        columns=[
            column for column in _METRICS if any(_defined(cell, column[0]) for cell in judged.judgements)
        ],
        tables=[
            ("Cells", "A cell is one scenario and one task.", cells),
            ("Slices", "Rows with a value of a column, over all scenarios.", list(judged.of_kind("slice"))),
            ("Means", "Over the cells in which a metric is defined, all cells alike.", others),
        ],
        strips=_strips(judged, findings.margin),
        num_cells=len(cells),
        drawn=len(drawn),
        rocs=_charts(charts.roc, drawn, "roc", _roc_words),
        reliabilities=_charts(charts.reliability, drawn, "reliability", _reliability_words),
        scores=[chart for cell in drawn if (chart := _scores(cell)) is not None],
        calibrated=any(UNCALIBRATED in cell.measures for cell in cells),
        learning=_learning(findings.run, names),
        loss=_loss(findings.run),
        strongest=_strongest(findings.model),
        readable=READABLE_ATTENTION,
        most_gates=MOST_GATES,
        splits=_splits(findings.run, [name for name, _ in groupby(scenario for scenario, _ in names)]),
    )


def file_name(model: str, version: str) -> str:
    """``<model>-<version>.html``, of characters that every file system takes."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', model)}-{version}.html"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=lambda value: f"{value:,}",
        number=lambda value, decimals=4: "–" if value is None else f"{value:.{decimals}f}",
        signed=lambda value: "–" if value is None else f"{value:+.4f}".replace("-", "−"),
        time=lambda text: datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return environment


def _defined(cell: Judgement, metric: str) -> bool:
    return any(
        of_model[metric].value is not None for of_model in cell.measures.values() if metric in of_model
    )


def _strips(judged: Evaluation, margin: float) -> dict[str, charts.Strip]:
    """The axes of the AUC's and of the change's intervals."""
    aucs = [one.measure(CHALLENGER, "auc") for one in judged.judgements]
    aucs += [one.measure(CHAMPION, "auc") for one in judged.judgements]
    changes = [one.differences.get("auc", Measure(None)) for one in judged.judgements]

    def ends(measures: Sequence[Measure]) -> list[float | None]:
        return [value for one in measures for value in (one.value, one.low, one.high)]

    return {
        "auc": charts.Strip.of(ends(aucs)),
        "change": charts.Strip.of(ends(changes), (-margin, 0.0)),
    }


def _drawn(cells: Sequence[Judgement], decision: Decision) -> list[Judgement]:
    """The cells whose curves are shown: all, or those refused first, then the largest."""
    if len(cells) <= MOST_CHARTS:
        return list(cells)
    refused = {name for one in decision.comparisons if one.verdict == "refused" for name in one.cells}
    first = sorted(cells, key=lambda cell: (cell.name not in refused, -cell.rows))[:MOST_CHARTS]
    return [cell for cell in cells if cell in first]


def _charts(draw: Any, cells: Sequence[Judgement], kind: str, words: Any) -> list[charts.Chart]:
    found = []
    for cell in cells:
        curves = {model: of_model.get(kind, ()) for model, of_model in cell.curves.items()}
        # The ranks before calibration are those after it, within a cell.
        if kind == "roc":
            curves.pop(UNCALIBRATED, None)
        chart = draw(_title(cell), curves, words(cell))
        if chart is not None:
            found.append(chart)
    return found


def _title(cell: Judgement) -> str:
    return f"{cell.scenario} · {cell.task}"


def _each(cell: Judgement, metric: str) -> str:
    said = [
        f"{model} {of_model[metric].value:.4f}"
        for model, of_model in cell.measures.items()
        if metric in of_model and of_model[metric].value is not None
    ]
    return ", ".join(said) or "not defined"


def _roc_words(cell: Judgement) -> str:
    return f"ROC curve of scenario {cell.scenario}, task {cell.task}. AUC: {_each(cell, 'auc')}."


def _reliability_words(cell: Judgement) -> str:
    return (
        f"Reliability of scenario {cell.scenario}, task {cell.task}. Expected calibration error: {_each(cell, 'ece')}; "
        f"predicted over observed positives: {_each(cell, 'pcoc')}."
    )


def _scores(cell: Judgement) -> charts.Chart | None:
    steps = cell.curves.get(CHALLENGER, {}).get("scores", ())
    words = (
        f"Scores of the challenger in scenario {cell.scenario}, task {cell.task}: {cell.rows - cell.positives:,} "
        f"negatives and {cell.positives:,} positives."
    )
    return charts.scores(_title(cell), steps, words)


def _learning(run: RunFacts, names: Sequence[tuple[str, str]]) -> list[charts.Chart]:
    found = []
    for scenario, task in [name for name in names if name in run.curves][:MOST_CHARTS]:
        points = run.curves[scenario, task]
        of_task = [value for (_, other), line in run.curves.items() if other == task for _, value in line]
        best = max(points, key=lambda point: point[1])
        words = (
            f"Validation AUC of scenario {scenario}, task {task}, over {len(points)} epochs: best {best[1]:.4f} in "
            f"epoch {best[0]:.0f}, last {points[-1][1]:.4f}."
        )
        chart = charts.learning(
            f"{scenario} · {task}", points, charts.span_of(of_task), max(2.0, points[-1][0]), words
        )
        if chart is not None:
            found.append(chart)
    return found


def _loss(run: RunFacts) -> charts.Chart | None:
    if not run.loss:
        return None
    values = [value for _, value in run.loss]
    frame = charts.Frame((1.0, max(2.0, run.loss[-1][0])), charts.span_of(values))
    words = f"Training loss over {len(values)} epochs: first {values[0]:.4f}, last {values[-1]:.4f}."
    line = frame.line("challenger", run.loss, dots=True)
    return frame.chart("training loss, all cells", words, [line], "epoch", "training loss")


def _strongest(model: ModelFacts | None) -> list[tuple[str, list[tuple[str, float]]]]:
    """Of each scenario those that it listens to most."""
    if model is None or model.attention is None:
        return []
    return [
        (
            scenario,
            sorted(zip(model.scenarios, row, strict=True), key=lambda pair: -pair[1])[:_STRONGEST],
        )
        for scenario, row in zip(model.scenarios, model.attention, strict=True)
    ]


def _splits(run: RunFacts, scenarios: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Scenario -> rows in each split, in the order of `RunFacts.split_rows`."""
    if any(len(rows) != len(scenarios) for rows in run.split_rows.values()):
        return []
    return [
        (scenario, [rows[place] for rows in run.split_rows.values()])
        for place, scenario in enumerate(scenarios)
        if run.split_rows
    ]
