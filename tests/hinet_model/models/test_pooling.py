"""Attention over histories: slot by slot as a loop does it, and gradients as finite differences say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from batches import make_schema, sorted_batch, value_of

from foundation.settings import ConfigError
from hinet_model.data.batch import PADDING, BatchLayout
from hinet_model.models.build import build_model
from hinet_model.models.features import build_embedding, build_layout, columns_of
from hinet_model.models.hinet import HiNetSettings
from hinet_model.nn.embedding import FusedEmbedding

AGES = {
    "name": "recent__ages", "kind": "indices", "slots": 2, "size": 28, "shares": None, "beside": "recent",
    "columns": ["recent__ages__0", "recent__ages__1"],
}  # fmt: skip


def laid_out(schema: dict[str, Any], **changes: Any) -> tuple[HiNetSettings, BatchLayout]:
    given = {"embedding_dim": 4, "embedding_std": 1.0, "pooling": "attention", **changes}
    settings = HiNetSettings(**given)
    return settings, build_layout(settings, schema)


def made(settings: HiNetSettings, layout: BatchLayout) -> FusedEmbedding:
    """The embedding, its attention no longer as it starts."""
    embedding = build_embedding(settings, layout)
    generator = torch.Generator().manual_seed(0)
    embedding.reset_parameters(generator)
    for matrix in embedding.attention.values():
        torch.testing.assert_close(matrix, torch.eye(len(matrix)) / len(matrix) ** 0.5)
        with torch.no_grad():
            matrix.normal_(generator=generator)
    return embedding


@pytest.mark.parametrize("widths", [{}, {"item": 8, "recent__ages": 8}], ids=str)
@pytest.mark.parametrize("aged", [False, True])
def test_a_slot_counts_as_much_as_it_goes_with_the_row_s_own_value(
    aged: bool, widths: dict[str, int]
) -> None:
    schema = make_schema()
    if aged:
        schema["fields"].insert(5, AGES)
    else:
        widths = {name: width for name, width in widths.items() if name == "item"}
    settings, layout = laid_out(
        schema,
        embedding_dims=widths,
        sequences="together",
        products=[{"left": ["recent"], "right": ["item"]}],
    )
    embedding = made(settings, layout)
    batch, columns = sorted_batch(layout)
    x = embedding(batch)
    assert x.shape[1] == embedding.out_dim
    (matrix,) = embedding.attention.values()
    place = list(columns_of("there", ["recent"], layout, embedding))
    width = len(place)

    lengths = set()
    for row in range(batch.num_rows):
        used = [slot for slot in range(2) if columns[f"recent__{slot}"][row] != PADDING]
        names = ("recent", "recent__ages") if aged else ("recent",)
        slots = [
            sum(value_of(embedding, layout, name, columns[f"{name}__{slot}"][row]) for name in names)
            for slot in used
        ]
        query = value_of(embedding, layout, "item", columns["item"][row])
        scores = [
            sum(query[i] * matrix[i, j] * slot[j] for i in range(width) for j in range(width))
            for slot in slots
        ]
        expected = torch.zeros(width)
        for score, slot in zip(scores, slots, strict=True):
            expected = expected + score.exp() / sum(other.exp() for other in scores) * slot
        torch.testing.assert_close(x[row, place], expected)
        product = x[row, embedding.out_dim - width :]
        torch.testing.assert_close(product, x[row, place] * query)
        lengths.add(len(used))
    assert lengths == {0, 1, 2}
    none = layout.to_batch({name: values[:0] for name, values in columns.items()})[0]
    assert embedding(none).shape == (0, embedding.out_dim)


def test_gradients_are_those_of_finite_differences() -> None:
    settings, layout = laid_out(make_schema())
    embedding = made(settings, layout).double()
    batch, _ = sorted_batch(layout)
    rows = embedding.look_up(batch.unique_ids).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: embedding(batch, given)[:, :-2], (rows,))
    loss = embedding(batch, rows).square().sum()
    (matrix,) = embedding.attention.values()
    (gradient,) = torch.autograd.grad(loss, matrix)
    assert gradient.all()
    with torch.no_grad():
        for place in ((0, 0), (1, 3)):
            kept = matrix[place].item()
            either = []
            for step in (1e-6, -1e-6):
                matrix[place] = kept + step
                either.append(embedding(batch, rows).square().sum().item())
            matrix[place] = kept
            assert (either[0] - either[1]) / 2e-6 == pytest.approx(gradient[place].item(), rel=1e-5)


@pytest.mark.parametrize("joint", [True, "per_scenario", "per_task"])
def test_every_matrix_learns_in_joint_and_in_separate_models(joint: Any) -> None:
    settings, layout = laid_out(make_schema(), joint=joint)
    model = build_model(settings, layout, seed=0)
    batch, _ = sorted_batch(layout)
    model(batch).sum().backward()
    matrices = {name: one for name, one in model.named_parameters() if "embedding.attention." in name}
    assert len(matrices) == {True: 1, "per_scenario": 3, "per_task": 2}[joint]
    assert all(one.grad is not None and one.grad.any() for one in matrices.values())
    dense = {id(parameter) for parameter in model.dense_parameters()}
    assert {id(one) for one in matrices.values()} <= dense


def test_data_without_a_history_of_what_rows_have_are_refused() -> None:
    schema = make_schema()
    schema["fields"] = [field for field in schema["fields"] if field["name"] != "recent"]
    settings, layout = laid_out(schema)
    with pytest.raises(ConfigError, match=r"model\.pooling: attention pools histories of features that rows"):
        build_embedding(settings, layout)
