"""Routed experts: the compiled operation against loops, its dropout, and doing without it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hinet_model.nn.native import library
from hinet_model.nn.routed_experts import ExpertGroups, can_route, routed_experts, scenario_pieces

Layers = list[tuple[Tensor, Tensor]]
Members = list[list[list[bool]]]


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    if not library.available():
        pytest.skip("the library cannot be compiled here")


def by_loops(
    rows: Tensor,
    layers: Layers,
    gate_weight: Tensor | None,
    mix: Tensor | None,
    members: Members,
    columns: list[int],
    pieces: Tensor,
    num_blocks: int,
    relu_last: bool,
) -> Tensor:
    """Row by row, gate by gate, perceptron by perceptron."""
    in_dim, out_dim, num_gates = layers[0][0].shape[2], layers[-1][0].shape[1], len(members[0])
    firsts = [sum(len(bank[0]) for bank in members[:g]) for g in range(len(members))]
    first_scores = [sum(sum(gate) for bank in members[:g] for gate in bank) for g in range(len(members))]
    result = [
        [[rows.new_zeros(out_dim) for _ in range(num_gates)] for _ in range(num_blocks)]
        for _ in range(len(rows))
    ]
    for group, start, stop, block, place in pieces.tolist():
        for row in range(start, stop):
            x = rows[row, columns[group] : columns[group] + in_dim]
            answers = []
            for k in range(len(members[group][0])):
                h = x
                for depth, (weight, bias) in enumerate(layers):
                    h = weight[firsts[group] + k] @ h + bias[firsts[group] + k]
                    if relu_last or depth < len(layers) - 1:
                        h = h.relu()
                answers.append(h)
            score = first_scores[group]
            for gate, chooses in enumerate(members[group]):
                chosen = [answer for answer, member in zip(answers, chooses, strict=True) if member]
                if gate_weight is None:
                    trust = rows.new_full((len(chosen),), 1 / len(chosen))
                else:
                    trust = (gate_weight[score : score + len(chosen)] @ x).softmax(0)
                score += len(chosen)
                total = sum(t * answer for t, answer in zip(trust, chosen, strict=True))
                weight = 1.0 if place < 0 else mix.flatten()[place]  # type: ignore[union-attr]
                result[row][block][gate] = result[row][block][gate] + weight * total
    if not len(rows):
        return rows.new_zeros(0, num_blocks, num_gates, out_dim)
    return torch.stack([torch.stack([torch.stack(gates) for gates in blocks]) for blocks in result])


@st.composite
def cases(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    num_groups, num_gates = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    members = []
    for _ in range(num_groups):
        count = draw(st.integers(1, 4))
        bank = draw(
            st.lists(
                st.lists(st.booleans(), min_size=count, max_size=count),
                min_size=num_gates,
                max_size=num_gates,
            )
        )
        members.append([gate if any(gate) else [True] * count for gate in bank])
    counts = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    num_blocks = draw(st.integers(1, 3))
    pieces, stops = [], [sum(counts[: i + 1]) for i in range(len(counts))]
    for group in range(num_groups):
        for i, count in enumerate(counts):
            if count and draw(st.booleans()):
                place = draw(st.integers(-1, 5))
                pieces.append(
                    (group, stops[i] - count, stops[i], draw(st.integers(0, num_blocks - 1)), place)
                )
    dims = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    columns = draw(st.lists(st.integers(0, 3), min_size=num_groups, max_size=num_groups))
    return members, columns, sum(counts), pieces, num_blocks, dims, draw(st.booleans()), draw(st.booleans())


@given(cases(), st.integers(1, 3), st.integers(0, 2**31))
def test_result_and_gradients_equal_those_of_loops(case, threads: int, seed: int) -> None:  # type: ignore[no-untyped-def]
    members, columns, num_rows, piece_rows, num_blocks, dims, gated, relu_last = case
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    in_dim, num_experts = 4, sum(len(bank[0]) for bank in members)
    num_scores = sum(sum(gate) for bank in members for gate in bank)
    layers = [
        (draw(num_experts, o, i), draw(num_experts, o)) for i, o in zip([in_dim, *dims], dims, strict=False)
    ]
    rows, mix = draw(num_rows, in_dim + 3), draw(2, 3)
    gate_weight = draw(num_scores, in_dim) if gated else None
    pieces = torch.tensor(piece_rows, dtype=torch.int64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = routed_experts(
            rows,
            layers,
            gate_weight,
            mix,
            ExpertGroups.of(members, columns),
            pieces,
            num_blocks,
            0.0,
            relu_last,
        )
        wanted = by_loops(rows, layers, gate_weight, mix, members, columns, pieces, num_blocks, relu_last)
        torch.testing.assert_close(found, wanted)
        leaves = [
            rows,
            mix,
            *(tensor for layer in layers for tensor in layer),
            *([gate_weight] if gated else []),
        ]
        pull = torch.randn(found.shape, generator=generator, dtype=torch.float64)
        ours = torch.autograd.grad(found, leaves, pull)
        theirs = (
            torch.autograd.grad(wanted, leaves, pull, allow_unused=True)
            if wanted.requires_grad
            else [None] * len(leaves)
        )
        for leaf, our, their in zip(leaves, ours, theirs, strict=True):
            torch.testing.assert_close(our, torch.zeros_like(leaf) if their is None else their)
    finally:
        torch.set_num_threads(before)


def one_group(
    num_rows: int, dropout: float, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Layers, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(num_rows, 5, generator=generator, dtype=dtype)
    layers = [
        (torch.randn(3, o, i, generator=generator, dtype=dtype), torch.ones(3, o, dtype=dtype))
        for i, o in ((5, 40), (40, 4))
    ]
    pieces = torch.tensor([[0, 0, num_rows, 0, -1]])
    torch.manual_seed(7)
    groups = ExpertGroups.of([[[True] * 3]])
    return routed_experts(rows, layers, None, None, groups, pieces, 1, dropout), layers, rows


def test_dropout_draws_the_same_whatever_the_threads() -> None:
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(one_group(1500, 0.3)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], one_group(1500, 0.0)[0])


def test_dropout_keeps_its_share_and_the_expectation() -> None:
    rate, num_rows, width = 0.3, 4000, 50
    # One layer of constant answers: a result tells what was kept.
    layers = [(torch.zeros(1, width, 2), torch.full((1, width), 2.0))]
    pieces = torch.tensor([[0, 0, num_rows, 0, -1]])
    torch.manual_seed(0)
    result = routed_experts(
        torch.zeros(num_rows, 2), layers, None, None, ExpertGroups.of([[[True]]]), pieces, 1, rate
    )
    kept = (result > 0).flatten(1)
    torch.testing.assert_close(result[result > 0], torch.full((int(kept.sum()),), 2.0 / (1 - rate)))
    sd = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert abs(float(kept.double().mean()) - (1 - rate)) < 5 * sd
    # No row or column is favoured, and neighbours are independent of each other.
    assert (kept.double().mean(0) - (1 - rate)).abs().max() < 5 * (rate * (1 - rate) / num_rows) ** 0.5
    pairs = (kept[:, 1:] & kept[:, :-1]).double().mean()
    assert abs(float(pairs) - (1 - rate) ** 2) < 6 * sd
    pairs = (kept[1:] & kept[:-1]).double().mean()
    assert abs(float(pairs) - (1 - rate) ** 2) < 6 * sd


def test_two_calls_drop_different_units() -> None:
    torch.manual_seed(0)
    rows, pieces = torch.ones(50, 2), torch.tensor([[0, 0, 50, 0, -1]])
    layers = [(torch.ones(1, 30, 2), torch.ones(1, 30))]
    groups = ExpertGroups.of([[[True]]])
    first, second = (routed_experts(rows, layers, None, None, groups, pieces, 1, 0.5) for _ in range(2))
    assert not torch.equal(first, second)


def test_gradient_under_dropout_is_that_of_the_same_draw() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 3), (2, 5, 3), (2, 5), (2, 2, 5), (2, 2), (2, 3)]
    leaves = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    groups, pieces = ExpertGroups.of([[[True] * 2]]), torch.tensor([[0, 0, 6, 0, -1]])

    def seeded(rows: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gate: Tensor) -> Tensor:
        torch.manual_seed(3)
        return routed_experts(rows, [(w1, b1), (w2, b2)], gate, None, groups, pieces, 1, 0.4)

    assert torch.autograd.gradcheck(seeded, leaves)


def test_nan_is_not_cut_off() -> None:
    rows = torch.tensor([[1.0], [float("nan")]])
    layers = [(torch.ones(1, 2, 1), torch.zeros(1, 2))]
    for dropout in (0.0, 0.5):
        result = routed_experts(
            rows, layers, None, None, ExpertGroups.of([[[True]]]), scenario_pieces([2]), 1, dropout
        )
        assert result[1].isnan().all()
        assert not result[0].isnan().any()


def test_a_batch_without_rows_gives_gradients_of_zero() -> None:
    layers = [(torch.ones(1, 2, 3, requires_grad=True), torch.ones(1, 2, requires_grad=True))]
    result = routed_experts(
        torch.ones(0, 3), layers, None, None, ExpertGroups.of([[[True]]]), scenario_pieces([0]), 1
    )
    assert result.shape == (0, 1, 1, 2)
    result.sum().backward()
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in layers[0])


def test_other_precisions_and_devices_take_another_way() -> None:
    assert can_route(torch.ones(1))
    assert can_route(torch.ones(1, dtype=torch.float64))
    assert not can_route(torch.ones(1, dtype=torch.bfloat16))
    assert not can_route(torch.ones(1, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_route(torch.ones(1))


@pytest.fixture
def fresh_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    """An empty cache, and `available` as if it had not been asked yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.available.cache_clear()
    yield tmp_path
    library.available.cache_clear()


def test_without_a_compiler_models_do_without(
    fresh_library: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(fresh_library))
    with caplog.at_level(logging.WARNING):
        library.prepare()
    assert not library.available()
    assert [record.getMessage() for record in caplog.records] == [
        "doing without compiled experts, which costs speed on a CPU: no g++ on the PATH; expected a C++ compiler "
        "(apt-get install g++)"
    ]


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(
    fresh_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = fresh_library / "g++"
    compiler.write_text("#!/bin/sh\necho 'x.cpp:1: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(library.CompileError, match="no such thing"):
        library.compiled()
    assert list((fresh_library / "hinet-on-spark" / "native").iterdir()) == []


def test_scoring_does_not_wait_for_a_compiler(fresh_library: Path) -> None:
    assert not library.available()
    assert list(fresh_library.iterdir()) == []


def test_what_does_not_load_is_done_without(
    fresh_library: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = fresh_library / "g++"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho not a library > "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    library.prepare()
    with caplog.at_level(logging.WARNING):
        assert not library.available()
    assert "does not load, which costs speed on a CPU" in caplog.text


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    library.available.cache_clear()
    assert library.available()
    monkeypatch.setenv(library.SWITCH, "0")
    library.available.cache_clear()
    assert not library.available()
    library.available.cache_clear()
