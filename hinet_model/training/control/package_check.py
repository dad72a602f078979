"""Package check: do the executors run the driver's own code? Asked before anything is held.

An executor without this package fails at its first task, with a traceback of pickle; one with another version may
train something else, and nobody would know. Local executors are the driver itself and are not asked.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.settings import UserError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PACKAGES = ("foundation", "feature_eng", "hinet_model")


class PackageError(UserError):
    """An executor lacks this package, or has another version of it."""


def digest() -> str:
    """sha256 of every Python file of the packages, as this process would import them."""
    found = hashlib.sha256()
    for package in PACKAGES:
        folder = Path(str(importlib.import_module(package).__file__)).parent
        for file in sorted(folder.rglob("*.py")):
            found.update(f"{package}/{file.relative_to(folder).as_posix()}\n".encode())
            found.update(file.read_bytes())
    return found.hexdigest()


def check(spark: SparkSession, slots: int) -> None:
    """Compare every executor's code with the driver's.

    Args:
        spark: The session.
        slots: Tasks that it can run at once; as many are asked, at once.

    Raises:
        PackageError: Names the hosts, and how the package comes there.
    """
    master = spark.sparkContext.master
    if master == "local" or master.startswith("local["):
        return

    # By value, imports within: what is looked for may not be there.
    def ask(_: Any) -> Any:
        import socket

        try:
            from hinet_model.training.control.package_check import digest as of_here

            yield socket.gethostname(), of_here()
        except ImportError as error:
            yield socket.gethostname(), str(error)

    asked = spark.sparkContext.parallelize(range(slots), slots).barrier()
    own = digest()
    wrong = sorted({(host, found) for host, found in asked.mapPartitions(ask).collect() if found != own})
    if wrong:
        found = wrong[0][1]
        said = "another version of it" if len(found) == len(own) else found
        raise PackageError(
            f"executors on {', '.join(sorted({name for name, _ in wrong}))} do not run the driver's hinet_model "
            f"({said}); install the same version in spark.pyspark.python on every host, or send the code along: "
            "docs/cluster.md"
        )
