"""Studies on MovieLens: many short trainings, one core each, that answer one question about quality.

examples:
    python -m benchmarks.study models --processes 2
    python -m benchmarks.study models --variants mmoe ple
    python -m benchmarks.study models --report --figure models.svg

Every trial is one line of ``benchmarks/studies.jsonl``, and one that is there already is not run again: a study that
was stopped goes on where it was. A variant's candidates are searched with one seed by validation AUC, the best is
trained once per seed; the test split is looked at only then. All trials of a study read one table, made by

    python jobs/build_features.py --contract conf/contracts/movielens_1m.yml --source FOLDER \\
        --warehouse local/warehouse --set name=movielens_1m_random_1 --set split.seed=1
    python jobs/build_features.py --contract benchmarks/movielens_1m_occupation.yml --source FOLDER \\
        --warehouse local/warehouse
    python jobs/build_features.py --contract conf/contracts/movielens.yml
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from scipy import stats

from benchmarks.machine import enter_malloc
from benchmarks.questions import STUDIES, Overrides, Study
from benchmarks.trial import run_trial
from feature_eng import delta
from foundation.session import build_session

CONFIG = "conf/train/movielens_1m.yml"
RESULTS = Path(__file__).with_name("studies.jsonl")
BENCHMARKS = Path(__file__).with_name("results.json")
SEARCH_SEED = 0


@dataclass(frozen=True)
class _Trial:
    study: str
    variant: str
    candidate: str
    seed: int
    overrides: tuple[str, ...]
    tested: bool

    def key(self, table: str) -> dict[str, Any]:
        """What makes two trials the same, as it stands in the results."""
        return {"table": table, "overrides": list(self.overrides), "tested": self.tested}


class _Results:
    """The trials that were run, in a file of one line each."""

    def __init__(self, path: Path, table: str) -> None:
        self._path = path
        self._table = table
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._found = [json.loads(line) for line in lines]

    def of(self, trial: _Trial) -> dict[str, Any] | None:
        """What a trial gave, None if it was not run."""
        key = trial.key(self._table)
        return next((one for one in self._found if all(one[k] == v for k, v in key.items())), None)

    def add(self, trial: _Trial, outcome: Mapping[str, Any]) -> None:
        """Keep what a trial gave."""
        who = {
            "study": trial.study,
            "variant": trial.variant,
            "candidate": trial.candidate,
            "seed": trial.seed,
        }
        line = {**who, **trial.key(self._table), **outcome}
        self._found.append(line)
        with self._path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")


def _candidates(study: Study, variant: str) -> Mapping[str, Overrides]:
    return study.candidates.get(variant, {"as configured": ()})


def _searches(name: str, study: Study, variant: str) -> list[_Trial]:
    """The trials that choose a variant's settings; none where there is no choice."""
    candidates = _candidates(study, variant)
    if len(candidates) < 2:
        return []
    return [
        _Trial(
            name,
            variant,
            candidate,
            SEARCH_SEED,
            (*study.variants[variant], *overrides, *study.search, f"training.seed={SEARCH_SEED}"),
            tested=False,
        )
        for candidate, overrides in candidates.items()
    ]


def _chosen(name: str, study: Study, variant: str, results: _Results) -> str | None:
    """The candidate with the best validation, None while some of its trials are missing."""
    trials = _searches(name, study, variant)
    if not trials:
        return next(iter(_candidates(study, variant)))
    outcomes = {trial.candidate: results.of(trial) for trial in trials}
    if None in outcomes.values():
        return None
    return max(outcomes, key=lambda candidate: max((outcomes[candidate] or {})["validation"]))


def _finals(name: str, study: Study, variant: str, candidate: str) -> list[_Trial]:
    overrides = (*study.variants[variant], *_candidates(study, variant)[candidate], *study.final)
    return [
        _Trial(name, variant, candidate, seed, (*overrides, f"training.seed={seed}"), tested=True)
        for seed in study.seeds
    ]


def _missing(trials: Iterable[_Trial], results: _Results) -> list[_Trial]:
    return [trial for trial in trials if results.of(trial) is None]


def _stages(name: str, study: Study, results: _Results) -> Iterator[list[_Trial]]:
    """Batches of trials that can run side by side: each variant's search, then its final trials."""
    for variant in study.variants:
        yield _missing(_searches(name, study, variant), results)
        candidate = _chosen(name, study, variant, results)
        assert candidate is not None, "the search has just ended"
        yield _missing(_finals(name, study, variant, candidate), results)


def run(name: str, study: Study, results: _Results, snapshot_json: str, processes: int) -> None:
    """Run what is missing of a study."""
    # A process per trial, so that its peak of memory is its own.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool:
        for trials in _stages(name, study, results):
            begun = time.monotonic()
            waiting = {
                pool.submit(run_trial, snapshot_json, CONFIG, list(trial.overrides), trial.tested): trial
                for trial in trials
            }
            for done in as_completed(waiting):
                trial, outcome = waiting[done], done.result()
                results.add(trial, outcome)
                sys.stdout.write(
                    f"{trial.variant}, {trial.candidate}, seed {trial.seed}: validation "
                    f"{max(outcome['validation']):.4f}, {outcome['rows_per_second']:,.0f} rows/s, "
                    f"{time.monotonic() - begun:.0f} s\n"
                )
                sys.stdout.flush()


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean over seeds (Student's t); NaN for fewer than two."""
    if len(values) < 2:
        return math.nan
    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


@dataclass(frozen=True)
class _Row:
    """What the final trials of a variant gave, seed by seed."""

    variant: str
    candidate: str
    outcomes: list[dict[str, Any]]

    @property
    def tests(self) -> list[float]:
        """Mean test AUC of each seed."""
        return [one["test"] for one in self.outcomes]


def _rows(name: str, study: Study, results: _Results) -> list[_Row]:
    """The variants that were trained, best first."""
    rows = []
    for variant in study.variants:
        candidate = _chosen(name, study, variant, results)
        if candidate is None:
            continue
        outcomes = [results.of(trial) for trial in _finals(name, study, variant, candidate)]
        found = [one for one in outcomes if one is not None]
        if found:
            rows.append(_Row(variant, candidate, found))
    return sorted(rows, key=lambda row: -statistics.fmean(row.tests))


def _measured_side_by_side() -> dict[str, float]:
    """Rows per second of each model as the last ``make bench`` on record measured them in turn."""
    raw = json.loads(BENCHMARKS.read_text(encoding="utf-8"))["raw"]
    rates: dict[str, float] = raw.get("model_throughput", {}).get("rows_per_second", {})
    return rates


def report(name: str, study: Study, results: _Results) -> str:
    """The compared variants as a table in Markdown, best first; what was not trained is left out.

    Rows per second of models are those of ``make bench``: trials run beside each other, at whatever pace that leaves.
    """
    rates = _measured_side_by_side()
    lines = [
        f"{study.asks}: mean test AUC of all cells",
        "",
        "| variant | chosen | seeds | mean ± half of the 95 % interval over seeds "
        "| dense parameters | rows/s | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in _rows(name, study, results):
        rate = f"{rates[row.variant]:,.0f}" if row.variant in rates else "-"
        lines.append(
            f"| {row.variant} | {row.candidate} | {' '.join(f'{value:.4f}' for value in row.tests)} "
            f"| {statistics.fmean(row.tests):.4f} ± {half_width(row.tests):.4f} "
            f"| {row.outcomes[0]['dense_parameters']:,} "
            f"| {rate} "
            f"| {max(one['peak_memory_mib'] for one in row.outcomes):,.0f} |"
        )
    return "\n".join(lines)


def draw(name: str, study: Study, results: _Results) -> Figure:
    """The same as a picture: each seed a dot, each mean a bar with its 95 % interval, best on top."""
    rows = _rows(name, study, results)[::-1]
    figure = Figure(figsize=(7.0, 1.0 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for height, row in enumerate(rows):
        mean, reach = statistics.fmean(row.tests), half_width(row.tests)
        axes.plot([mean - reach, mean + reach], [height, height], color="#9aa5b1", linewidth=5, alpha=0.6)
        axes.plot(row.tests, [height] * len(row.tests), "o", color="#0072B2", markersize=4)
        axes.plot([mean], [height], "|", color="black", markersize=12)
    axes.set_yticks(range(len(rows)), [row.variant for row in rows])
    axes.set_xlabel("mean test AUC of all cells: seeds, their mean and its 95 % interval")
    axes.grid(axis="x", color="#e6e8eb")
    axes.set_axisbelow(True)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--processes", type=int, default=1, help="trials side by side, a core each")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="run only these; all if left out")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--report", action="store_true", help="print the table of what was run, and run nothing"
    )
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the table too (.svg, .png)")
    given = parser.parse_args()
    study = STUDIES[given.study]
    unknown = set(given.variants or ()) - study.variants.keys()
    if unknown:
        parser.error(
            f"--variants: no {', '.join(sorted(unknown))}; expected some of {', '.join(study.variants)}"
        )
    if given.variants:
        study = replace(study, variants={name: study.variants[name] for name in given.variants})
    results = _Results(given.results, study.table)
    if not given.report:
        enter_malloc("keep")
        spark = build_session("study")
        snapshot = delta.snapshot(spark, study.table)
        spark.stop()
        run(given.study, study, results, snapshot.to_json(), given.processes)
    sys.stdout.write(report(given.study, study, results) + "\n")
    if given.figure:
        draw(given.study, study, results).savefig(given.figure)


if __name__ == "__main__":
    main()
