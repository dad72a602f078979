"""Ancestry: the versions whose weights a version began with, which have learned from rows of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hinet_model.lifecycle import registry

if TYPE_CHECKING:
    from mlflow import MlflowClient

BEGAN_WITH = "began_with"
"""Tag of a version, and of its run: the version that its weights began with (`model.warm_start`)."""


def ancestors(
    client: MlflowClient, version: registry.RegisteredVersion
) -> Iterator[registry.RegisteredVersion]:
    """The versions that a version began with: its own, that one's, and so on.

    Raises:
        RegistryError: One of them is gone.
    """
    met = {version.uri}
    while (uri := version.tags.get(BEGAN_WITH)) is not None and uri not in met:
        met.add(uri)
        name, _, number = uri.removeprefix("models:/").rpartition("/")
        version = registry.resolve(client, name, number)
        yield version
