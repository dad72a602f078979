"""Sequences: a slot's item, age and kind are added before they are pooled, number by number as a loop does it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from batches import make_schema, sorted_batch, value_of

from foundation.settings import ConfigError
from hinet_model.data.batch import PADDING, BatchError, BatchLayout
from hinet_model.models.features import build_embedding, build_layout, columns_of
from hinet_model.models.hinet import HiNetSettings

BESIDE = {"recent__ages": 28, "recent__kinds": 3}


def schema(slots: int = 2) -> dict[str, Any]:
    """The tests' schema, and fields that tell of the history's slots."""
    plain = make_schema()
    told = [
        {"name": name, "kind": "indices", "slots": slots, "size": size, "shares": None, "beside": "recent",
         "columns": [f"{name}__{slot}" for slot in range(slots)]}
        for name, size in BESIDE.items()
    ]  # fmt: skip
    return {**plain, "fields": [*plain["fields"][:5], *told, *plain["fields"][5:]]}


def laid_out(**changes: Any) -> tuple[HiNetSettings, BatchLayout]:
    given = {"embedding_dim": 4, "embedding_std": 1.0, "sequences": "together", **changes}
    settings = HiNetSettings(**given)
    return settings, build_layout(settings, schema())


@pytest.mark.parametrize("widths", [{}, {"item": 8, "recent__ages": 8, "recent__kinds": 8}], ids=str)
def test_slots_are_added_before_they_are_pooled(widths: dict[str, int]) -> None:
    settings, layout = laid_out(embedding_dims=widths)
    embedding = build_embedding(settings, layout)
    embedding.reset_parameters(torch.Generator().manual_seed(0))
    batch, columns = sorted_batch(layout)
    x = embedding(batch)
    width = widths.get("item", 4)
    assert x.shape[1] == embedding.out_dim == 2 * width + 2 * 4 + 2, "item, recent; city, genres; two numbers"
    place = columns_of("there", ["recent"], layout, embedding)
    assert columns_of("there", ["recent__ages"], layout, embedding) == place

    lengths = set()
    for row in range(batch.num_rows):
        used = [slot for slot in range(2) if columns[f"recent__{slot}"][row] != PADDING]
        names = ("recent", *BESIDE)
        slots = [
            sum(value_of(embedding, layout, name, columns[f"{name}__{slot}"][row]) for name in names)
            for slot in used
        ]
        expected = torch.stack(slots).mean(dim=0) if slots else torch.zeros(width)
        torch.testing.assert_close(x[row, list(place)], expected)
        lengths.add(len(used))
    assert lengths == {0, 1, 2}
    numbers = columns_of("there", ["age", "rate"], layout, embedding)
    torch.testing.assert_close(x[:, list(numbers)], batch.numbers)


def test_apart_they_are_features_like_others() -> None:
    settings, layout = laid_out(sequences="apart")
    assert build_embedding(settings, layout).out_dim == 6 * 4 + 2


def test_what_cannot_be_added_is_refused_by_name() -> None:
    settings, layout = laid_out(embedding_dims={"recent__ages": 8})
    with pytest.raises(
        ConfigError, match=r"'recent__ages' is of width 8 and 'recent', to which .* of width 4"
    ):
        build_embedding(settings, layout)
    settings, layout = laid_out(products=[{"left": ["recent__kinds"], "right": ["city"]}])
    with pytest.raises(ConfigError, match=r"products\.0: model\.sequences adds 'recent__kinds' to 'recent'"):
        build_embedding(settings, layout)
    with pytest.raises(
        BatchError, match=r"'recent__ages' tells of the slots of 'recent'; expected a field of 3"
    ):
        BatchLayout.from_schema(schema(slots=3))
