"""Library: compile the C++ code once per machine and torch, and load it; without a compiler do without it.

The code calls torch's own tensors, threads and BLAS, so a library fits one torch alone, and one kind of processor: both
name its place in the cache. The set-up compiles it (``python -m hinet_model.nn.native.library``), and so does a
training worker on a machine that has none yet; scoring takes what is there and never waits for a compiler.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("routed_experts.cpp")
SWITCH = "HINET_NATIVE"
"""Environment variable; 0 does without the library."""

_FLAGS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    "-fPIC",
    "-shared",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
)


_left_out = ContextVar("left_out", default=False)


class CompileError(RuntimeError):
    """The library cannot be compiled here; the message says what the compiler said."""


@functools.cache
def available() -> bool:
    """Whether the library's operations can be called: loads it if it is compiled.

    Where it is not, models compute the same by torch's own operations.
    """
    library = _place()
    if os.environ.get(SWITCH) == "0" or not library.exists():
        return False
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError as error:
        logger.warning("%s does not load, which costs speed on a CPU: %s", library, error)
        return False
    return True


@contextlib.contextmanager
def left_out() -> Iterator[None]:
    """Let models compute by torch's own operations meanwhile, so that hooks see what goes on inside."""
    token = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(token)


def wanted() -> bool:
    """Whether the library's operations are to be called where they fit."""
    return not _left_out.get() and available()


def prepare() -> None:
    """Compile the library if there is none; where that fails, log why and do without."""
    if os.environ.get(SWITCH) != "0":
        try:
            compiled()
        except CompileError as error:
            logger.warning("doing without compiled experts, which costs speed on a CPU: %s", error)
        available.cache_clear()


def compiled() -> Path:
    """The library of this machine and torch, compiled now if it is not in the cache.

    Raises:
        CompileError: There is no compiler, or it refuses.
    """
    library = _place()
    if library.exists():
        return library
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        raise CompileError("no g++ on the PATH; expected a C++ compiler (apt-get install g++)")
    logger.info("compiling %s for this machine, about half a minute", SOURCE.name)
    root = Path(torch.__file__).parent
    library.parent.mkdir(parents=True, exist_ok=True)
    # Workers of one host may do this side by side: each writes a file of its own, and the last one's name stays.
    handle, name = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(handle)
    command = [
        compiler,
        *_FLAGS,
        f"-I{root}/include",
        f"-I{root}/include/torch/csrc/api/include",
        str(SOURCE),
    ]
    command += ["-o", name, f"-L{root}/lib", "-ltorch", "-ltorch_cpu", "-lc10", "-Wl,--no-undefined"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        Path(name).unlink()
        lines = done.stderr.strip().splitlines()
        raise CompileError(
            f"{compiler} failed: {next((line for line in lines if 'error' in line), 'no word')}"
        )
    Path(name).replace(library)
    return library


def _place() -> Path:
    """Where it lies, named by what it depends on: its source, how it is compiled, torch, the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    parts = (
        SOURCE.read_text(encoding="utf-8"),
        " ".join(_FLAGS),
        torch.__version__,
        platform.machine(),
        flags,
    )
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "hinet-on-spark" / "native" / f"routed_experts-{key}.so"


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{compiled()}\n")
    except CompileError as failure:
        sys.stdout.write(f"compiled experts are left out: {failure}\n")
