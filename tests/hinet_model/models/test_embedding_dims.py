"""Features of several widths in one table: what separate tables of those widths would give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import model_folders
import numpy as np
import pytest
import test_conformance as suite
import torch
from batches import make_batch, make_columns, make_layout, make_schema
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from foundation.settings import ConfigError
from hinet_model.config import OptimiserSettings
from hinet_model.data import batch as batch_module
from hinet_model.data.batch import PADDING, BatchLayout
from hinet_model.models.build import build_model
from hinet_model.models.features import build_embedding, build_layout, columns_of
from hinet_model.models.hinet import HiNetSettings
from hinet_model.models.registry import REGISTRY
from hinet_model.nn import stop_gradient
from hinet_model.nn.embedding import FusedEmbedding
from hinet_model.serving.scorer import Scorer, save_model_folder
from hinet_model.training.table_optimisers import build_table_optimiser

MIXED = {"item": 8, "city": 12}
"""Of the layout of `batches`; the other features are four wide, as a row of the table then is."""


def laid_out(widths: Mapping[str, int], **changes: Any) -> tuple[BatchLayout, FusedEmbedding]:
    """Layout and embedding of settings that name some widths, rows drawn wide enough to tell apart."""
    model = HiNetSettings(**{"embedding_dim": 4, "embedding_std": 1.0, "embedding_dims": widths, **changes})
    layout = build_layout(model, make_schema())
    embedding = build_embedding(model, layout)
    embedding.reset_parameters(torch.Generator().manual_seed(0))
    return layout, embedding


def separate_tables(layout: BatchLayout, embedding: FusedEmbedding) -> dict[str, nn.Embedding]:
    """A table of its own for each feature that has rows of its own, with the fused table's numbers."""
    tables = {}
    for field in layout.slot_fields:
        if field.shares is None:
            rows = embedding.weight.detach()[field.offset : field.offset + field.size * field.parts]
            tables[field.name] = nn.Embedding.from_pretrained(
                rows.reshape(field.size, -1).clone(), freeze=False
            )
    return tables


def features_one_by_one(
    layout: BatchLayout, tables: Mapping[str, nn.Embedding], columns: Mapping[str, Any], row: int
) -> list[Tensor]:
    """A row's features from its columns in the training table, without batch, ids or inverse."""
    features = []
    for field in layout.slot_fields:
        table = tables[field.shares or field.name]
        used = [int(columns[name][row]) for name in field.columns if columns[name][row] != PADDING]
        values = [table(torch.tensor(index)) for index in used]
        features.append(sum(values) / len(values) if values else torch.zeros_like(table.weight[0]))
    numbers = [float(columns[name][row]) for name in layout.number_columns]
    features.append(torch.tensor(numbers, dtype=torch.float64))
    return features


@settings(max_examples=60)
@given(
    widths=st.fixed_dictionaries({name: st.integers(1, 12) for name in ("item", "city", "genres")}),
    scenarios=st.lists(st.integers(0, 2), max_size=8),
    seed=st.integers(0, 2**32 - 1),
)
def test_values_and_gradients_are_those_of_separate_tables(
    widths: dict[str, int], scenarios: list[int], seed: int
) -> None:
    layout = make_layout(widths=widths)
    embedding = build_embedding(HiNetSettings(embedding_std=1.0, embedding_dims=widths), layout).double()
    embedding.reset_parameters(torch.Generator().manual_seed(0))
    tables = separate_tables(layout, embedding)
    columns = make_columns(layout, scenarios, seed)
    batch, order = layout.to_batch(columns)
    batch = replace(batch, numbers=batch.numbers.double())
    assert torch.equal(batch.unique_ids, torch.unique(batch.unique_ids))

    x = embedding(batch)
    assert x.shape == (len(scenarios), embedding.out_dim)
    factor = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (x * factor).sum().backward()
    for place, row in enumerate(order):
        features = features_one_by_one(layout, tables, columns, row)
        torch.testing.assert_close(x[place], torch.cat(features))
        (torch.cat(features) * factor[place]).sum().backward()
        for number, feature in enumerate(features[:-1]):
            torch.testing.assert_close(x[place, embedding.columns_of(number)], feature)
    for field in layout.slot_fields:
        if field.shares is None and scenarios:
            found = embedding.weight.grad[field.offset : field.offset + field.size * field.parts]
            wanted = tables[field.name].weight.grad
            wanted = torch.zeros_like(tables[field.name].weight) if wanted is None else wanted
            torch.testing.assert_close(found.reshape(wanted.shape), wanted)


def test_a_wide_value_is_several_rows_in_a_row_and_padding_has_none() -> None:
    layout = make_layout(widths={"item": 8, "city": 4, "genres": 8})
    assert [field.parts for field in layout.slot_fields] == [2, 1, 2, 2]
    assert [field.offset for field in layout.slot_fields] == [0, 24, 29, 0]
    assert layout.num_embeddings == 24 + 5 + 12
    assert [field.positions for field in layout.slot_fields] == [
        (0, 1),
        (2,),
        (3, 4, 5, 6, 7, 8),
        (9, 10, 11, 12),
    ]
    columns = make_columns(layout, [0])
    for name, index in zip(layout.slot_columns, [3, 1, 5, 0, PADDING, 3, PADDING], strict=True):
        columns[name] = np.array([index], dtype=np.int32)
    batch, _ = layout.to_batch(columns)
    assert batch.unique_ids.tolist() == [6, 7, 25, 29, 30, 39, 40]
    padding = 7
    first_parts, second_parts = [5, 3, padding], [6, 4, padding]
    assert batch.inverse.tolist() == [[0, 1, 2, *first_parts, *second_parts, 0, padding, 1, padding]]
    assert batch.inverse.is_contiguous()


def test_large_and_small_tables_find_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = make_layout(widths={"item": 8, "city": 4, "genres": 12})
    by_flags = make_batch(layout, [0, 1, 2] * 5)
    monkeypatch.setattr(batch_module, "_FLAG_ARRAY_ROWS", 0)
    by_sort = make_batch(layout, [0, 1, 2] * 5)
    assert torch.equal(by_flags.unique_ids, by_sort.unique_ids)
    assert torch.equal(by_flags.inverse, by_sort.inverse)


@pytest.mark.parametrize(
    "widths", [{}, {"item": 4}, {"item": 4, "city": 4, "genres": 4, "recent": 4}], ids=str
)
def test_equal_widths_change_nothing(widths: dict[str, int]) -> None:
    layout, embedding = laid_out(widths)
    assert layout == make_layout()
    assert torch.equal(embedding.weight, laid_out({})[1].weight)


def test_a_width_that_all_features_have_is_that_of_a_row() -> None:
    layout, embedding = laid_out({"item": 3, "city": 3, "genres": 3}, embedding_dim=16)
    assert layout == make_layout()
    assert embedding.dim == 3


def test_a_feature_that_shares_rows_has_their_width() -> None:
    layout, embedding = laid_out(MIXED)
    assert laid_out({**MIXED, "recent": 8})[0] == layout
    assert embedding.out_dim == 8 + 12 + 4 + 8 + 2


def test_named_features_are_found_among_others_of_other_widths() -> None:
    layout, embedding = laid_out(MIXED)
    places = columns_of("model.prior_features", ["city", "recent", "rate"], layout, embedding)
    assert places == (*range(8, 20), *range(24, 32), 33)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_model_passes_its_gradient_to_every_part(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_gradient, "stop_gradient", lambda value: value)
    layout, _ = laid_out(MIXED)
    model = suite.build(name, layout, embedding_dims=MIXED, prior_features=["city", "age"]).double().eval()
    batch = make_batch(layout, [0, 1, 2] * 8)
    batch = replace(batch, numbers=batch.numbers.double())
    assert suite.worst_difference(model, batch) < 1e-5
    for parameter, gradient in suite.gradients(model, batch).items():
        suite.assert_each_part_nonzero(parameter, gradient, batch)


@pytest.mark.parametrize("joint", ["per_scenario", "per_task"])
def test_separate_models_have_parts_of_their_own(joint: str) -> None:
    layout, _ = laid_out(MIXED)
    model = suite.build("mmoe", layout, embedding_dims=MIXED, joint=joint)
    assert model.embedding.dim == 4 * (3 if joint == "per_scenario" else 2)
    columns = make_columns(layout, [0, 1, 2] * 8)
    batch, _ = layout.to_batch(columns)
    for parameter, gradient in suite.gradients(model, batch).items():
        suite.assert_each_part_nonzero(parameter, gradient, batch)


def test_adagrad_scales_each_part_of_a_value_by_itself() -> None:
    _, embedding = laid_out(MIXED)
    before = embedding.weight.detach().clone()
    ids = torch.tensor([0, 1])  # the two parts of item 0
    gradient = torch.tensor([[100.0] * 4, [0.01] * 4])
    build_table_optimiser(OptimiserSettings(table="adagrad", learning_rate=0.1), embedding.weight).step(
        ids, gradient, 1
    )
    moved = (before - embedding.weight.detach())[ids]
    torch.testing.assert_close(moved, torch.full((2, 4), 0.1), atol=1e-4, rtol=1e-4)


def test_a_saved_model_of_several_widths_scores_as_the_trained_one(tmp_path: Path) -> None:
    widths = {"user_id": 8, "genres": 12}
    model_settings = model_folders.SETTINGS.model_copy(update={"embedding_dims": widths})
    state = model_folders.encoder_state()
    rows = model_folders.raw_rows(state)
    layout = build_layout(model_settings, state.model_schema())
    model = build_model(model_settings, layout, seed=1)
    scorer = Scorer(state, model, model_settings)
    batch, order = layout.to_batch(scorer.encode(rows))
    labels = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    optimiser = torch.optim.Adam(model.train().parameters(), lr=0.05)
    for _ in range(5):
        optimiser.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(batch), labels).backward()
        optimiser.step()
    with torch.no_grad():
        trained = torch.sigmoid(model.eval()(batch)).numpy()
    document = model_settings.model_dump(mode="json")
    folder = save_model_folder(tmp_path / "model", state, document, model.state_dict(), rows)
    np.testing.assert_allclose(Scorer.load(folder).score(rows)[order], trained, atol=1e-6)


def test_faults_of_widths_are_all_told_by_name() -> None:
    wrong = HiNetSettings(embedding_dims={"citty": 8, "age": 8, "recent": 32, "genres": 17})
    with pytest.raises(ConfigError) as error:
        build_layout(wrong, make_schema())
    assert error.value.faults == [
        "model.embedding_dims.citty: unknown name 'citty'; expected one of item, city, genres, recent; "
        "did you mean 'city'?",
        "model.embedding_dims.age: 'age' is a number; expected one of item, city, genres, recent",
        "model.embedding_dims.recent: 32, but 'recent' uses the rows of 'item', whose width is 16; "
        "expected the same, or none",
        "model.embedding_dims: the widths 16, 17 make rows of 1, their greatest common divisor, and each "
        "value many of them; expected 4 at least, or one width for all",
    ]


def test_a_layout_of_other_widths_is_refused() -> None:
    with pytest.raises(ValueError, match="other embedding_dims"):
        build_model(HiNetSettings(embedding_dims=MIXED), make_layout(), seed=0)
