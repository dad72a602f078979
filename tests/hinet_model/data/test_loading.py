"""Loading: real Petastorm over small Parquet files; every planned row once, in the planned order."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from petastorm.arrow_reader_worker import ArrowReaderWorker
from petastorm.reader import Reader
from petastorm.workers_pool import thread_pool
from petastorm.workers_pool.ventilator import Ventilator

from feature_eng.snapshot import DataFile, SnapshotError, SnapshotRef, schema_hash
from hinet_model.data.batch import Batch, BatchError, BatchLayout
from hinet_model.data.loading import LOOKAHEAD, SnapshotReader
from hinet_model.data.plan import EpochPlan, PlanError, plan_epoch
from hinet_model.data.row_groups import LoadingError

LAYOUT = BatchLayout.from_schema(
    {
        "fields": [
            {"name": "item", "kind": "index", "slots": 1, "size": 50, "columns": ["item"], "shares": None},
            {"name": "n", "kind": "number", "slots": 1, "size": 0, "columns": ["n"], "shares": None},
            {
                "name": "tags",
                "kind": "indices",
                "slots": 2,
                "size": 9,
                "columns": ["tags__0", "tags__1"],
                "shares": None,
            },
        ],
        "scenario_names": ["a", "b", "c"],
        "task_names": ["click", "like"],
    }
)
TINY = ((3, 5, 1), (4,), (2, 6))
"""Rows of six tiny row groups in three files."""


def make_table(row_ids: Sequence[int]) -> pa.Table:
    """Rows whose every column follows from the row id, and one column that nobody asks for."""
    ids = np.array(row_ids, dtype=np.int64)
    digits = np.abs(ids % 1000)
    return pa.table(
        {
            "row_id": ids,
            "scenario_index": (digits % 3).astype(np.int32),
            "label__click": (digits % 2).astype(np.float32),
            "label__like": (digits % 4 == 0).astype(np.float32),
            "item": (digits % 50).astype(np.int32),
            "item_name": pa.array([f"item {digit}" for digit in digits]),
            "n": (digits / 8).astype(np.float32),
            "tags__0": (digits % 9).astype(np.int32),
            "tags__1": np.full(len(ids), -1, dtype=np.int32),
        }
    )


def write_file(path: Path, table: pa.Table, row_groups: Sequence[int]) -> DataFile:
    """Write a table in row groups of the given sizes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, table.schema) as writer:
        start = 0
        for rows in row_groups:
            writer.write_table(table.slice(start, rows))
            start += rows
    return DataFile(str(path), path.stat().st_size, "train", tuple(row_groups))


def pin(folder: Path, files: Sequence[DataFile]) -> SnapshotRef:
    """A snapshot of files as if a table's log had listed them."""
    columns = tuple((field.name, str(field.type)) for field in make_table([]).schema)
    return SnapshotRef(
        table=str(folder),
        version=3,
        table_id="1",
        files=tuple(sorted(files, key=lambda file: file.path)),
        columns=columns,
        schema_hash=schema_hash(columns),
        contract_name="tiny",
        contract_fingerprint="0",
        encoder_path="",
        encoder_digest="0",
        scenario_rows={"train": (1, 1, 1)},
    )


def write_snapshot(folder: Path, files: Sequence[Sequence[int]], first_id: int = 0) -> SnapshotRef:
    """One file per list of row-group sizes; row ids count up from ``first_id``."""
    written = []
    for number, row_groups in enumerate(files):
        ids = range(first_id, first_id + sum(row_groups))
        first_id += sum(row_groups)
        written.append(write_file(folder / f"split=train/part-{number}.parquet", make_table(ids), row_groups))
    return pin(folder, written)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SnapshotRef:
    return write_snapshot(tmp_path_factory.mktemp("tiny"), TINY)


@pytest.fixture(scope="module")
def tiny_reader(tiny: SnapshotRef) -> Iterator[SnapshotReader]:
    with SnapshotReader(tiny, "train", LAYOUT) as reader:
        yield reader


def plan_for(reader: SnapshotReader, **changes: Any) -> EpochPlan:
    chosen = {"batch_size": 5, "lanes": 4, "seed": 1, "epoch": 0, "window_rows": 3, **changes}
    return plan_epoch(reader.row_groups, **chosen)


def facts(batch: Batch) -> tuple[Any, ...]:
    """Everything in a batch, to compare by."""
    values = [value.tolist() if isinstance(value, torch.Tensor) else value for value in vars(batch).values()]
    return tuple(map(str, values))


def row_ids(batches: Sequence[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.row_ids.tolist()]


def test_row_groups_come_in_the_snapshots_order_of_files_not_in_that_of_their_names(
    tiny: SnapshotRef,
) -> None:
    turned = replace(tiny, files=tuple(reversed(tiny.files)))
    with SnapshotReader(turned, "train", LAYOUT) as reader:
        assert reader.row_groups != tuple(rows for file in tiny.files for rows in file.row_groups)
        source = reader._source
        for group, expected in enumerate(reader.row_groups):
            source.ask(group)
            assert len(source.take()["row_id"]) == expected


def test_200_passes_over_6_tiny_row_groups_lose_none(tiny: SnapshotRef) -> None:
    with SnapshotReader(tiny, "train", LAYOUT) as reader:
        assert reader.row_groups == (3, 5, 1, 4, 2, 6)
        orders = set()
        for epoch in range(200):
            plan = plan_for(reader, epoch=epoch, lanes=2)
            batches = list(reader.batches(plan, 0, 1))
            assert len(batches) == plan.num_steps == 5
            order = row_ids(batches)
            assert sorted(order) == list(range(21))
            orders.add(tuple(order))
    assert len(orders) == 200


def test_rows_come_in_the_planned_order(tiny: SnapshotRef) -> None:
    with SnapshotReader(tiny, "train", LAYOUT) as reader:
        plan = plan_for(reader, lanes=2, window_rows=4)
        batches = list(reader.batches(plan, 0, 1))
    first_row = np.cumsum([0, *plan.row_groups])
    lanes = []
    for lane in range(2):
        rows = [first_row[g] + row for g, start, stop in plan.lane_pieces(lane) for row in range(start, stop)]
        windows = [np.array(rows[at : at + 4]) for at in range(0, len(rows), 4)]
        lanes.append(np.concatenate([w[plan.window_order(lane, n)] for n, w in enumerate(windows)]))
    for step, batch in enumerate(batches):
        planned = np.concatenate([lanes[lane][slice(*plan.slice_of(lane, step))] for lane in range(2)])
        # row ids are 0 to 20 and a row's scenario is its id modulo 3
        assert batch.row_ids.tolist() == sorted(planned.tolist(), key=lambda row: row % 3)


def test_20_readers_one_after_the_other_lose_none(tiny: SnapshotRef) -> None:
    for epoch in range(20):
        with SnapshotReader(tiny, "train", LAYOUT) as reader:
            assert sorted(row_ids(list(reader.batches(plan_for(reader, epoch=epoch), 0, 1)))) == list(
                range(21)
            )


def test_the_order_is_the_same_bit_by_bit_every_time(tiny: SnapshotRef) -> None:
    passes = []
    for _ in range(3):
        with SnapshotReader(tiny, "train", LAYOUT) as reader:
            passes += [[facts(batch) for batch in reader.batches(plan_for(reader), 0, 1)] for _ in range(2)]
    assert all(one == passes[0] for one in passes)


def test_columns_stay_with_their_row(tiny: SnapshotRef) -> None:
    table = make_table(range(21)).to_pydict()
    with SnapshotReader(tiny, "train", LAYOUT) as reader:
        for batch in reader.batches(plan_for(reader), 0, 1):
            rows = batch.row_ids.tolist()
            assert batch.scenario_index.tolist() == [table["scenario_index"][row] for row in rows]
            assert batch.labels.tolist() == [
                [table["label__click"][r], table["label__like"][r]] for r in rows
            ]
            assert batch.numbers.tolist() == [[table["n"][row]] for row in rows]
            padded = torch.cat([batch.unique_ids, torch.tensor([-1])])
            assert padded[batch.inverse].tolist() == [
                [table["item"][r], 50 + table["tags__0"][r], -1] for r in rows
            ]


@pytest.mark.parametrize("world_size", [2, 4])
def test_more_workers_see_the_same_global_batches(tiny: SnapshotRef, world_size: int) -> None:
    with SnapshotReader(tiny, "train", LAYOUT) as reader:
        plan = plan_for(reader)
        alone = list(reader.batches(plan, 0, 1))
        shares = [list(reader.batches(plan, rank, world_size)) for rank in range(world_size)]
    for step in range(plan.num_steps):
        together = Counter(row for share in shares for row in share[step].row_ids.tolist())
        assert together == Counter(alone[step].row_ids.tolist())
        assert {share[step].global_rows for share in shares} == {alone[step].num_rows}
        assert [share[step].num_rows for share in shares] == [
            plan.rows_of(rank, world_size, step) for rank in range(world_size)
        ]


@settings(max_examples=25)
@given(data=st.data())
def test_any_plan_gives_every_row_once_and_can_be_entered_at_any_step(
    tiny_reader: SnapshotReader, data: st.DataObject
) -> None:
    world_size = data.draw(st.sampled_from([1, 2, 4]))
    plan = plan_for(
        tiny_reader,
        batch_size=data.draw(st.integers(1, 25)),
        window_rows=data.draw(st.integers(1, 30)),
        epoch=data.draw(st.integers(0, 3)),
        lanes=data.draw(st.sampled_from([4, 8, 32])),
        shuffle=data.draw(st.booleans()),
    )
    start_step = data.draw(st.integers(0, plan.num_steps))
    seen: list[int] = []
    for rank in range(world_size):
        whole = list(tiny_reader.batches(plan, rank, world_size))
        tail = list(tiny_reader.batches(plan, rank, world_size, start_step))
        assert [facts(batch) for batch in tail] == [facts(batch) for batch in whole[start_step:]]
        seen += row_ids(whole)
    assert sorted(seen) == list(range(21))


def test_a_rank_with_nothing_to_read_gets_empty_batches(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path, [[1], [1]])
    with SnapshotReader(snapshot, "train", LAYOUT) as reader:
        plan = plan_for(reader, lanes=8)
        batches = list(reader.batches(plan, 0, 4))
        assert [(batch.num_rows, batch.global_rows) for batch in batches] == [(0, 2)]


def test_a_split_without_files_gives_no_batches(tiny: SnapshotRef) -> None:
    with SnapshotReader(tiny, "validation", LAYOUT) as reader:
        assert list(reader.batches(plan_for(reader), 0, 1)) == []


def test_without_shuffle_rows_come_in_the_files_order(tiny: SnapshotRef) -> None:
    with SnapshotReader(tiny, "train", LAYOUT) as reader:
        plan = plan_for(reader, lanes=1, batch_size=1, shuffle=False)
        assert row_ids(list(reader.batches(plan, 0, 1))) == list(range(21))


def test_ids_near_the_ends_of_int64_survive(tmp_path: Path) -> None:
    ids = [2**63 - 1, 2**63 - 2, -(2**63), 2**53 + 1, 2**24 + 1]
    snapshot = pin(tmp_path, [write_file(tmp_path / "a.parquet", make_table(ids), [2, 3])])
    with SnapshotReader(snapshot, "train", LAYOUT) as reader:
        assert sorted(row_ids(list(reader.batches(plan_for(reader), 0, 1)))) == sorted(ids)


def test_file_names_are_taken_as_they_are(tmp_path: Path) -> None:
    names = ["part 1%20x.parquet", "part#2?.parquet", "größe=3.parquet"]
    files = [
        write_file(tmp_path / name, make_table(range(4 * n, 4 * n + 4)), [4]) for n, name in enumerate(names)
    ]
    with SnapshotReader(pin(tmp_path, files), "train", LAYOUT) as reader:
        assert sorted(row_ids(list(reader.batches(plan_for(reader), 0, 1)))) == list(range(12))


def test_files_of_other_versions_in_the_folder_are_not_read(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path, [[4], [5]])
    write_file(tmp_path / "split=train" / "part-00-removed.parquet", make_table(range(100, 120)), [20])
    with SnapshotReader(snapshot, "train", LAYOUT) as reader:
        assert sorted(row_ids(list(reader.batches(plan_for(reader), 0, 1)))) == list(range(9))


def test_a_pass_left_early_does_not_disturb_the_next(tiny: SnapshotRef) -> None:
    before = threading.active_count()
    with SnapshotReader(tiny, "train", LAYOUT, prefetch=1) as reader:
        for epoch in range(10):
            next(reader.batches(plan_for(reader, epoch=epoch), 0, 1))
            plan = plan_for(reader, epoch=epoch)
            assert sorted(row_ids(list(reader.batches(plan, 0, 1)))) == list(range(21))
        next(reader.batches(plan_for(reader), 0, 1))
    assert threading.active_count() == before


def test_a_consumer_that_raises_leaves_no_thread(tiny: SnapshotRef) -> None:
    before = threading.active_count()

    def train() -> None:
        with SnapshotReader(tiny, "train", LAYOUT) as reader:
            for _ in reader.batches(plan_for(reader), 0, 1):
                raise KeyError("the model")

    with pytest.raises(KeyError, match="the model"):
        train()
    assert threading.active_count() == before


def test_reading_is_silent(tiny: SnapshotRef, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with SnapshotReader(tiny, "train", LAYOUT) as reader:
            list(reader.batches(plan_for(reader), 0, 1))
    # Petastorm leaves closing its files to the garbage collector; Python tells only those who ask.
    messages = [str(warning.message) for warning in caught if warning.category is not ResourceWarning]
    assert messages == []
    assert capfd.readouterr() == ("", "")


def test_the_wait_for_batches_is_measured_over_all_passes(tiny: SnapshotRef) -> None:
    with SnapshotReader(tiny, "train", LAYOUT) as reader:
        list(reader.batches(plan_for(reader), 0, 1))
        first = reader.wait_seconds
        assert first > 0
        list(reader.batches(plan_for(reader), 0, 1))
        assert reader.wait_seconds > first


# Faults: each is refused by name, before a row of it reaches the model.


def read_all(snapshot: SnapshotRef, layout: BatchLayout = LAYOUT) -> list[Batch]:
    with SnapshotReader(snapshot, "train", layout) as reader:
        return list(reader.batches(plan_for(reader), 0, 1))


def test_a_file_that_is_gone_or_changed_is_named_before_reading(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path, [[4], [5]])
    victim = Path(snapshot.files[1].path)
    victim.write_bytes(victim.read_bytes() + b"x")
    with pytest.raises(SnapshotError, match=r"part-1\.parquet: the file has"):
        read_all(snapshot)
    victim.unlink()
    with pytest.raises(SnapshotError, match=r"part-1\.parquet: the file is gone"):
        read_all(snapshot)


def test_a_file_that_vanishes_while_reading_is_named(tmp_path: Path) -> None:
    before = threading.active_count()
    snapshot = write_snapshot(tmp_path, [[4]] * 20)
    with SnapshotReader(snapshot, "train", LAYOUT, prefetch=1) as reader:
        plan = plan_for(reader, lanes=1, batch_size=4, window_rows=4, shuffle=False)
        batches = reader.batches(plan, 0, 1)
        next(batches)
        Path(snapshot.files[-1].path).unlink()
        with pytest.raises(SnapshotError, match=r"part-9\.parquet: the file is gone") as caught:
            list(batches)
        assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert threading.active_count() == before


@pytest.mark.parametrize(("recorded", "read"), [(5, 4), (3, 4)])
def test_a_row_group_with_other_rows_than_planned_is_named(tmp_path: Path, recorded: int, read: int) -> None:
    snapshot = write_snapshot(tmp_path, [[2, read]])
    wrong = replace(snapshot, files=(replace(snapshot.files[0], row_groups=(2, recorded)),))
    message = rf"part-0\.parquet, row group 1: planned {recorded} rows, read {read}"
    with pytest.raises(LoadingError, match=message):
        read_all(wrong)


def test_a_file_with_other_row_groups_than_recorded_is_refused(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path, [[2, 4]])
    wrong = replace(snapshot, files=(replace(snapshot.files[0], row_groups=(6,)),))
    with pytest.raises(LoadingError, match="the files have 2 row groups, the snapshot 1"):
        read_all(wrong)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("row_id", "column 'row_id' came as float64; expected int64 without nulls"),
        ("item", "column 'item' came as float64; expected int32 without nulls"),
        ("n", "column 'n' holds a null or NaN"),
    ],
)
def test_a_null_is_refused_by_file_and_column(tmp_path: Path, column: str, message: str) -> None:
    table = make_table(range(4))
    values = table[column].to_pylist()
    values[2] = None
    table = table.set_column(
        table.column_names.index(column), column, pa.array(values, type=table.schema.field(column).type)
    )
    good = write_file(tmp_path / "a.parquet", make_table(range(4, 8)), [4])
    snapshot = pin(tmp_path, [good, write_file(tmp_path / "b.parquet", table, [4])])
    with pytest.raises(LoadingError, match=rf"b\.parquet, row group 0: {message}"):
        read_all(snapshot)


def test_a_file_with_another_dtype_or_without_a_column_is_named(tmp_path: Path) -> None:
    good = write_file(tmp_path / "a.parquet", make_table(range(4)), [4])
    table = make_table(range(4, 8))
    wide = table.set_column(table.column_names.index("n"), "n", table["n"].cast(pa.float64()))
    snapshot = pin(tmp_path, [good, write_file(tmp_path / "b.parquet", wide, [4])])
    with pytest.raises(
        LoadingError, match=r"b\.parquet, row group 0: column 'n' came as float64; expected float32"
    ):
        read_all(snapshot)
    old = write_file(tmp_path / "b.parquet", table.drop(["n"]), [4])
    with pytest.raises(LoadingError, match=r"b\.parquet, row group 0: .*'n'"):
        read_all(pin(tmp_path, [good, old]))
    with pytest.raises(LoadingError, match=r"b\.parquet, row group 0: column 'n' is missing"):
        read_all(pin(tmp_path, [old]))


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path, [[4], [4]])
    broken = Path(snapshot.files[1].path)
    broken.write_bytes(b"x" * snapshot.files[1].size)
    with pytest.raises(LoadingError, match=r"cannot be opened: .*Parquet"):
        read_all(snapshot)


def test_a_snapshot_without_the_layouts_columns_is_refused_at_once(tiny: SnapshotRef) -> None:
    without = replace(tiny, columns=tuple(column for column in tiny.columns if column[0] != "item"))
    with pytest.raises(
        LoadingError, match=r"column 'item' is needed as int32, but version 3 of .* does not have it"
    ):
        SnapshotReader(without, "train", LAYOUT)
    other = replace(tiny, columns=tuple((n, "int64" if n == "item" else t) for n, t in tiny.columns))
    with pytest.raises(LoadingError, match=r"column 'item' is needed as int32, but .* has it as int64"):
        SnapshotReader(other, "train", LAYOUT)


def test_an_index_out_of_range_reaches_the_consumer_by_column(tiny: SnapshotRef) -> None:
    field = replace(LAYOUT.slot_fields[0], size=5)
    small = replace(LAYOUT, slot_fields=(field, *LAYOUT.slot_fields[1:]))
    with pytest.raises(BatchError, match="column 'item' holds"):
        read_all(tiny, small)


def test_another_splits_plan_and_impossible_worlds_are_refused(tiny: SnapshotRef) -> None:
    with SnapshotReader(tiny, "train", LAYOUT) as reader:
        with pytest.raises(
            LoadingError, match="the plan is for 1 row groups with 7 rows, but the split has 6 with 21"
        ):
            reader.batches(plan_epoch([7], batch_size=1, lanes=1, seed=0, epoch=0, window_rows=1), 0, 1)
        with pytest.raises(PlanError, match="3 workers cannot share 4 lanes"):
            reader.batches(plan_for(reader), 0, 3)
        with pytest.raises(PlanError, match="step 9 is outside"):
            reader.batches(plan_for(reader), 0, 1, start_step=9)


# Petastorm's inner parts that loading relies on: when one of these fails, read loading.py anew.


def test_petastorm_hands_what_it_found_to_filter_row_groups_before_it_asks_for_the_ventilator() -> None:
    assert list(inspect.signature(Reader._filter_row_groups).parameters)[:3] == [
        "self",
        "dataset",
        "row_groups",
    ]
    source = inspect.getsource(Reader.__init__)
    assert source.index("self._filter_row_groups(") < source.index("self._create_ventilator(")


def test_petastorm_asks_create_ventilator_for_what_feeds_its_pool() -> None:
    source = inspect.getsource(Reader.__init__)
    assert "self.ventilator = self._create_ventilator(filtered_row_group_indexes" in source
    assert "ventilator=self.ventilator" in source
    assert Ventilator.__abstractmethods__ == {"start", "processed_item", "completed", "stop"}


def test_petastorms_worker_takes_a_piece_by_index() -> None:
    parameters = list(inspect.signature(ArrowReaderWorker.process).parameters)
    assert parameters == ["self", "piece_index", "worker_predicate", "shuffle_row_drop_partition"]


def test_petastorms_pool_polls_at_an_interval_that_can_be_set() -> None:
    source = inspect.getsource(thread_pool.WorkerThread.run)
    assert "timeout=IO_TIMEOUT_INTERVAL_S" in source
    assert thread_pool.IO_TIMEOUT_INTERVAL_S <= 0.05


def test_petastorms_queue_of_results_holds_what_is_asked_ahead() -> None:
    pool = thread_pool.ThreadPool(1)
    # Two messages per row group: its rows, and that it is done.
    assert pool._results_queue_size >= 2 * (LOOKAHEAD + 1)


def test_petastorm_numbers_row_groups_in_the_order_of_the_file_list(tiny: SnapshotRef) -> None:
    backwards = replace(tiny, files=tiny.files[::-1])
    with SnapshotReader(backwards, "train", LAYOUT) as reader:
        assert reader.row_groups == (2, 6, 4, 3, 5, 1)
        plan = plan_for(reader, lanes=1, batch_size=1, shuffle=False)
        assert row_ids(list(reader.batches(plan, 0, 1))) == [*range(13, 21), *range(9, 13), *range(9)]
