"""The epoch plan: every row once, the same global batches for any number of workers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.settings import UserError
from hinet_model.data.plan import EpochPlan, Piece, PlanError, plan_epoch

SETTINGS = {"batch_size": 10, "lanes": 4, "seed": 7, "epoch": 0, "window_rows": 16}

GOLDEN_GROUPS = (6, 2, 3, 0, 4, 5, 1, 7)
GOLDEN_WINDOW = (9, 0, 2, 7, 1, 13, 15, 14, 11, 6, 10, 12, 3, 4, 5, 8)


@lru_cache(maxsize=64)
def rows_by_definition(plan: EpochPlan, lane: int) -> list[tuple[int, int]]:
    """(row group, row) of a lane in the order they are given out in: the plan's text, written slowly."""
    sequence = [(group, row) for group in plan.group_order for row in range(plan.row_groups[group])]
    start = sum(plan.lane_rows(before) for before in range(lane))
    rows = sequence[start : start + plan.lane_rows(lane)]
    shuffled = []
    for window in range(-(-len(rows) // plan.window_rows)):
        part = rows[window * plan.window_rows : (window + 1) * plan.window_rows]
        shuffled += [part[position] for position in plan.window_order(lane, window)]
    return shuffled


def rows_of_step(plan: EpochPlan, world_size: int, step: int) -> dict[int, list[tuple[int, int]]]:
    """Rows of a global batch by lane, collected over the ranks of a world."""
    by_lane = {}
    for rank in range(world_size):
        for lane in plan.lanes_of(rank, world_size):
            start, stop = plan.slice_of(lane, step)
            by_lane[lane] = rows_by_definition(plan, lane)[start:stop]
    return by_lane


# Slow definitions on a shared machine: what counts is the answer, not the time.

plans = st.builds(
    plan_epoch,
    st.lists(st.integers(0, 40), max_size=12),
    batch_size=st.integers(1, 50),
    lanes=st.sampled_from([1, 2, 4, 8, 12]),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 5),
    window_rows=st.integers(1, 40),
    shuffle=st.booleans(),
)


@given(plans)
def test_every_row_comes_exactly_once_an_epoch(plan: EpochPlan) -> None:
    seen = Counter(
        row for step in range(plan.num_steps) for rows in rows_of_step(plan, 1, step).values() for row in rows
    )
    assert seen == Counter((group, row) for group, rows in enumerate(plan.row_groups) for row in range(rows))


@given(plans)
def test_every_step_but_the_last_is_a_full_global_batch(plan: EpochPlan) -> None:
    sizes = [plan.global_rows(step) for step in range(plan.num_steps)]
    assert sum(sizes) == plan.num_rows
    assert all(size == plan.batch_size for size in sizes[:-1])
    assert all(size > 0 for size in sizes)


@given(plans, st.integers(1, 12))
def test_the_ranks_rows_add_up_to_the_global_batch(plan: EpochPlan, world_size: int) -> None:
    if plan.lanes % world_size:
        with pytest.raises(PlanError, match="expected one of"):
            plan.lanes_of(0, world_size)
        return
    for step in range(plan.num_steps):
        rows = [plan.rows_of(rank, world_size, step) for rank in range(world_size)]
        assert sum(rows) == plan.global_rows(step)


@given(plans)
def test_one_two_and_four_workers_see_the_same_global_batches(plan: EpochPlan) -> None:
    for step in range(min(plan.num_steps, 3)):
        alone = rows_of_step(plan, 1, step)
        for world_size in (2, 4):
            if plan.lanes % world_size == 0:
                assert rows_of_step(plan, world_size, step) == alone


@given(plans, st.data())
def test_pieces_are_the_lanes_rows_from_any_row_on(plan: EpochPlan, data: st.DataObject) -> None:
    lane = data.draw(st.integers(0, plan.lanes - 1))
    start = data.draw(st.integers(0, plan.lane_rows(lane)))
    rows = [
        (piece.row_group, row)
        for piece in plan.lane_pieces(lane, start)
        for row in range(piece.start, piece.stop)
    ]
    in_order = replace(plan, shuffle=False)
    assert rows == rows_by_definition(in_order, lane)[start:]


@given(plans, st.data())
def test_reads_cover_each_window_before_its_first_step(plan: EpochPlan, data: st.DataObject) -> None:
    world_size = data.draw(st.sampled_from([size for size in (1, 2, 3, 4) if plan.lanes % size == 0]))
    rank = data.draw(st.integers(0, world_size - 1))
    start_step = data.draw(st.integers(0, plan.num_steps))
    read: Counter[int] = Counter()
    for lane, piece in plan.reads_of(rank, world_size, start_step):
        assert lane in plan.lanes_of(rank, world_size)
        read[lane] += piece.stop - piece.start
    for lane in plan.lanes_of(rank, world_size):
        entered = plan.slice_of(lane, start_step)[0] if start_step < plan.num_steps else plan.lane_rows(lane)
        rest = plan.lane_rows(lane) - entered
        # The window that is entered is read from its beginning; a lane with nothing left is not read at all.
        assert read[lane] == (rest + entered % plan.window_rows if rest else 0)


@given(plans)
def test_windows_are_permutations_of_their_rows(plan: EpochPlan) -> None:
    for lane in range(plan.lanes):
        for window in range(-(-plan.lane_rows(lane) // plan.window_rows)):
            order = plan.window_order(lane, window)
            rows = min(plan.window_rows, plan.lane_rows(lane) - window * plan.window_rows)
            assert sorted(order) == list(range(rows))


def test_a_group_across_a_cut_is_read_by_both_lanes() -> None:
    plan = plan_epoch([6], batch_size=2, lanes=2, seed=0, epoch=0, window_rows=8)
    assert list(plan.lane_pieces(0)) == [Piece(0, 0, 3)]
    assert list(plan.lane_pieces(1)) == [Piece(0, 3, 6)]


def test_lanes_may_be_empty_when_rows_are_few() -> None:
    plan = plan_epoch([1, 0, 1], batch_size=4, lanes=8, seed=0, epoch=0, window_rows=8)
    assert [plan.lane_rows(lane) for lane in range(8)] == [0, 0, 0, 0, 0, 0, 1, 1]
    assert plan.num_steps == 1
    assert plan.rows_of(0, 4, 0) == 0


def test_no_rows_make_no_steps() -> None:
    plan = plan_epoch([], **SETTINGS)
    assert plan.num_steps == 0
    assert list(plan.reads_of(0, 2)) == []
    assert len(plan.hash) == 64


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 8}])
def test_epochs_and_seeds_differ_in_groups_and_rows(change: dict[str, int]) -> None:
    row_groups = [50] * 20
    plan = plan_epoch(row_groups, **SETTINGS)
    other = plan_epoch(row_groups, **{**SETTINGS, **change})
    assert plan.group_order != other.group_order
    assert not np.array_equal(plan.window_order(0, 0), other.window_order(0, 0))
    assert plan.hash != other.hash


def test_lanes_and_windows_are_shuffled_apart() -> None:
    plan = plan_epoch([1000], **{**SETTINGS, "window_rows": 50})
    orders = {tuple(plan.window_order(lane, window)) for lane in range(4) for window in range(5)}
    assert len(orders) == 20


def test_the_same_settings_give_the_same_plan_and_hash() -> None:
    assert plan_epoch([50] * 20, **SETTINGS) == plan_epoch([50] * 20, **SETTINGS)
    assert plan_epoch([50] * 20, **SETTINGS).hash == plan_epoch([50] * 20, **SETTINGS).hash


def test_the_order_is_the_same_on_every_machine() -> None:
    plan = plan_epoch([50] * 8, **SETTINGS)
    assert plan.group_order == GOLDEN_GROUPS
    assert tuple(plan.window_order(1, 2)) == GOLDEN_WINDOW


@pytest.mark.parametrize(
    ("field", "value"), [("batch_size", 11), ("lanes", 2), ("window_rows", 17), ("shuffle", False)]
)
def test_the_hash_covers_every_setting(field: str, value: int) -> None:
    plan = plan_epoch([50] * 20, **SETTINGS)
    assert plan_epoch([50] * 20, **{**SETTINGS, field: value}).hash != plan.hash
    assert plan_epoch([50] * 19 + [51], **SETTINGS).hash != plan.hash


def test_without_shuffle_rows_come_in_the_snapshots_order() -> None:
    plan = plan_epoch([5, 3], batch_size=8, lanes=2, seed=0, epoch=0, window_rows=3, shuffle=False)
    assert rows_by_definition(plan, 0) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert rows_by_definition(plan, 1) == [(0, 4), (1, 0), (1, 1), (1, 2)]


def test_a_world_size_that_does_not_divide_the_lanes_is_refused_with_those_that_do() -> None:
    plan = plan_epoch([50], **{**SETTINGS, "lanes": 8})
    with pytest.raises(
        UserError, match=r"3 workers cannot share 8 lanes evenly; expected one of \[1, 2, 4, 8\]"
    ):
        plan.lanes_of(0, 3)
    with pytest.raises(PlanError, match="rank 2 is not one of 0 to 1"):
        plan.lanes_of(2, 2)


@pytest.mark.parametrize(
    ("field", "value"), [("batch_size", 0), ("lanes", 0), ("window_rows", 0), ("seed", -1), ("epoch", -1)]
)
def test_settings_out_of_range_are_refused_by_name(field: str, value: int) -> None:
    with pytest.raises(PlanError, match=f"{field} is {value}"):
        plan_epoch([50], **{**SETTINGS, field: value})


def test_a_step_outside_of_the_epoch_is_refused() -> None:
    plan = plan_epoch([50], **SETTINGS)
    assert plan.num_steps == 5
    with pytest.raises(PlanError, match="step 5 is outside of epoch 0; expected 0 to 4"):
        plan.global_rows(5)
    assert list(plan.reads_of(0, 1, start_step=5)) == []
    with pytest.raises(PlanError, match="expected 0 to 5"):
        list(plan.reads_of(0, 1, start_step=6))
