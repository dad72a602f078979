"""Shards of the embedding table: every row in one of them, drawn as it is in the whole table."""

from __future__ import annotations

import pytest
import torch
from batches import make_batch, make_layout

from hinet_model.models.build import build_model
from hinet_model.models.hinet import HiNetSettings
from hinet_model.models.model import table_name
from hinet_model.nn.row_shard import RowShard, draw_rows


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("num_rows", [0, 1, 5, 100])
def test_every_row_is_in_one_shard_at_its_position(num_rows: int, count: int) -> None:
    ids = torch.arange(num_rows)
    found = 0
    for place in range(count):
        shard = RowShard(place, count)
        own = shard.of(ids)
        assert len(own) == shard.num_rows(num_rows)
        assert shard.owners(own).tolist() == [place] * len(own)
        assert shard.positions(own).tolist() == list(range(len(own)))
        found += len(own)
    assert found == num_rows


# Fewer numbers than torch draws in a group; no multiple of a group; a rest below a group; many blocks.
@pytest.mark.parametrize(("num_rows", "dim"), [(3, 5), (7, 5), (65, 8), (129, 1), (4097, 3), (1000, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_shard_is_drawn_in_blocks_as_in_one_call_for_the_whole_table(
    num_rows: int, dim: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(5)
    whole = torch.empty(num_rows, dim, dtype=dtype).normal_(std=0.01, generator=generator)
    after = torch.rand(3, generator=generator)
    for count in (1, 2, 3, 8):
        for place in range(count):
            generator, shard = torch.Generator().manual_seed(5), RowShard(place, count)
            rows = torch.full((shard.num_rows(num_rows), dim), torch.nan, dtype=dtype)
            draw_rows(rows, num_rows, shard, 0.01, generator, block_numbers=128)
            assert torch.equal(rows, shard.of(whole))
            assert torch.equal(torch.rand(3, generator=generator), after), "what is drawn next differs"


@pytest.mark.parametrize(
    "settings",
    [{}, {"joint": "per_task"}, {"ctcvr": "product", "ctr_task": "t0", "ctcvr_task": "t1"}],
    ids=["joint", "separate", "product"],
)
def test_a_model_with_a_shard_starts_from_the_weights_of_the_whole_model(settings: dict[str, object]) -> None:
    layout = make_layout()
    chosen = HiNetSettings.model_validate(settings)
    whole = build_model(chosen, layout, seed=3).state_dict()
    for place in range(3):
        model = build_model(chosen, layout, 3, RowShard(place, 3))
        table = table_name(model)
        assert model.embedding.weight.shape[0] < layout.num_embeddings
        for name, tensor in model.state_dict().items():
            expected = RowShard(place, 3).of(whole[name]) if name == table else whole[name]
            assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("settings", [{}, {"joint": "per_task"}], ids=["joint", "separate"])
def test_a_shard_is_never_looked_up_as_if_it_were_the_table(settings: dict[str, object]) -> None:
    layout = make_layout()
    model = build_model(HiNetSettings.model_validate(settings), layout, 0, RowShard(1, 2))
    with pytest.raises(RuntimeError, match="shard 1 of 2"):
        model(make_batch(layout, [0, 1, 2]))
