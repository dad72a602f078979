"""Exchange: flat buckets, hooks, statistics and merged table rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hinet_model.training.dist.dense_exchange import GradientExchange, merge_rows
from hinet_model.training.dist.world import LocalWorld, Pending, coarse_size


class DoublingWorld(LocalWorld):
    """As if a twin of this rank had brought the same numbers; remembers what was launched when."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 2
        self.launched: list[str] = []

    def start_sum(self, tensor: Tensor, name: str) -> Pending:
        self.launched.append(name)
        tensor.mul_(2)
        return super().start_sum(tensor, name)

    def gather_rows(self, ids: Tensor, rows: Tensor, name: str) -> tuple[Tensor, Tensor]:
        return torch.cat([ids, ids + 1]), torch.cat([rows, rows])


def three_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1))


def test_gradients_are_those_of_plain_autograd_times_the_workers() -> None:
    model, twin = three_layers(), three_layers()
    exchange = GradientExchange(model.parameters(), DoublingWorld(), bucket_bytes=64)
    x = torch.randn(5, 4)
    for _ in range(2):  # the second step must not see the first one's gradients
        exchange.start_step()
        model(x).sum().backward()
        exchange.finish()
    twin(x).sum().backward()
    for parameter, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, 2 * expected.grad)


def test_buckets_leave_during_the_backward_pass_and_each_exactly_once() -> None:
    model, world = three_layers(), DoublingWorld()
    exchange = GradientExchange(model.parameters(), world, bucket_bytes=64)
    exchange.start_step()
    model(torch.randn(2, 4)).sum().backward()
    early = list(world.launched)
    exchange.finish()
    assert early, "no bucket was launched before finish()"
    assert len(world.launched) == len(set(world.launched)) > len(early)


def test_an_unused_layer_contributes_zeros_and_still_takes_part() -> None:
    model, world = three_layers(), DoublingWorld()
    unused = nn.Linear(3, 3)
    exchange = GradientExchange([*model.parameters(), *unused.parameters()], world, bucket_bytes=64)
    expected_launches = None
    for _ in range(2):
        world.launched.clear()
        exchange.start_step()
        model(torch.randn(2, 4)).sum().backward()
        exchange.finish()
        expected_launches = expected_launches or set(world.launched)
        assert set(world.launched) == expected_launches
    assert all(float(p.grad.abs().sum()) == 0 for p in unused.parameters() if p.grad is not None)


def test_statistics_are_summed_with_the_last_bucket() -> None:
    exchange = GradientExchange(three_layers().parameters(), DoublingWorld(), num_statistics=3)
    exchange.start_step()
    exchange.statistics.copy_(torch.tensor([1.0, 0.5, 7.0]))
    exchange.finish()
    assert exchange.statistics.tolist() == [2.0, 1.0, 14.0]


def test_rows_of_equal_ids_are_summed() -> None:
    ids, rows = merge_rows(torch.tensor([3, 9, 1, 3]), torch.tensor([[1.0], [2.0], [4.0], [8.0]]))
    assert ids.tolist() == [1, 3, 9]
    assert rows.tolist() == [[4.0], [9.0], [2.0]]


def test_the_table_gradient_of_two_workers_is_that_of_one_with_all_rows() -> None:
    exchange = GradientExchange(three_layers().parameters(), DoublingWorld())
    ids, rows = exchange.gather_rows(torch.tensor([4, 5]), torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    assert ids.tolist() == [4, 5, 6]
    assert rows.tolist() == [[1.0, 0.0], [1.0, 3.0], [0.0, 3.0]]


def test_clipping_scales_the_whole_gradient_to_the_limit() -> None:
    model = three_layers()
    exchange = GradientExchange(model.parameters(), LocalWorld(), bucket_bytes=64, num_statistics=1)
    exchange.start_step()
    (100 * model(torch.ones(2, 4))).sum().backward()
    exchange.statistics[0] = 1e6  # statistics are no gradient
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    exchange.clip_norm(0.5)
    after = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.cat([g.flatten() for g in after]).norm()
    assert abs(float(norm) - 0.5) < 1e-4
    ratios = {
        round(float((a / b).flatten()[0]), 6)
        for a, b in zip(after, before, strict=True)
        if b.flatten()[0] != 0
    }
    assert len(ratios) == 1
    assert float(exchange.statistics[0]) == 1e6


def test_coarse_sizes_hold_the_rows_and_waste_at_most_an_eighth() -> None:
    for rows in [*range(0, 3000, 7), 10_001, 65_536, 65_537, 1_000_000]:
        size = coarse_size(rows)
        assert size >= max(rows, 256)
        assert rows <= 256 or size <= rows * 1.125 + 1
    assert len({coarse_size(rows) for rows in range(4096, 8192)}) <= 17
