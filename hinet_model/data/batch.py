"""Batch: the one type that loader, model and loss share, and how it is made from table columns.

Shape letters in this file:
    B  rows in the batch             M  scenarios
    S  slot columns of id features   N  tasks
    P  number columns                U  distinct embedding rows the batch touches
    L  look-ups of a row: S, and more where values are wider than a row of the table

All id features share one fused embedding table: index ``j`` of field ``f`` is row ``offset[f] + j``, or, where
a value is ``parts`` rows of the table wide, the ``parts`` rows from ``offset[f] + j * parts``. Making the
distinct rows and the way back to them (``unique_ids``, ``inverse``) here, on the loader's thread, is what gives
the embedding table a gradient that is de-duplicated before it exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foundation.settings import UserError

PADDING = -1
"""Value of an unused slot in a multi-valued or history column; told apart from 0 = unknown."""

# Up to this many table rows, marking them in a flag array beats sorting the batch's ids. Measured on 82k ids:
# flags take 0.8 ms for a table of 10k rows, 1.6 ms for 100k, 6 ms for 1M, 10 ms for 4M; the sort 6 to 9 ms
# for all of them.
_FLAG_ARRAY_ROWS = 1_000_000


class BatchError(UserError):
    """Columns that cannot become a batch: missing, of another dtype, or out of the encoder's range."""


@dataclass(frozen=True)
class Batch:
    """Rows of one training, validation or scoring step, sorted by scenario.

    Rows of scenario ``i`` are one contiguous run, the ``i``-th, in input order (the sort is stable), so that
    a model sends them through their own scenario's layers as slices, without asking the device for counts.

    Args:
        scenario_counts: Rows of each scenario, ``M`` Python ints that sum to ``B``.
        scenario_index: Scenario of each row, ascending. ``(B,)`` int64.
        unique_ids: Distinct rows of the fused embedding table that the batch touches, ascending. ``(U,)``
            int64.
        inverse: Position in ``unique_ids`` of each part of each slot; ``U`` marks padding. ``(B, L)`` int64.
        numbers: Number features. ``(B, P)`` float32.
        labels: Labels 0 or 1, -1 where a row has none, tasks in contract order. ``(B, N)`` float32;
            ``(B, 0)`` when scoring without labels.
        row_ids: Stable ids of the rows; their position in the input where the input has none. ``(B,)`` int64.
        global_rows: Rows of the global batch over all workers, which the loss divides by.
        row_weights: What each row weighs in the loss, at least 0; None where all weigh 1. ``(B,)`` float32.
    """

    scenario_counts: tuple[int, ...]
    scenario_index: Tensor
    unique_ids: Tensor
    inverse: Tensor
    numbers: Tensor
    labels: Tensor
    row_ids: Tensor
    global_rows: int
    row_weights: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Rows ``B`` of this batch; 0 is a normal case."""
        return int(self.scenario_index.shape[0])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on ``device``; the counts stay on the host."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which ``to(device, non_blocking=True)`` overlaps with
        work.
        """
        return self._with_each(Tensor.pin_memory)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {
            name: change(tensor) for name in _TENSORS if (tensor := getattr(self, name)) is not None
        }
        return replace(self, **changed)


_TENSORS = ("scenario_index", "unique_ids", "inverse", "numbers", "labels", "row_ids", "row_weights")


@dataclass(frozen=True)
class NegativeSampling:
    """Which share of the negatives was trained on, where the model's answers must make up for it.

    Args:
        task: Position of the task whose label 0 was sampled.
        kept_negatives: Share kept in each scenario.
    """

    task: int
    kept_negatives: tuple[float, ...]


@dataclass(frozen=True)
class SlotField:
    """One id feature as the model sees it: which look-ups it has and which rows of the fused table.

    Args:
        name: Name of the feature in the contract.
        columns: Its columns in the training table, one per slot.
        positions: Its places among the ``L`` look-ups of ``Batch.inverse``, contiguous and ascending: the
            first part of every slot, then the second of every slot, and so on.
        pooled: Whether its slots are pooled into one vector (multi-valued, history) and may hold padding.
        offset: First row of its vocabulary in the fused table; index 0 = unknown is that row.
        size: Number of its indices, "unknown" included.
        shares: Name of the field whose rows it uses too (the history of items uses the item's), else None.
        parts: Rows of the table that make one value of it.
        beside: Name of the field whose slots it tells more of, slot by slot (ages and kinds of a history), else None.
    """

    name: str
    columns: tuple[str, ...]
    positions: tuple[int, ...]
    pooled: bool
    offset: int
    size: int
    shares: str | None
    parts: int = 1
    beside: str | None = None


@dataclass(frozen=True)
class BatchLayout:
    """Where every column of the training table goes in a `Batch`. Build it with `from_schema`; it pickles.

    Args:
        slot_fields: The id features, in contract order.
        number_columns: The number features' columns, in contract order.
        scenario_names: Names in the order of ``scenario_index``.
        task_names: Names in the order of the label columns.
        num_embeddings: Rows of the fused embedding table.
        has_row_weights: Whether the table says what each row weighs in the loss.
        sampling: Of the negatives, where answers must make up for it; None where not.
    """

    slot_fields: tuple[SlotField, ...]
    number_columns: tuple[str, ...]
    scenario_names: tuple[str, ...]
    task_names: tuple[str, ...]
    num_embeddings: int
    has_row_weights: bool = False
    sampling: NegativeSampling | None = None

    @classmethod
    def from_schema(cls, schema: Mapping[str, Any], widths: Mapping[str, int] | None = None) -> BatchLayout:
        """Lay out the fields of an encoder's `model_schema()`.

        Args:
            schema: ``{"fields": [{name, kind, slots, size, columns, shares}], "scenario_names", "task_names"}``, in
                fields that tell more of another's slots its name, ``beside``, and where the data call for them
                ``"row_weights": True`` and ``"shift": {"task", "kept_negatives"}``.
            widths: Width of the embedding of every id feature that has rows of its own; all have one width
                if not given. A row of the table is as wide as their greatest common divisor.

        Raises:
            BatchError: A field shares the rows of one that does not exist or has another size, or has a kind
                or a number of columns that cannot be.
        """
        slot_fields: dict[str, SlotField] = {}
        numbers: list[str] = []
        num_embeddings = num_lookups = 0
        # A field may share the rows of one that comes later in the contract, so owners get their offsets
        # first.
        offsets: dict[str, int] = {}
        sizes: dict[str, int] = {}
        parts: dict[str, int] = {}
        slots = {field["name"]: (field["kind"], len(field["columns"])) for field in schema["fields"]}
        row_dim = math.gcd(*widths.values()) if widths else 1
        for field in schema["fields"]:
            if field["kind"] in ("index", "indices") and field["shares"] is None:
                offsets[field["name"]] = num_embeddings
                sizes[field["name"]] = int(field["size"])
                parts[field["name"]] = widths[field["name"]] // row_dim if widths else 1
                num_embeddings += int(field["size"]) * parts[field["name"]]
        for field in schema["fields"]:
            name, kind, shares = str(field["name"]), field["kind"], field["shares"]
            columns = tuple(str(column) for column in field["columns"])
            if len(columns) != int(field["slots"]) or kind not in ("index", "indices", "number"):
                raise BatchError(
                    f"field '{name}': kind {kind!r} with {field['slots']} slots and columns {list(columns)}; "
                    "expected index, indices or number with one column per slot"
                )
            if kind == "number":
                numbers.extend(columns)
                continue
            owner = name if shares is None else str(shares)
            if owner not in offsets:
                raise BatchError(
                    f"field '{name}' shares the embedding of '{owner}', which is not an id field of its own"
                )
            if int(field["size"]) != sizes[owner]:
                raise BatchError(
                    f"field '{name}' has {field['size']} indices but shares the embedding of '{owner}', "
                    f"which has {sizes[owner]}; expected equal sizes"
                )
            beside = field.get("beside")
            if beside is not None and slots.get(beside) != ("indices", len(columns)):
                raise BatchError(
                    f"field '{name}' tells of the slots of '{beside}'; expected a field of {len(columns)} of them"
                )
            num_places = len(columns) * parts[owner]
            slot_fields[name] = SlotField(
                name=name,
                columns=columns,
                positions=tuple(range(num_lookups, num_lookups + num_places)),
                pooled=kind == "indices",
                offset=offsets[owner],
                size=sizes[owner],
                shares=None if shares is None else owner,
                parts=parts[owner],
                beside=beside,
            )
            num_lookups += num_places
        shift = schema.get("shift")
        return cls(
            slot_fields=tuple(slot_fields.values()),
            number_columns=tuple(numbers),
            scenario_names=tuple(schema["scenario_names"]),
            task_names=tuple(schema["task_names"]),
            num_embeddings=num_embeddings,
            has_row_weights=bool(schema.get("row_weights")),
            sampling=NegativeSampling(int(shift["task"]), tuple(shift["kept_negatives"])) if shift else None,
        )

    @property
    def num_slots(self) -> int:
        """Slot columns ``S`` of all id features."""
        return sum(len(field.columns) for field in self.slot_fields)

    @property
    def num_numbers(self) -> int:
        """Number columns ``P``."""
        return len(self.number_columns)

    @property
    def num_scenarios(self) -> int:
        """Scenarios ``M``."""
        return len(self.scenario_names)

    @property
    def num_tasks(self) -> int:
        """Tasks ``N``."""
        return len(self.task_names)

    @property
    def slot_columns(self) -> tuple[str, ...]:
        """Training-table columns of the ``S`` slots, field by field."""
        return tuple(column for field in self.slot_fields for column in field.columns)

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Training-table columns of the ``N`` labels, in task order."""
        return tuple(f"label__{task}" for task in self.task_names)

    @property
    def columns(self) -> dict[str, str]:
        """What to read from the training table: column name -> numpy dtype name, nothing else and no
        nulls.
        """
        return {
            "row_id": "int64",
            "scenario_index": "int32",
            **dict.fromkeys(self.label_columns, "float32"),
            **({"row_weight": "float32"} if self.has_row_weights else {}),
            **dict.fromkeys(self.slot_columns, "int32"),
            **dict.fromkeys(self.number_columns, "float32"),
        }

    def to_batch(
        self, columns: Mapping[str, npt.NDArray[Any]], global_rows: int | None = None
    ) -> tuple[Batch, npt.NDArray[np.int64]]:
        """Make a `Batch` of encoded columns.

        Args:
            columns: Training-table columns, equally long; zero rows are fine. ``row_id``, the labels (all of
                them) and ``row_weight`` may be missing, as they are when scoring; columns the layout does
                not know are ignored.
            global_rows: Rows of the global batch that this one is part of; its own rows if not given.

        Returns:
            The batch, and ``order``: the input row of each batch row, so that
            ``scores_in_input_order[order] = scores`` undoes the sort by scenario.

        Raises:
            BatchError: Names the column that is missing, of another dtype or length, out of range or not
                finite.
        """
        scenario = _column(columns, "scenario_index", "int32", None)
        num_rows = len(scenario)
        _check_range("scenario_index", scenario, 0, self.num_scenarios, "scenarios")
        order, counts = _sort_by_scenario(scenario, self.num_scenarios)

        unique_ids, inverse = self._distinct_ids(columns, order)
        numbers = self._floats(columns, self.number_columns, order)
        has_labels = any(column in columns for column in self.label_columns)
        labels = self._floats(columns, self.label_columns if has_labels else (), order)
        is_weighted = self.has_row_weights and "row_weight" in columns
        weights = self._floats(columns, ("row_weight",), order)[:, 0] if is_weighted else None
        row_ids = _column(columns, "row_id", "int64", num_rows)[order] if "row_id" in columns else order
        batch = Batch(
            scenario_counts=tuple(int(count) for count in counts),
            scenario_index=torch.from_numpy(np.repeat(np.arange(self.num_scenarios, dtype=np.int64), counts)),
            unique_ids=torch.from_numpy(unique_ids),
            inverse=torch.from_numpy(inverse),
            numbers=torch.from_numpy(numbers),
            labels=torch.from_numpy(labels),
            row_ids=torch.from_numpy(row_ids.copy() if row_ids is order else row_ids),
            global_rows=num_rows if global_rows is None else global_rows,
            row_weights=None if weights is None else torch.from_numpy(weights),
        )
        return batch, order

    def _distinct_ids(
        self, columns: Mapping[str, npt.NDArray[Any]], order: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """``unique_ids (U,)`` and ``inverse (B, L)`` of the slot columns, rows taken in ``order``."""
        num_rows = len(order)
        index_SB = np.empty((self.num_slots, num_rows), dtype=np.int32)
        for slot, name in enumerate(self.slot_columns):
            index_SB[slot] = _column(columns, name, "int32", num_rows)
        self._check_indices(index_SB)
        offset_S = np.array([f.offset for f in self.slot_fields for _ in f.columns], dtype=np.int64)
        index_SB = np.take(index_SB, order, axis=1)
        mixed = any(field.parts > 1 for field in self.slot_fields)
        if mixed:
            parts_S = np.array([f.parts for f in self.slot_fields for _ in f.columns], dtype=np.int64)
            value_SB = index_SB * parts_S[:, None] + offset_S[:, None]
        else:
            value_SB = index_SB + offset_S[:, None]
        id_SB = np.where(index_SB == PADDING, self.num_embeddings, value_SB)
        distinct = distinct_by_flags if self.num_embeddings <= _FLAG_ARRAY_ROWS else distinct_by_sort
        unique_ids, inverse = distinct(np.ascontiguousarray(id_SB.T), self.num_embeddings)
        return self._in_parts(unique_ids, inverse) if mixed else (unique_ids, inverse)

    def _in_parts(
        self, first_ids_V: npt.NDArray[np.int64], value_BS: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """All rows of distinct values, whose first rows are found already: only those had to be compared.

        Args:
            first_ids_V: First row of each of the ``V`` distinct values, ascending.
            value_BS: Which of them each slot holds; ``V`` marks padding.
        """
        owners = [field for field in self.slot_fields if field.shares is None]
        owners.sort(key=lambda field: field.offset)
        owner_V = np.searchsorted([field.offset for field in owners], first_ids_V, side="right") - 1
        parts_V = np.array([field.parts for field in owners], dtype=np.int64)[owner_V]
        # Where each value's rows start among the distinct rows; the last entry is their number U.
        start_V = np.concatenate([[0], np.cumsum(parts_V)])
        num_unique = int(start_V[-1])
        unique_ids = np.repeat(first_ids_V - start_V[:-1], parts_V) + np.arange(num_unique)
        slot_L: list[int] = []
        part_L: list[int] = []
        num_slots = 0
        for field in self.slot_fields:
            slots = range(num_slots, num_slots + len(field.columns))
            num_slots += len(field.columns)
            for part in range(field.parts):
                slot_L.extend(slots)
                part_L.extend([part] * len(slots))
        # Padding of any part is U, and no row lies behind it.
        inverse = np.minimum(start_V[value_BS][:, slot_L] + np.array(part_L), num_unique)
        return unique_ids, np.ascontiguousarray(inverse)

    def _check_indices(self, index_SB: npt.NDArray[np.int32]) -> None:
        """Refuse indices that another encoder must have made, naming the column."""
        size_S = np.array([f.size for f in self.slot_fields for _ in f.columns], dtype=np.int64)
        least_S = np.array([PADDING if f.pooled else 0 for f in self.slot_fields for _ in f.columns])
        low_S, high_S = index_SB.min(axis=1, initial=0), index_SB.max(axis=1, initial=-1)
        wrong = np.flatnonzero((low_S < least_S) | (high_S >= size_S))
        if len(wrong):
            slot = int(wrong[0])
            _check_range(
                self.slot_columns[slot], index_SB[slot], int(least_S[slot]), int(size_S[slot]), "indices"
            )

    @staticmethod
    def _floats(
        columns: Mapping[str, npt.NDArray[Any]], names: Sequence[str], order: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """``(B, len(names))`` float32 of the named columns, rows taken in ``order``."""
        value_BC = np.empty((len(order), len(names)), dtype=np.float32)
        for position, name in enumerate(names):
            value_BC[:, position] = _column(columns, name, "float32", len(order))[order]
        if not np.isfinite(value_BC).all():
            name = names[int(np.flatnonzero(~np.isfinite(value_BC).all(axis=0))[0])]
            raise BatchError(f"column '{name}' holds NaN or infinity; expected finite numbers")
        return value_BC


def distinct_by_flags(
    id_BS: npt.NDArray[np.int64], num_embeddings: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct ids by marking them in an array as long as the table: no sort, but O(num_embeddings) bytes
    touched.

    Args:
        id_BS: Fused ids; ``num_embeddings`` itself marks padding.
        num_embeddings: Rows of the fused table.

    Returns:
        ``unique_ids (U,)`` ascending, without the padding, and ``inverse (B, S)`` with ``U`` for padding.
    """
    flags = np.zeros(num_embeddings + 1, dtype=np.bool_)
    flags[id_BS] = True
    unique_ids = np.flatnonzero(flags[:-1])
    position = np.empty(num_embeddings + 1, dtype=np.int64)
    position[unique_ids] = np.arange(len(unique_ids))
    position[num_embeddings] = len(unique_ids)
    return unique_ids, position[id_BS]


def distinct_by_sort(
    id_BS: npt.NDArray[np.int64], num_embeddings: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """As `distinct_by_flags`, by sorting the batch's ids: independent of the table's size."""
    unique_ids, inverse = np.unique(id_BS, return_inverse=True)
    # Padding is larger than every id: as the last distinct value its position is already U.
    if len(unique_ids) and unique_ids[-1] == num_embeddings:
        unique_ids = unique_ids[:-1]
    return unique_ids, inverse.reshape(id_BS.shape)


def _sort_by_scenario(
    scenario: npt.NDArray[np.int32], num_scenarios: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Stable order by scenario, and rows per scenario."""
    counts = np.bincount(scenario, minlength=num_scenarios)
    # numpy sorts integers of at most 16 bits by radix, several times faster than by merging.
    narrow = scenario.astype(np.uint16) if num_scenarios <= 2**16 else scenario
    return np.argsort(narrow, kind="stable"), counts


def _column(
    columns: Mapping[str, npt.NDArray[Any]], name: str, dtype: str, num_rows: int | None
) -> npt.NDArray[Any]:
    """The named column, or a refusal that says what is wrong with it."""
    if name not in columns:
        raise BatchError(f"column '{name}' is missing; expected {dtype}")
    values = columns[name]
    if values.dtype != dtype or values.ndim != 1:
        raise BatchError(
            f"column '{name}' has dtype {values.dtype} and shape {values.shape}; "
            f"expected one value of {dtype} a row"
        )
    if num_rows is not None and len(values) != num_rows:
        raise BatchError(
            f"column '{name}' has {len(values)} rows; expected {num_rows} as in 'scenario_index'"
        )
    return values


def _check_range(name: str, values: npt.NDArray[Any], least: int, size: int, what: str) -> None:
    """Refuse the first value outside ``least .. size - 1``."""
    wrong = np.flatnonzero((values < least) | (values >= size))
    if len(wrong):
        row = int(wrong[0])
        raise BatchError(
            f"column '{name}' holds {int(values[row])} at row {row}; "
            f"expected {least} to {size - 1} ({size} {what})"
        )
