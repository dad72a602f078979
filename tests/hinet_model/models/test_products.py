"""Products of features: number by number what a loop gives, in every model, and faults by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import test_conformance as suite
import torch
from batches import make_batch, make_schema

from foundation.settings import ConfigError
from hinet_model.data.batch import BatchLayout
from hinet_model.models.build import build_model
from hinet_model.models.features import build_embedding, build_layout, columns_of
from hinet_model.models.hinet import HiNetSettings
from hinet_model.models.registry import REGISTRY
from hinet_model.nn import stop_gradient

PRODUCTS = [
    {"left": ["city", "genres"], "right": ["item"]},
    {"left": ["recent"], "right": ["item", "city"]},
]


def laid_out(**changes: Any) -> tuple[HiNetSettings, BatchLayout]:
    """Settings with products and a layout of the same widths."""
    settings = HiNetSettings(**{"embedding_dim": 4, "embedding_std": 1.0, "products": PRODUCTS, **changes})
    return settings, build_layout(settings, make_schema())


@pytest.mark.parametrize("widths", [{}, {"item": 8, "city": 8, "genres": 8}], ids=str)
def test_a_product_is_the_left_sum_times_the_right_one(widths: dict[str, int]) -> None:
    settings, layout = laid_out(embedding_dims=widths)
    embedding = build_embedding(settings, layout)
    embedding.reset_parameters(torch.Generator().manual_seed(0))
    x = embedding(make_batch(layout, [0, 1, 2] * 4))
    width = widths.get("item", 4)
    assert embedding.out_dim == x.shape[1] == 4 * width + 2 + 2 * width
    names = [field.name for field in layout.slot_fields]
    for row in x:
        value = {name: row[embedding.columns_of(number)] for number, name in enumerate(names)}
        first, second = row[-2 * width :].split(width)
        torch.testing.assert_close(first, (value["city"] + value["genres"]) * value["item"])
        torch.testing.assert_close(second, value["recent"] * (value["item"] + value["city"]))


def test_features_are_found_where_they_are_without_products() -> None:
    settings, layout = laid_out()
    plain, _ = laid_out(products=[])
    names = ["rate", "city", "age"]
    places = [columns_of("there", names, layout, build_embedding(one, layout)) for one in (settings, plain)]
    assert places[0] == places[1]


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_model_reads_products_and_passes_its_gradient_through_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_gradient, "stop_gradient", lambda value: value)
    _, layout = laid_out()
    model = suite.build(name, layout, products=PRODUCTS).double().eval()
    batch = make_batch(layout, [0, 1, 2] * 8)
    batch = replace(batch, numbers=batch.numbers.double())
    assert suite.worst_difference(model, batch) < 1e-5


@pytest.mark.parametrize("joint", ["per_scenario", "per_task"])
def test_separate_models_have_products_of_their_own(joint: str) -> None:
    _, layout = laid_out()
    model = suite.build("mmoe", layout, products=PRODUCTS, joint=joint)
    batch = make_batch(layout, [0, 1, 2] * 8)
    for parameter, gradient in suite.gradients(model, batch).items():
        suite.assert_each_part_nonzero(parameter, gradient, batch)


def test_faults_of_products_are_all_told_by_name() -> None:
    settings, layout = laid_out(
        embedding_dims={"item": 8},
        products=[{"left": ["citty"], "right": ["item"]}, {"left": ["age"], "right": ["item", "genres"]}],
    )
    with pytest.raises(ConfigError) as error:
        build_model(settings, layout, seed=0)
    assert error.value.faults == [
        "model.products.0: unknown name 'citty'; expected one of item, city, genres, recent; did you mean 'city'?",
        "model.products.1: 'age' is a number; expected one of item, city, genres, recent",
        "model.products.1: features of several widths, 'item' 8, 'genres' 4; expected one width",
    ]
