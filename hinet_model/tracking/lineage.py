"""Lineage of a run: which data, code, packages and settings a model came from, as flat tags."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from feature_eng.snapshot import SnapshotRef
from hinet_model.tracking import versions

UNKNOWN = "unknown"
_TAG_LENGTH = 5_000


@dataclass(frozen=True)
class Lineage:
    """Where a run's numbers come from.

    Attributes:
        delta_table: Training table, as the snapshot names it.
        delta_version: Its pinned version.
        table_id: Delta's own id of the table: a table made anew under the same path has another.
        contract: Name of the data contract.
        contract_fingerprint: sha256 of the contract.
        encoder_digest: sha256 of the encoder's state.
        plan_hash: Hash of the epoch plan; equal hashes read equal batches.
        world_size: Worker processes.
        seed: Seed of weights, order of rows and dropout.
        git_commit: Commit of the code, or ``unknown`` outside a checkout.
        git_dirty: ``true`` or ``false``: whether tracked files differ from the commit; ``unknown`` outside.
        package_versions: Package name -> installed version.
        meaning: The number of what the training table's rows mean (`feature_eng.meaning`).
        sources: Which versions of which source tables the training table was made of, as JSON.
    """

    delta_table: str
    delta_version: int
    table_id: str
    contract: str
    contract_fingerprint: str
    encoder_digest: str
    plan_hash: str
    world_size: int
    seed: int
    git_commit: str
    git_dirty: str
    package_versions: Mapping[str, str]
    meaning: str
    sources: str = ""

    @classmethod
    def of(cls, snapshot: SnapshotRef, *, plan_hash: str, world_size: int, seed: int) -> Lineage:
        """Collect the lineage of a run on ``snapshot`` by the code that is running."""
        commit, dirty = git_state(Path(__file__).resolve().parent)
        return cls(
            delta_table=snapshot.table,
            delta_version=snapshot.version,
            table_id=snapshot.table_id,
            contract=snapshot.contract_name,
            contract_fingerprint=snapshot.contract_fingerprint,
            encoder_digest=snapshot.encoder_digest,
            plan_hash=plan_hash,
            world_size=world_size,
            seed=seed,
            git_commit=commit,
            git_dirty=dirty,
            package_versions=versions.installed(),
            meaning=snapshot.meaning,
            sources=snapshot.sources,
        )

    def run_tags(self) -> dict[str, str]:
        """All of it, as tags of the MLflow run."""
        return {
            **self.version_tags(),
            "plan_hash": self.plan_hash,
            "world_size": str(self.world_size),
            "seed": str(self.seed),
            # MLflow's stores take 5,000 characters of a tag, some of them more.
            **({"sources": self.sources[:_TAG_LENGTH]} if self.sources else {}),
            **{f"version.{name}": version for name, version in self.package_versions.items()},
        }

    def version_tags(self) -> dict[str, str]:
        """What a registered version is looked up and judged by."""
        return {
            "git_sha": self.git_commit,
            "git_dirty": self.git_dirty,
            "delta_table": self.delta_table,
            "delta_version": str(self.delta_version),
            "table_id": self.table_id,
            "contract": self.contract,
            "contract_fingerprint": self.contract_fingerprint,
            "encoder_digest": self.encoder_digest,
            "meaning": self.meaning,
        }


def git_state(folder: Path) -> tuple[str, str]:
    """Commit of the checkout that ``folder`` is in, and whether its tracked files were changed.

    Returns:
        ``(commit, "true" | "false")``, or ``("unknown", "unknown")`` where the folder is in no checkout,
        is not tracked by the one it is in (an environment inside someone's repository), or git is missing.
    """
    try:
        if not _git(folder, "ls-files", "--", "."):
            return UNKNOWN, UNKNOWN
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN, UNKNOWN
    return commit, "true" if changed else "false"


def _git(folder: Path, *arguments: str) -> str:
    """Output of one git command, without the newline at its end."""
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True, timeout=20
    )
    return done.stdout.strip()
