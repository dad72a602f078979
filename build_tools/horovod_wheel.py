"""Build a Horovod wheel against the torch that is installed, once per torch version.

Horovod 0.28.1 is the last release, and its sdist needs three small edits before it compiles and behaves
next to a current torch. They are made here, on the pinned and hash-verified sdist, each an exact
replacement that must match once (a changed sdist stops the build instead of slipping through):

* torch >= 2.1 headers need C++17; Horovod asks for C++14 (fixed on its main branch, never released).
* Gloo's controller reserves room for the list of global ranks where it means to resize it. The list stays
  empty, so the stall inspector never warns and never shuts down: a hang would be silent and endless.

A wheel is tied to one torch, one Python and one kind of build, so these name its place in the cache; pip's
own wheel cache is switched off, since it knows none of them.

Run by the virtual environment's interpreter: ``python build_tools/horovod_wheel.py [--gpu]`` prints the
wheel's path as its last line.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

VERSION = "0.28.1"
SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"


@dataclass(frozen=True)
class Edit:
    """One replacement in the sdist; ``old`` must occur exactly once in ``path``."""

    path: str
    old: str
    new: str
    why: str


EDITS = (
    Edit("CMakeLists.txt", "set(CMAKE_CXX_STANDARD 14)", "set(CMAKE_CXX_STANDARD 17)", "C++17 for the core"),
    Edit(
        "horovod/torch/CMakeLists.txt",
        "set(CMAKE_CXX_STANDARD 14)",
        "set(CMAKE_CXX_STANDARD 17)",
        "C++17 for the torch binding",
    ),
    Edit(
        "horovod/common/gloo/gloo_controller.cc",
        "global_ranks_.reserve(size_);",
        "global_ranks_.resize(size_);",
        "a stall inspector that knows its ranks",
    ),
)


def cache_folder(gpu: bool) -> Path:
    """Where the wheel for this torch, Python and kind of build is kept."""
    root = os.environ.get("HINET_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "hinet-on-spark"
    )
    edits = hashlib.sha256(repr(EDITS).encode()).hexdigest()[:8]
    kind = "nccl" if gpu else "gloo"
    torch_version = importlib.metadata.version("torch")
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return Path(root) / "wheels" / f"horovod-{VERSION}-torch-{torch_version}-{python}-{kind}-{edits}"


def fetch_sdist(folder: Path) -> Path:
    """Download the pinned sdist and verify its hash."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
         "--no-build-isolation", "--dest", str(folder), f"horovod=={VERSION}"],
        check=True,
    )  # fmt: skip
    sdist = folder / f"horovod-{VERSION}.tar.gz"
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if digest != SDIST_SHA256:
        raise SystemExit(f"horovod_wheel: {sdist.name} has sha256 {digest}, expected {SDIST_SHA256}")
    return sdist


def apply_edits(source: Path) -> None:
    """Make every edit, or stop where one does not match exactly once."""
    for edit in EDITS:
        file = source / edit.path
        text = file.read_text()
        if text.count(edit.old) != 1:
            raise SystemExit(
                f"horovod_wheel: {edit.path}: {edit.old!r} occurs {text.count(edit.old)} times, not 1"
            )
        file.write_text(text.replace(edit.old, edit.new))


def build_environment(gpu: bool) -> dict[str, str]:
    """Environment of the build: torch only, Gloo as controller, NCCL for tensors when ``gpu``."""
    env = dict(os.environ)
    env.update(
        HOROVOD_WITH_PYTORCH="1",
        HOROVOD_WITHOUT_TENSORFLOW="1",
        HOROVOD_WITHOUT_MXNET="1",
        HOROVOD_WITHOUT_MPI="1",
        HOROVOD_WITH_GLOO="1",
        HOROVOD_CPU_OPERATIONS="GLOO",
        MAKEFLAGS=f"-j{os.cpu_count() or 2}",
        # Becomes the wheel's version, 0.28.1+torch2.12.1: the start-up self-check reads it there.
        HOROVOD_LOCAL_VERSION="torch" + importlib.metadata.version("torch").replace("+", "."),
    )
    if gpu:
        spec = importlib.util.find_spec("nvidia.nccl")
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(
                "horovod_wheel: --gpu needs the nvidia-nccl wheel that comes with a CUDA build of torch"
            )
        env.update(
            HOROVOD_GPU_OPERATIONS="NCCL", HOROVOD_NCCL_HOME=next(iter(spec.submodule_search_locations))
        )
    else:
        # An nvcc without a full toolkit beside it stops CMake, though a CPU build has no use for it.
        folders = env.get("PATH", "").split(os.pathsep)
        env["PATH"] = os.pathsep.join(f for f in folders if not os.path.exists(os.path.join(f, "nvcc")))
        env.pop("CUDACXX", None)
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    return env


def wheel(gpu: bool) -> Path:
    """The cached wheel, built first where there is none."""
    cache = cache_folder(gpu)
    found = sorted(cache.glob("*.whl"))
    if found:
        return found[0]
    with tempfile.TemporaryDirectory(prefix="hinet-horovod-") as scratch:
        sdist = fetch_sdist(Path(scratch))
        with tarfile.open(sdist) as archive:
            archive.extractall(scratch, filter="data")
        source = Path(scratch) / f"horovod-{VERSION}"
        apply_edits(source)
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-cache-dir",
             "--wheel-dir", scratch, str(source)],
            check=True,
            env=build_environment(gpu),
        )  # fmt: skip
        built = next(Path(scratch).glob("*.whl"))
        cache.mkdir(parents=True, exist_ok=True)
        # Renamed into place: a build that was interrupted leaves no half-written wheel under its final name.
        partial = cache / f".{built.name}.partial"
        shutil.copyfile(built, partial)
        partial.rename(cache / built.name)
    return cache / built.name


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", action="store_true", help="tensors through NCCL (needs CUDA), not Gloo")
    sys.stdout.write(f"{wheel(parser.parse_args().gpu)}\n")


if __name__ == "__main__":
    main()
