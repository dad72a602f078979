"""A small training table in plain Parquet, for tests of training that need no Spark to make one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_table import SCHEMA, TRAIN_ROWS, VALIDATION_ROWS, rows_of

from feature_eng.snapshot import DataFile, SnapshotRef, schema_hash
from hinet_model.config import OptimiserSettings, TrainingSettings
from hinet_model.models.registry import read_settings
from hinet_model.settings import RunSettings
from hinet_model.training.job import TrainingJob


@pytest.fixture(scope="session")
def small_snapshot(tmp_path_factory: pytest.TempPathFactory) -> SnapshotRef:
    """2,003 training and 601 validation rows in row groups of 257, three scenarios, two tasks."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    files, scenario_rows = [], {}
    for split, rows in (("train", TRAIN_ROWS), ("validation", VALIDATION_ROWS)):
        table = rows_of(rng, rows, first_id=2**60)
        path = folder / f"{split}.parquet"
        pq.write_table(table, path, row_group_size=257)
        footer = pq.read_metadata(path)
        groups = tuple(footer.row_group(place).num_rows for place in range(footer.num_row_groups))
        files.append(DataFile(str(path), path.stat().st_size, split, groups))
        scenario_rows[split] = tuple(np.bincount(table["scenario_index"].to_numpy(), minlength=3).tolist())
    columns = tuple(
        (field.name, {"float": "float32"}.get(str(field.type), str(field.type))) for field in table.schema
    )
    return SnapshotRef(
        table="small",
        version=3,
        table_id="small-table",
        files=tuple(files),
        columns=columns,
        schema_hash=schema_hash(columns),
        contract_name="small",
        contract_fingerprint="0" * 64,
        encoder_path="",
        encoder_digest="1" * 64,
        scenario_rows=scenario_rows,
    )


@pytest.fixture
def small_job(small_snapshot: SnapshotRef, tmp_path: Path) -> Callable[..., TrainingJob]:
    """Makes a job on the small table; keywords go to the section ``training``."""

    def make(
        model: dict[str, Any] | None = None, name: str = "run", resume: bool = False, **training: Any
    ) -> TrainingJob:
        sizes = {"sub_experts": 2, "sub_expert_dims": [16, 8], "expert_dims": [8], "tower_dims": [4]}
        shape = {"epochs": 2, "batch_size": 256, "workers": 1, "threads_per_worker": 1, "window_rows": 128}
        settings = RunSettings(
            model=read_settings({**sizes, "embedding_dim": 8, **(model or {})}),
            optimiser=OptimiserSettings(learning_rate=0.02),
            training=TrainingSettings(**{**shape, **training}),
        )
        folder = tmp_path / name
        return TrainingJob(settings, small_snapshot, SCHEMA, str(folder), str(folder / "logs"), resume=resume)

    return make
