"""The machine that a benchmark runs on: what it is, how many threads, where memory comes from, options of every run."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from hinet_model.training.control.launch import MEMORY_KEPT

_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16", "avx_ne_convert")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options that all benchmarks of the model have."""
    parser.add_argument("--batch-size", type=int, default=4096, help="rows of a step")
    parser.add_argument("--repeats", type=int, default=5, help="timed blocks of each variant")
    parser.add_argument("--block-seconds", type=float, default=2.0, help="about how long a timed block is")
    parser.add_argument("--threads", type=int, help="threads of an operation; the cores if left out")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile our model (never the reference)"
    )
    parser.add_argument(
        "--malloc",
        choices=["keep", "system"],
        default="keep",
        help="keep freed memory in the process, as training workers do, or hand it back as glibc does",
    )


def start(
    name: str, text: str | None, *add_options: Callable[[argparse.ArgumentParser], None]
) -> argparse.Namespace:
    """Begin a benchmark that runs by itself: read its options, prepare the process, describe the machine.

    Args:
        name: Of its module.
        text: What ``--help`` says.
        add_options: Add options beside those of every run.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for add in (*add_options, add_run_options):
        add(parser)
    given = parser.parse_args()
    prepare(given)
    sys.stdout.write(f"{describe(given)}\n")
    return given


def prepare(given: argparse.Namespace) -> None:
    """Set the threads, and start the process anew if its memory comes from elsewhere than asked."""
    enter_malloc(given.malloc)
    torch.set_num_threads(given.threads or torch.get_num_threads())
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device")


def enter_malloc(mode: str) -> None:
    """Start the process anew if its memory comes from elsewhere than asked."""
    # glibc reads these once, when a process starts.
    wanted: dict[str, str | None] = dict(MEMORY_KEPT) if mode == "keep" else dict.fromkeys(MEMORY_KEPT)
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    environment = {name: value for name, value in os.environ.items() if name not in MEMORY_KEPT}
    environment |= {name: value for name, value in wanted.items() if value is not None}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def describe(given: argparse.Namespace) -> dict[str, Any]:
    """What someone else needs to know to understand the figures."""
    flags = _cpu_lines("flags").split()
    return {
        "cpu": _cpu_lines("model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_instructions": [flag for flag in _BF16_FLAGS if flag in flags],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "malloc": given.malloc,
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def _cpu_lines(name: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
