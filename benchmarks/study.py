"""Studies on MovieLens: many short trainings, one core each, that answer one question about quality.

examples:
    python -m benchmarks.study models --processes 2
    python -m benchmarks.study models --variants mmoe ple
    python -m benchmarks.study models --report

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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.machine import enter_malloc
from benchmarks.trial import run_trial
from feature_eng import delta
from feature_eng.session import build_session
from hinet_model.models.build import REGISTRY

CONFIG = "conf/train/movielens_1m.yml"
RANDOM = "local/warehouse/movielens_1m_random_1/training"
OCCUPATION = "local/warehouse/movielens_1m_occupation/training"
RESULTS = Path(__file__).with_name("studies.jsonl")
SMALL_DATA = "local/warehouse/movielens/training"
SEARCH_SEED = 0

Overrides = Sequence[str]
"""Settings as ``key=value``."""


@dataclass(frozen=True)
class Study:
    """What is compared with what.

    Args:
        asks: The question.
        table: Training table that all variants read.
        variants: Settings by name.
        candidates: For each variant, settings by name to choose among; a single one is not searched.
        search: Settings of the search's trials.
        final: Settings of the trials that are compared.
        seeds: Of the latter.
    """

    asks: str
    table: str
    variants: Mapping[str, Overrides]
    candidates: Mapping[str, Mapping[str, Overrides]] = field(default_factory=dict)
    search: Overrides = ()
    final: Overrides = ()
    seeds: tuple[int, ...] = (1, 2, 3)


def _dropout(model: str, rate: float) -> list[str]:
    """Dropout in the first experts a row meets, whatever they are called in the model."""
    first = "dropout" if "dropout" in REGISTRY[model].keys else "expert_dropout"
    return [f"model.{key}={rate if key == first else 0.0}" for key in ("dropout", "expert_dropout")]


def _model_candidates(model: str) -> dict[str, Overrides]:
    """Six settings of learning rate, dropout, and L2 penalty on the embedding table."""

    def one(rate: float, dropout: float, l2: float) -> Overrides:
        return [f"optimiser.learning_rate={rate}", f"optimiser.table_l2={l2}", *_dropout(model, dropout)]

    six = [
        (1e-3, 0.0, 1e-5),
        (1e-3, 0.2, 1e-5),
        (1e-3, 0.0, 3e-5),
        (1e-3, 0.2, 3e-5),
        (2e-3, 0.2, 1e-5),
        (5e-4, 0.0, 1e-5),
    ]
    return {f"rate {rate:g} dropout {drop:g} l2 {l2:g}": one(rate, drop, l2) for rate, drop, l2 in six}


# In the order in which a reader would want them, should the time not reach for all.
_MODELS = (
    "hinet",
    "shared_bottom",
    "mmoe",
    "ple",
    "star",
    "hmoe",
    "m3oe",
    "pepnet",
    "aitm",
    "cross_stitch",
    "flat_moe",
    "single",
)
_NORMALISED = ["model.normalisation=scenario"]
_OF_MODEL = {
    "star": [],  # has that normalisation by itself
    "ple": [*_NORMALISED, "model.shared_experts=1", "model.specific_experts=1"],
    "pepnet": [*_NORMALISED, 'model.prior_features=["user_id", "movie_id"]'],
    "aitm": [*_NORMALISED, "loss.calibrator_weight=0.6"],
}
_SMALL = ["model.sub_experts=2", "model.sub_expert_dims=[64, 32]", "model.expert_dims=[64, 32]"]
_TOP = "model.scenario_attention=top_k"

STUDIES: dict[str, Study] = {
    "models": Study(
        asks="HiNet against all other joint models, 3 scenarios by age, random split, all with scenario normalisation",
        table=RANDOM,
        variants={name: [f"model.name={name}", *_OF_MODEL.get(name, _NORMALISED)] for name in _MODELS},
        candidates={name: _model_candidates(name) for name in _MODELS},
        search=["training.epochs=1", "training.average_epochs=0"],
        final=["training.epochs=3", "training.average_epochs=2"],
    ),
    "top_k": Study(
        asks="what listening to fewer of 21 scenarios (by occupation) costs",
        table=OCCUPATION,
        variants={
            "full": _SMALL,
            **{f"top {k}": [*_SMALL, _TOP, f"model.top_k={k}"] for k in (4, 2, 1)},
            "none": [*_SMALL, "model.scenario_attention=none"],
        },
        final=["training.epochs=3", "training.average_epochs=2"],
    ),
    "top_1_of_3": Study(
        asks="what listening to one of the two other scenarios costs",
        table=RANDOM,
        variants={"full": _SMALL, "top 1": [*_SMALL, _TOP, "model.top_k=1"]},
        final=["training.epochs=3", "training.average_epochs=2"],
    ),
    "table_optimiser": Study(
        asks="lazy Adam and row-wise Adagrad against dense Adam on the embedding table",
        table=RANDOM,
        variants={"dense_adam": _SMALL, "adam": _SMALL, "adagrad": _SMALL},
        candidates={
            "adam": {
                f"rate {rate:g} l2 {l2:g}": [
                    "optimiser.table=adam",
                    f"optimiser.table_learning_rate={rate}",
                    f"optimiser.table_l2={l2}",
                ]
                for rate, l2 in ((1e-3, 1e-5), (1e-3, 3e-5), (5e-4, 3e-5))
            },
            "adagrad": {
                f"rate {rate:g} l2 {l2:g}": [
                    "optimiser.table=adagrad",
                    f"optimiser.table_learning_rate={rate}",
                    f"optimiser.table_l2={l2}",
                ]
                for rate, l2 in ((0.03, 1e-5), (0.1, 1e-5), (0.1, 1e-4))
            },
        },
        search=["training.epochs=2", "training.average_epochs=1"],
        final=["training.epochs=3", "training.average_epochs=2"],
    ),
    "precision": Study(
        asks="bf16 autocast against fp32, MovieLens-100K",
        table=SMALL_DATA,
        variants={
            "fp32": [*_SMALL, "training.precision=fp32"],
            "bf16": [*_SMALL, "training.precision=bf16"],
        },
        final=["training.epochs=3", "training.average_epochs=0", "training.batch_size=1024"],
        seeds=(1, 2, 3, 4, 5),
    ),
}


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


def report(name: str, study: Study, results: _Results) -> str:
    """The compared variants as a table in Markdown; variants that have not ended are left out."""
    lines = [
        f"{study.asks}: mean test AUC of all cells",
        "",
        "| variant | chosen | seeds | mean ± half of the 95 % interval over seeds "
        "| dense parameters | rows/s | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant in study.variants:
        candidate = _chosen(name, study, variant, results)
        outcomes = (
            [results.of(trial) for trial in _finals(name, study, variant, candidate)] if candidate else []
        )
        found = [one for one in outcomes if one is not None]
        if found:
            tests = [one["test"] for one in found]
            lines.append(
                f"| {variant} | {candidate} | {' '.join(f'{value:.4f}' for value in tests)} "
                f"| {statistics.fmean(tests):.4f} ± {half_width(tests):.4f} | {found[0]['dense_parameters']:,} "
                f"| {statistics.median(one['rows_per_second'] for one in found):,.0f} "
                f"| {max(one['peak_memory_mib'] for one in found):,.0f} |"
            )
    return "\n".join(lines)


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


if __name__ == "__main__":
    main()
