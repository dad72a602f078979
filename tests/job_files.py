"""The jobs as files: as modules, their parsers, and the commands in texts that name them."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
JOBS = sorted((ROOT / "jobs").glob("*.py"))


def load_job(name: str) -> ModuleType:
    """A job as a module, made anew: jobs are scripts, and in no package."""
    spec = importlib.util.spec_from_file_location(f"job_{name}", ROOT / "jobs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@cache
def parser_of(path: Path) -> argparse.ArgumentParser:
    """The parser of a job, from its file."""
    parser: argparse.ArgumentParser = load_job(path.stem).arguments()
    return parser


def commands_in(text: str) -> list[tuple[Path, list[str]]]:
    """Job and options of every command line in a text that runs a job."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = (line.strip() for line in joined.splitlines())
    found = []
    for line in lines:
        if not line.startswith(("python jobs/", "spark-submit ")):
            continue
        words = shlex.split(line, comments=True)
        place = next(place for place, word in enumerate(words) if word.startswith("jobs/"))
        found.append((ROOT / words[place], words[place + 1 :]))
    return found
