"""A runner of whole jobs, as a user would start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SAID: list[str] = []
"""All that jobs have printed, on stdout and stderr."""


def run_job(name: str, *arguments: str | Path, here: Path = ROOT) -> str:
    """Run a job as a user would, from a folder; what it prints."""
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    SAID.extend([done.stdout, done.stderr])
    assert done.returncode == 0, f"{name}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
