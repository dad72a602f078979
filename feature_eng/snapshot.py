"""Snapshots: exactly which files, rows and meanings one version of a training table has.

A snapshot is what training reads: the data files of one table version, listed from the
table's log. It is plain data, so that it can go to workers, into a run's record and back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foundation import stores
from foundation.settings import UserError

CONTRACT_NAME = "hinet.contract"
CONTRACT_FINGERPRINT = "hinet.contract_fingerprint"
ENCODER_DIGEST = "hinet.encoder_digest"
ENCODER_PATH = "hinet.encoder_path"
SCENARIO_NAMES = "hinet.scenarios"
EXAMPLES_PATH = "hinet.examples_path"
EXAMPLES_VERSION = "hinet.examples_version"
TABLES = "hinet.tables"
"""Table beside the examples -> version of it that they were made of, as JSON."""
AS_OF = "hinet.as_of"
"""The last second that the build counted as known, where it was told one."""
END = "hinet.end"
"""The last second that is known to a build: as it was told, or the data's own end."""
BUILT_BY = "hinet.built_by"
"""Of tables by date: what all their days must be made by, ``<meaning>:<digest>`` (`feature_eng.by_date`)."""
MEANING_OF_ROWS = "hinet.meaning"
"""The number of what rows of a build's events and examples mean (`feature_eng.meaning`)."""
FIRST_MEANING = "1"
"""That of tables and versions from before there was a number."""
SPANS = "hinet.spans"
"""Which dates are whose split, as JSON, where the contract says so."""
DATA_VERSION = "hinet.data_version"
"""Digest of all rows of the examples: equal data have an equal one."""
LAYOUT = "hinet.layout"
"""By which seed a training table's rows are ordered, and how many a row group has at most, as JSON."""
SOURCES = "hinet.sources"
CELLS = "hinet.cells"
PROFILE = "hinet.profile"
"""What the build looked like, for the next one to be compared with, as JSON (`feature_eng.drift`)."""


class SnapshotError(UserError):
    """A table version that cannot be read as it stands; the message names what is in the way."""


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a snapshot.

    Args:
        path: Its place, in the one form of `foundation.stores`.
        size: Bytes, as the table's log has them.
        split: The split whose rows the file holds.
        row_groups: Rows of each row group, in file order.
    """

    path: str
    size: int
    split: str
    row_groups: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows in the file."""
        return sum(self.row_groups)


@dataclass(frozen=True)
class CellCount:
    """What one scenario has in one split, or in none of them.

    Args:
        scenario: Name of the scenario.
        split: train, validation or test; or why these rows are in none: immature, gap, outside, unsampled.
        rows: How many rows.
        labels: Of these, how many have a label, per task.
        positives: Of these, how many have label 1, per task.
        weight: Sum of the rows' weights in the loss, before any correction for sampling.
        trained_weight: The same as training adds them up.
    """

    scenario: str
    split: str
    rows: int
    labels: tuple[int, ...]
    positives: tuple[int, ...]
    weight: float
    trained_weight: float


@dataclass(frozen=True)
class SnapshotRef:
    """One version of a training table, pinned.

    Args:
        table: Place of the table, in the one form of `foundation.stores`.
        version: Version in the table's log.
        table_id: The log's id of the table; another table at the same path has another one.
        files: Its data files, by split and then by the least row_id in them: equal rows, equal order.
        columns: Name and Arrow dtype of each column that the files hold, in order.
        schema_hash: SHA-256 (hex) of ``columns``.
        contract_name: Name of the data contract the rows were made by.
        contract_fingerprint: SHA-256 (hex) of that contract.
        encoder_path: Place of the encoder state.
        encoder_digest: SHA-256 (hex) of the encoder state.
        scenario_rows: Split -> rows of each scenario, in the contract's order.
        sources: Which versions of which source tables the rows were made of, as JSON; empty where unknown.
        cells: What the build counted, rows in no split included; empty for a table that does not say.
        meaning: The number of what its rows mean (`feature_eng.meaning`); the first one for a table that does not say.
    """

    table: str
    version: int
    table_id: str
    files: tuple[DataFile, ...]
    columns: tuple[tuple[str, str], ...]
    schema_hash: str
    contract_name: str
    contract_fingerprint: str
    encoder_path: str
    encoder_digest: str
    scenario_rows: Mapping[str, tuple[int, ...]]
    sources: str = ""
    cells: tuple[CellCount, ...] = ()
    meaning: str = FIRST_MEANING

    def trained_weights(self) -> tuple[float, ...]:
        """What the training rows of each scenario weigh together, as training adds them up."""
        return self._weights(("train",), "trained_weight")

    def whole_weights(self) -> tuple[float, ...]:
        """What they would weigh had sampling left no negatives out: what scenarios' proportions are of."""
        return self._weights(("train", "unsampled"), "weight")

    def _weights(self, splits: tuple[str, ...], which: str) -> tuple[float, ...]:
        rows = self.scenario_rows["train"]
        if not self.cells:
            return tuple(float(count) for count in rows)
        names = list(dict.fromkeys(cell.scenario for cell in self.cells))
        sums = dict.fromkeys(names, 0.0)
        for cell in self.cells:
            if cell.split in splits:
                sums[cell.scenario] += getattr(cell, which)
        return tuple(sums.values())

    def files_of(self, split: str) -> tuple[DataFile, ...]:
        """Files of one split, in the snapshot's order."""
        return tuple(file for file in self.files if file.split == split)

    def rows(self, split: str) -> int:
        """Rows of one split; 0 for a split the table does not have."""
        return sum(file.rows for file in self.files_of(split))

    def check_files(self, split: str) -> None:
        """Make sure that every file of a split is still there, with the size the log has.

        Raises:
            SnapshotError: Names the first file that is gone or has changed.
        """
        where = f"version {self.version} of {self.table}"
        files = self.files_of(split)
        for file, size in zip(files, stores.sizes([file.path for file in files]), strict=True):
            if size is None:
                raise SnapshotError(
                    f"{file.path}: the file is gone, so {where} can no longer be read; "
                    "was the table vacuumed? Build the features again or pin a newer version"
                )
            if size != file.size:
                raise SnapshotError(
                    f"{file.path}: the file has {size} bytes where {where} recorded {file.size}; "
                    "data files are never rewritten in place, so it is damaged"
                )

    def to_json(self) -> str:
        """The snapshot as JSON text."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> SnapshotRef:
        """Read what :meth:`to_json` wrote.

        Raises:
            SnapshotError: If the text is not a snapshot.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            content["files"] = tuple(
                DataFile(**{**file, "row_groups": tuple(file["row_groups"])}) for file in content["files"]
            )
            content["cells"] = cells_from(content.get("cells", ()))
            content["columns"] = tuple((name, dtype) for name, dtype in content["columns"])
            content["scenario_rows"] = {
                split: tuple(rows) for split, rows in content["scenario_rows"].items()
            }
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SnapshotError(f"this is not a snapshot in JSON: {error}") from None


def cells_from(documents: Sequence[Mapping[str, Any]]) -> tuple[CellCount, ...]:
    """Cells from plain JSON values, as ``asdict`` makes them."""
    return tuple(
        CellCount(**{**cell, "labels": tuple(cell["labels"]), "positives": tuple(cell["positives"])})
        for cell in documents
    )


def schema_hash(columns: tuple[tuple[str, str], ...]) -> str:
    """SHA-256 (hex) of column names and dtypes, in order."""
    return hashlib.sha256(json.dumps(columns).encode()).hexdigest()
