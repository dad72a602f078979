"""Questions that studies answer: which settings are compared, on which table, with what budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hinet_model.models.registry import REGISTRY

RANDOM = "local/warehouse/movielens_1m_random_1/training"
OCCUPATION = "local/warehouse/movielens_1m_occupation/training"
SMALL_DATA = "local/warehouse/movielens/training"

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
    keys = [key for key in ("dropout", "expert_dropout") if key in REGISTRY[model].settings.model_fields]
    return [f"model.{key}={rate if key == keys[0] else 0.0}" for key in keys]


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
        variants={name: [f"model={{name: {name}}}", *_OF_MODEL.get(name, _NORMALISED)] for name in _MODELS},
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
