"""The workload of the model's benchmarks: sizes, random batches, and who takes the steps.

A step of ours is a step of `hinet_model.training.loop.Trainer` in a world of one: rows of the embedding table gathered
for the batch's distinct ids, forward, loss, backward, fused Adam on the dense parameters, lazy Adam on the rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.reference import PlainBatch, ReferenceHiNet, copy_weights, reference_loss
from hinet_model.data.batch import Batch, BatchLayout
from hinet_model.models.build import build_model
from hinet_model.models.hinet import HiNet, HiNetSettings, HiNetSizes, hinet_sizes
from hinet_model.models.model import ScenarioModel
from hinet_model.settings import RunSettings
from hinet_model.training.assemble import DataShape, build_parts
from hinet_model.training.control.reports import ReportList
from hinet_model.training.control.watchdog import Progress
from hinet_model.training.dist.world import LocalWorld
from hinet_model.training.loop import StepOptions, Trainer

NUM_FIELDS, NUM_TASKS = 20, 2

GOAL_MODEL = HiNetSettings(
    embedding_dim=16,
    embedding_std=1.0,
    sub_experts=5,
    sub_expert_dims=[128, 64],
    shared_experts=2,
    specific_experts=2,
    expert_dims=[128, 64],
    tower_dims=[128, 64],
)
"""The sizes that the goals are stated for: 20 ids of width 16 make 320 inputs; no dropout.

(Embeddings start wide, so that rows' logits differ, and a reference that mixed them up would be seen.)
"""

TOP_FOUR = GOAL_MODEL.model_copy(update={"scenario_attention": "top_k", "top_k": 4})
"""The same, listening to four other scenarios."""


def make_layout(num_scenarios: int, table_rows: int, num_fields: int = NUM_FIELDS) -> BatchLayout:
    """Id features of one slot each, with equal vocabularies that are ``table_rows`` together."""
    names = [f"id_{number}" for number in range(num_fields)]
    size = table_rows // num_fields
    return BatchLayout.from_schema(
        {
            "fields": [
                {"name": n, "kind": "index", "slots": 1, "size": size, "columns": [n], "shares": None}
                for n in names
            ],
            "scenario_names": [f"s{i}" for i in range(num_scenarios)],
            "task_names": [f"t{j}" for j in range(NUM_TASKS)],
        }
    )


def zipf_scenarios(rng: np.random.Generator, rows: int, num_scenarios: int) -> npt.NDArray[np.int32]:
    """The scenario of each row: the i-th has a share that goes with 1/i, and one row at least."""
    share = 1.0 / np.arange(1, num_scenarios + 1)
    drawn = rng.choice(num_scenarios, size=rows - num_scenarios, p=share / share.sum())
    scenario = np.concatenate([np.arange(num_scenarios), drawn]).astype(np.int32)
    return rng.permutation(scenario)


def make_batches(
    layout: BatchLayout, rows: int, count: int, seed: int, distinct: int | None = None
) -> list[Batch]:
    """Random batches.

    Args:
        layout: Features, scenarios and tasks.
        rows: Rows of a batch.
        count: Number of batches.
        seed: Of all random numbers.
        distinct: Ids of each feature in a batch, drawn anew for each batch, uniformly over the feature's rows
            of the table; all of them occur. None draws every row's id by itself.
    """
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(count):
        columns: dict[str, npt.NDArray[np.generic]] = {
            "scenario_index": zipf_scenarios(rng, rows, layout.num_scenarios)
        }
        for field in layout.slot_fields:
            if distinct is None:
                ids = rng.integers(0, field.size, rows)
            else:
                chosen = rng.choice(field.size, size=distinct, replace=False, shuffle=False)
                ids = rng.permutation(np.resize(chosen, rows))
            columns[field.columns[0]] = ids.astype(np.int32)
        for name in layout.label_columns:
            columns[name] = rng.integers(0, 2, rows).astype(np.float32)
        batches.append(layout.to_batch(columns)[0])
    return batches


def sizes_of(settings: HiNetSettings, layout: BatchLayout) -> HiNetSizes:
    """Plain sizes of the settings' HiNet."""
    return hinet_sizes(settings, layout.scenario_names, layout.task_names)


def build_ours(settings: HiNetSettings, layout: BatchLayout) -> HiNet:
    """Our model with its starting weights."""
    model = build_model(settings, layout, seed=0)
    assert isinstance(model, HiNet)
    return model


def build_reference(ours: HiNet, sizes: HiNetSizes, layout: BatchLayout) -> ReferenceHiNet:
    """The reference with the weights of ours."""
    dim = ours.embedding.dim
    reference = ReferenceHiNet(sizes, layout.num_embeddings, dim, len(layout.slot_fields))
    copy_weights(ours, reference)
    return reference


def largest_difference(ours: HiNet, reference: ReferenceHiNet, batch: Batch) -> float:
    """How far apart the two models' logits are at most, on rows that both have never seen."""
    plain = PlainBatch.of(batch)
    with torch.no_grad():
        return float((ours(batch) - reference(plain.ids, plain.scenario)).abs().max())


class OwnSteps:
    """Takes steps of ours; the precision may be changed between steps.

    Args:
        model: Trained in place.
        layout: Its scenarios and tasks.
        batches: Taken in turn, again and again.
        device: Where to train.
        compiled: Whether `torch.compile` compiles the model.
    """

    def __init__(
        self,
        model: ScenarioModel,
        layout: BatchLayout,
        batches: Sequence[Batch],
        device: str,
        compiled: bool = False,
    ) -> None:
        data = DataShape(layout, [1] * layout.num_scenarios, total_steps=1)
        parts = build_parts(RunSettings(), data, LocalWorld(device), Progress(), model)
        self.parts, self.optimisers = parts, parts.optimisers
        self._trainer = Trainer(parts, StepOptions(), ReportList(), Progress())
        self._steps = 0
        if compiled:
            model.compile()
        pinned = [batch.pin_memory() for batch in batches] if device == "cuda" else batches
        self._batches: Iterator[Batch] = itertools.cycle(pinned)

    def run(self, steps: int, precision: Literal["fp32", "bf16"]) -> None:
        """Take steps; the last one's loss is on the host when it returns."""
        self._trainer.options = StepOptions(precision=precision)
        self._trainer.parts.model.train()
        for _ in range(steps):
            self._trainer.step(next(self._batches), self._steps)
            self._steps += 1
        synchronise(self._trainer.parts.world.device)


class ReferenceSteps:
    """Takes steps of the reference: ordinary dense gradients, Adam over everything."""

    def __init__(self, model: ReferenceHiNet, batches: Sequence[Batch], device: str) -> None:
        self._device = torch.device(device)
        self._model = model.to(self._device)
        self._optimiser = torch.optim.Adam(model.parameters(), fused=True)
        plain = [PlainBatch.of(batch) for batch in batches]
        if device == "cuda":
            plain = [PlainBatch(*(tensor.pin_memory() for tensor in batch)) for batch in plain]
        self._batches: Iterator[PlainBatch] = itertools.cycle(plain)

    def run(self, steps: int) -> None:
        """Take steps in fp32."""
        for _ in range(steps):
            ids, scenario, labels = (
                tensor.to(self._device, non_blocking=True) for tensor in next(self._batches)
            )
            self._optimiser.zero_grad()
            torch.autograd.backward(reference_loss(self._model(ids, scenario), labels))
            self._optimiser.step()
        synchronise(self._device)


class SquareProducts:
    """Takes products of two square matrices: the rate that steps are measured against.

    Args:
        size: Rows and columns; a product is ``2 * size**3`` floating-point operations.
        dtype: Of both.
        device: Where.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: str) -> None:
        self._device = torch.device(device)
        generator = torch.Generator().manual_seed(0)
        self._left, self._right = (
            torch.randn(size, size, generator=generator).to(self._device, dtype) for _ in range(2)
        )
        self._result: Tensor = torch.empty_like(self._left)

    def run(self, steps: int) -> None:
        """Take products."""
        for _ in range(steps):
            torch.mm(self._left, self._right, out=self._result)
        synchronise(self._device)


def synchronise(device: torch.device) -> None:
    """Return when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
