"""Start-up self-check: does this environment hold the versions that are known to work together?

The pins are the package's own requirements (``setup.cfg``), so there is no second list to forget. Horovod is
compiled against one torch; its wheel carries that torch's version as the local part of its own
(``0.28.1+torch2.12.1``), see ``build_tools/horovod_wheel.py``.

``python -m hinet_model.tracking.versions`` prints the versions, and exits with 2 where one does not fit.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys

from packaging.requirements import Requirement
from packaging.version import Version

from foundation.settings import UserError

PACKAGE = "hinet-on-spark"
CHECKED = ("pyspark", "delta-spark", "petastorm", "pyarrow", "numpy", "torch", "horovod", "mlflow")


class VersionError(UserError):
    """The environment holds packages that are not known to work together."""


def installed() -> dict[str, str]:
    """Version of Python and of every checked package; "none" where one is not installed."""
    versions = {"python": platform.python_version()}
    for name in CHECKED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    return versions


def mismatches(versions: dict[str, str], requirements: list[str]) -> list[str]:
    """One line for every package whose version is not the required one.

    Args:
        versions: What is installed, as `installed` gives it.
        requirements: Requirement lines, such as ``numpy==1.26.4``; those of unchecked packages are skipped.
    """
    faults = []
    for line in requirements:
        requirement = Requirement(line)
        if requirement.name not in CHECKED or (requirement.marker and "extra" in str(requirement.marker)):
            continue
        found = versions[requirement.name]
        if found == "none" or not requirement.specifier.contains(Version(found).public, prereleases=True):
            faults.append(f"{requirement.name}: installed {found}, expected {requirement.specifier}")
    horovod, torch = versions["horovod"], versions["torch"]
    if horovod != "none" and torch != "none":
        built_for = Version(horovod).local or ""
        wanted = "torch" + torch.replace("+", ".")
        if built_for != wanted:
            faults.append(f"horovod: built for {built_for or 'an unknown torch'}, expected {wanted}")
    return faults


def check() -> dict[str, str]:
    """Versions of the environment.

    Raises:
        VersionError: Names every mismatch, and the command that mends it.
    """
    versions = installed()
    faults = mismatches(versions, importlib.metadata.requires(PACKAGE) or [])
    if faults:
        raise VersionError("; ".join(faults) + "; run `make setup` (it installs constraints.txt)")
    return versions


if __name__ == "__main__":
    try:
        sys.stdout.write("".join(f"{name} {version}\n" for name, version in check().items()))
    except VersionError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
