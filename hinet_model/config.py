"""The sections of a training run's settings, but for the model's: what they may say, and what it means.

Every section is frozen, refuses unknown keys, and checks its own ranges. A run's settings as a whole are
`hinet_model.settings.RunSettings`; the section of a model stands in the model's file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from foundation import stores
from foundation.names import DottedName
from foundation.settings import Settings


def _usable_place(text: str) -> str:
    stores.normalised(text)  # raises for a store that is not supported
    return text


#: A path, or the URI of a store that `foundation.stores` knows.
Place = Annotated[str, Field(min_length=1), AfterValidator(_usable_place)]


def _local_place(text: str) -> str:
    if not stores.is_local(text):
        raise ValueError(f"{text} is on an object store; expected a path on this machine")
    return text


#: A path on a local or mounted disk.
LocalPlace = Annotated[Place, AfterValidator(_local_place)]

#: How scenario weights are formed; the arithmetic is in `hinet_model.objective.losses`.
LossScheme = Literal["proportion", "uniform", "sqrt", "fixed"]

#: How task weights move during training; the arithmetic is in `hinet_model.objective.balance`.
Balance = Literal["none", "uncertainty", "dwa", "gradnorm", "pcgrad"]


class DataSettings(Settings):
    """Which training table, and which version of it, the run reads."""

    table: Place = "local/warehouse/movielens/training"
    """Delta table written by `jobs/build_features.py`: a path or URI, or a path below `warehouse`."""
    version: int | None = Field(default=None, ge=0)
    """Version of the table; null pins the newest one at the start of the run."""
    warehouse: Place | None = None
    """Path or URI that a relative `table` is looked up in; null means the current directory."""

    @property
    def location(self) -> str:
        """Place of the training table, below the warehouse where one is given."""
        return stores.beside(self.table, self.warehouse)


class LossSettings(Settings):
    """How the cross-entropies of scenarios and tasks are weighed against each other."""

    scheme: LossScheme = "proportion"
    """proportion: scenario i weighs its share of the training rows; sqrt: the root of it; uniform: all weigh
    1/M; fixed: as `scenario_weights` says."""
    scenario_weights: dict[str, Annotated[float, Field(ge=0.0)]] = Field(default={})
    """Weight alpha_i per scenario name for `scheme: fixed`, which must name all; scaled to a sum of 1."""
    task_weights: dict[str, Annotated[float, Field(ge=0.0)]] = Field(default={})
    """Weight beta_j per task name; a task that is not named weighs 1."""
    calibrator_weight: float = Field(default=0.0, ge=0.0)
    """Weight of the behavioural expectation calibrator (AITM, KDD 2021): what a task's probability is above that
    of the task before it in the contract, which must be one that it presupposes. 0 leaves it out."""
    balance: Balance = "none"
    """What else multiplies the tasks' losses, and moves: uncertainty (CVPR 2018), dwa (dynamic weight average,
    CVPR 2019), gradnorm (ICML 2018); pcgrad (NeurIPS 2020) projects conflicting gradients instead. The last
    two take one backward pass per task."""
    balance_rate: float = Field(default=0.01, gt=0.0)
    """Step of the weights themselves (uncertainty, gradnorm)."""
    dwa_temperature: float = Field(default=2.0, gt=0.0)
    """Temperature of dwa's softmax; higher is more even."""
    gradnorm_alpha: float = Field(default=1.5, ge=0.0)
    """How strongly gradnorm favours tasks that learn slowly; 0 evens out the norms."""

    @model_validator(mode="after")
    def _weights_where_fixed(self) -> LossSettings:
        if (self.scheme == "fixed") != bool(self.scenario_weights):
            raise ValueError("scenario_weights and scheme: fixed need each other")
        return self


class OptimiserSettings(Settings):
    """Optimisers of the dense parameters and of the embedding table."""

    learning_rate: float = Field(default=1e-3, gt=0.0)
    """Adam's rate for every parameter except the embedding table."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates, for the dense parameters and the table."""
    epsilon: float = Field(default=1e-8, gt=0.0)
    """Added to Adam's denominator (dense parameters and table)."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Decoupled weight decay (AdamW) of the dense parameters."""
    clip_norm: float | None = Field(default=None, gt=0.0)
    """Largest norm of the dense gradient; null leaves it as it is."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How both rates fall over the run's steps: not at all, or to `final_rate`."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which both rates rise from zero."""
    final_rate: float = Field(default=0.0, ge=0.0, le=1.0)
    """What a falling schedule ends at, as a share of the full rate."""
    table: Literal["adam", "adagrad", "dense_adam"] = "adam"
    """adam: lazy Adam on the batch's rows; adagrad: row-wise; dense_adam: every row, every step
    (small tables only: the step's cost follows the table, not the batch)."""
    table_learning_rate: float | None = Field(default=None, gt=0.0)
    """Rate of the embedding table; null takes `learning_rate`."""
    table_l2: float = Field(default=0.0, ge=0.0)
    """L2 penalty: this times the row is added to its gradient; on the batch's rows with adam and
    adagrad, on every row with dense_adam."""
    table_weight_decay: float = Field(default=0.0, ge=0.0)
    """Decoupled decay of embedding rows; that of steps which a row was not in is applied when it is next read."""

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError("both must be at least 0 and below 1")
        return betas

    @model_validator(mode="after")
    def _one_decay(self) -> OptimiserSettings:
        if self.table == "dense_adam" and self.table_weight_decay > 0:
            raise ValueError("table_weight_decay needs table: adam or adagrad; dense_adam takes table_l2")
        return self


class TrainingSettings(Settings):
    """Epochs, batches, workers: the shape of the run."""

    epochs: int = Field(default=8, ge=1)
    """Passes over the training split."""
    batch_size: int = Field(default=4096, ge=1)
    """Rows of a GLOBAL batch: the same for any number of workers."""
    lanes: int = Field(default=8, ge=1)
    """Virtual lanes of the epoch plan; `workers` must divide them."""
    workers: int = Field(default=2, ge=1)
    """Horovod processes, one Spark task each."""
    seed: int = Field(default=0, ge=0)
    """Seeds the initial weights, the order of rows, and dropout."""
    window_rows: int = Field(default=65536, ge=1)
    """Rows of a lane that are shuffled together, held in memory at a time."""
    log_every_steps: int = Field(default=20, ge=1)
    """Steps between two progress reports of a worker."""
    table: Literal["replicated", "sharded"] = "replicated"
    """replicated: every worker holds the whole embedding table; sharded: each holds and trains every
    `workers`-th row, and rows travel to the batches that need them: for tables beyond one worker's memory
    (not the driver's: the model is exported whole). Not with `loss.balance: gradnorm` or `pcgrad`."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrix products in bfloat16 (autocast), weights and sums in fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU that the Spark task was given, else the CPU."""
    threads_per_worker: int | None = Field(default=None, ge=1)
    """Intra-operation threads; null takes the cores that the worker really has."""
    validate_every_epochs: int = Field(default=1, ge=1)
    """Epochs between two passes over the validation split."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many validations without a better mean AUC; null never stops early."""
    average_epochs: int = Field(default=0, ge=0)
    """Last epochs over whose ends the weights are averaged; what is then validated, and kept as the
    model, is the mean so far. 0 averages nothing."""
    restarts: int = Field(default=3, ge=0)
    """How often a run goes on by itself from its last checkpoint after a worker was lost or hung; a fault that a worker
    raises ends it in any case."""
    max_steps: int | None = Field(default=None, ge=1)
    """End after this many steps in all (trials); null runs every epoch whole."""
    profile_steps: int = Field(default=0, ge=0)
    """Steps to record, after the first five, in `trace-rank-<rank>.json` beside each worker's log, which
    chrome://tracing and Perfetto show. 0 records nothing."""

    @model_validator(mode="after")
    def _workers_divide_lanes(self) -> TrainingSettings:
        if self.lanes % self.workers:
            raise ValueError(f"workers ({self.workers}) must divide lanes ({self.lanes})")
        if self.batch_size < self.lanes:
            raise ValueError(f"batch_size ({self.batch_size}) must be at least lanes ({self.lanes})")
        return self


class CheckpointSettings(Settings):
    """Where the run's state is kept, and how much of it."""

    folder: Place = "local/checkpoints"
    """Path or URI of all runs' checkpoints; each run has a folder of its own below it."""
    scratch: LocalPlace | None = None
    """Local folder for what cannot lie on an object store: the workers' logs, what waits for MLflow, a model on its
    way there. null: `folder` where that is local, else local/runs."""
    every_epochs: int = Field(default=1, ge=1)
    """Epochs between two checkpoints; the best epoch's and the last are written in any case."""
    every_steps: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints, in the midst of epochs too; null: whatever the number of steps."""
    every_minutes: float | None = Field(default=15.0, gt=0.0)
    """Longest time between two checkpoints, which is the most that a lost worker costs; null: however long it takes."""
    background: bool = True
    """true: training goes on while a checkpoint is written, from a copy of the state in the host's memory; false:
    training waits, and needs no second copy."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept, the best one not counted."""

    @property
    def local_folder(self) -> Path:
        """Local folder of all runs; absolute, since workers do not start in the driver's folder."""
        if self.scratch is None and stores.is_local(self.folder):
            return Path(stores.normalised(self.folder))
        return Path(stores.normalised(self.scratch or "local/runs"))


class MlflowSettings(Settings):
    """Where runs, metrics and models are recorded."""

    tracking_uri: str = Field(default="sqlite:///local/mlflow/mlflow.db", min_length=1)
    """MLflow's tracking store; the driver alone talks to it."""
    experiment: str = Field(default="hinet", min_length=1)
    """Experiment that the run belongs to."""
    registered_model: DottedName = "hinet"
    """Name that the model is registered under."""
    artifact_location: str | None = "local/mlflow/artifacts"
    """Folder or URI of artifacts, used when the experiment is created; null leaves it to the server."""
    run_name: str | None = None
    """Name shown for the run; null lets MLflow choose."""


class WatchdogSettings(Settings):
    """When a silent worker is given up."""

    heartbeat_seconds: float = Field(default=2.0, gt=0.0)
    """Time between two heartbeats that a worker sends."""
    stall_seconds: float = Field(default=120.0, gt=0.0)
    """Longest time without a sign of life within a step: a worker beyond it, or all workers when each waits for the
    others, end the run with their stacks. One that waits for a peer at work is not meant."""
    start_seconds: float = Field(default=300.0, gt=0.0)
    """The same until all workers have started, and until the first batch of an epoch is loaded."""
    checkpoint_seconds: float = Field(default=300.0, gt=0.0)
    """The same while a checkpoint is written, hashed or read; every 8 MiB are a sign of life."""
    judge_seconds: float = Field(default=600.0, gt=0.0)
    """The same while scores of a validation are gathered and judged; every batch before is a step."""
    reconnect_seconds: float = Field(default=60.0, gt=0.0)
    """Time that a worker whose connection to the driver broke has to come back, before it counts as lost."""

    @model_validator(mode="after")
    def _beats_before_stalling(self) -> WatchdogSettings:
        if self.heartbeat_seconds >= self.stall_seconds:
            raise ValueError("heartbeat_seconds must be below stall_seconds")
        return self
