"""The model registry: which version an alias means, where its files are, and how aliases move.

Aliases: ``challenger`` is the newest registered version, ``champion`` the one that scores, and
``previous_champion`` what a rollback returns to. A job resolves an alias once and passes the version
on, so that an alias moved meanwhile cannot mix two models in one result.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from foundation.redaction import redact
from foundation.settings import UserError

CHALLENGER = "challenger"
CHAMPION = "champion"
PREVIOUS_CHAMPION = "previous_champion"
#: Tag of a promoted version: the version it replaced, so that rollbacks can be repeated.
REPLACED_TAG = "replaced_champion"

MODEL_DESCRIPTION = """\
Scores rows of several scenarios with the probability of each task. Each version's description is its model card:
purpose, data, cells, limits, use. `challenger` is the newest version, `champion` the one that scores,
`previous_champion` what a rollback returns to."""


class RegistryError(UserError):
    """A refusal of the registry; ``code`` tells the kinds apart for callers and for alerts."""

    code = "REGISTRY_ERROR"


class UnknownModelError(RegistryError):
    """No model is registered under this name."""

    code = "UNKNOWN_MODEL"


class UnknownVersionError(RegistryError):
    """The model has no such version."""

    code = "UNKNOWN_VERSION"


class MissingAliasError(RegistryError):
    """The model exists, but no version bears this alias."""

    code = "MISSING_ALIAS"


class ChampionMovedError(RegistryError):
    """The champion is not the one that the caller has compared against."""

    code = "CHAMPION_MOVED"


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model.

    Attributes:
        name: Name of the registered model.
        version: Number of the version, as the registry writes it.
        run_id: MLflow run that trained it; empty if it was registered without one.
        tags: Its tags: lineage and validation status.
        created_at: Second since the epoch at which it was registered.
    """

    name: str
    version: str
    run_id: str
    tags: Mapping[str, str]
    created_at: int = 0

    @property
    def uri(self) -> str:
        """``models:/<name>/<version>``."""
        return f"models:/{self.name}/{self.version}"


def connect(tracking_uri: str) -> MlflowClient:
    """Open the tracking store and registry, creating a sqlite store and its folder on first use.

    Raises:
        RegistryError: The URI names a folder (MLflow no longer keeps runs in folders), or the store
            does not answer.
    """
    # Bars for files of a few kilobytes would stand between the lines of a job's log.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    shown = redact(tracking_uri)
    if not on_databricks(tracking_uri) and urlparse(tracking_uri).scheme in ("", "file"):
        raise RegistryError(
            f"mlflow.tracking_uri: '{shown}' is a folder, which MLflow no longer takes as a store; "
            "expected sqlite:///<file>.db, the URI of a server, or databricks"
        )
    # "databricks-uc" names the registry alone; the workspace beside it is "databricks".
    tracking = (
        tracking_uri.replace("databricks-uc", "databricks", 1)
        if on_databricks(tracking_uri)
        else tracking_uri
    )
    try:
        with _one_creator(tracking):
            client = MlflowClient(tracking_uri=tracking, registry_uri=registry_uri(tracking))
            client.search_experiments(max_results=1)
    except Exception as error:
        raise RegistryError(
            f"mlflow.tracking_uri: '{shown}' does not answer: {redact(str(error))}"
        ) from error
    return client


def on_databricks(tracking_uri: str) -> bool:
    """Whether a URI means a Databricks workspace: ``databricks`` or ``databricks-uc``, alone or with ``://profile``."""
    return tracking_uri.partition("://")[0] in ("databricks", "databricks-uc")


def registry_uri(tracking_uri: str) -> str:
    """Where the models of a tracking store are registered: in the store itself, on Databricks in Unity Catalog.

    The registry of a workspace without Unity Catalog has no aliases, which jobs need.
    """
    if not on_databricks(tracking_uri):
        return tracking_uri
    _, separator, profile = tracking_uri.partition("://")
    return f"databricks-uc{separator}{profile}"


@contextmanager
def _one_creator(tracking_uri: str) -> Iterator[None]:
    """Let one process at a time create a sqlite store: two at once fail on each other's tables."""
    path = sqlite_path(tracking_uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sqlite_path(tracking_uri: str) -> Path | None:
    """File of a sqlite store (``sqlite:///relative.db``, ``sqlite:////absolute.db``); else ``None``."""
    prefix = "sqlite:///"
    return Path(unquote(tracking_uri[len(prefix) :])) if tracking_uri.startswith(prefix) else None


def prepare(client: MlflowClient, name: str) -> None:
    """Make the registered model if it is new, and write to it if it is not: before a training is paid for.

    Raises:
        RegistryError: The registry does not take the name, or this user may not write there.
    """
    try:
        try:
            client.create_registered_model(name, description=MODEL_DESCRIPTION)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        client.set_registered_model_tag(name, "made_by", "hinet-on-spark")
    except MlflowException as error:
        cause = redact(str(error.message)).partition("\n")[0]
        raise RegistryError(f"mlflow.registered_model: '{name}' cannot be written to: {cause}") from error


def resolve(client: MlflowClient, name: str, alias_or_version: str) -> RegisteredVersion:
    """The version that an alias, or a version number, means now.

    Raises:
        UnknownModelError: Nothing is registered under ``name``.
        UnknownVersionError: The model has no version of this number.
        MissingAliasError: No version of the model bears this alias.
    """
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise RegistryError(f"model '{name}': {error.message}") from error
        raise UnknownModelError(
            f"mlflow.registered_model: no model is registered as '{name}'; train one first"
        ) from error
    version = alias_or_version
    if not alias_or_version.isdecimal():
        if alias_or_version not in model.aliases:
            bears = ", ".join(f"{alias} = {number}" for alias, number in sorted(model.aliases.items()))
            raise MissingAliasError(
                f"model '{name}' has no alias '{alias_or_version}'; its aliases: {bears or 'none'}"
            )
        version = str(model.aliases[alias_or_version])
    try:
        found = client.get_model_version(name, version)
    except MlflowException as error:
        raise UnknownVersionError(f"model '{name}' has no version {version}") from error
    created_at = (found.creation_timestamp or 0) // 1000
    return RegisteredVersion(name, str(found.version), found.run_id or "", dict(found.tags or {}), created_at)


def find(client: MlflowClient, name: str, alias: str) -> RegisteredVersion | None:
    """As :func:`resolve`, but ``None`` where no version bears the alias (no champion yet)."""
    try:
        return resolve(client, name, alias)
    except MissingAliasError:
        return None


def fetch(client: MlflowClient, version: RegisteredVersion, cache: Path) -> Path:
    """The MLflow model of a version as a local folder: in place if it is local, else downloaded once.

    Args:
        client: From :func:`connect`.
        version: From :func:`resolve`.
        cache: Folder of downloads; a version never changes, so what is there is not fetched again.

    Returns:
        The folder that holds ``MLmodel``.
    """
    if on_databricks(client.tracking_uri):
        # The place itself would need the credentials that Unity Catalog lends to those who ask by name.
        uri = version.uri
    else:
        uri = client.get_model_version_download_uri(version.name, version.version)
    parsed = urlparse(uri)
    if parsed.scheme in ("", "file"):
        folder = Path(unquote(parsed.path))
    else:
        folder = cache / version.name / version.version
        if not (folder / "MLmodel").exists():
            _download(client, uri, folder)
    if not (folder / "MLmodel").exists():
        raise RegistryError(f"{version.uri}: its files are gone: no MLmodel in {folder}")
    return folder


def _download(client: MlflowClient, uri: str, folder: Path) -> None:
    """Download beside the target and rename, so that a cut download is never taken for a model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        got = mlflow.artifacts.download_artifacts(
            artifact_uri=uri,
            dst_path=scratch,
            tracking_uri=client.tracking_uri,
            registry_uri=registry_uri(client.tracking_uri),
        )
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(got, folder)


def model_folder(mlflow_model: Path) -> Path:
    """The folder for ``Scorer.load`` inside an MLflow model that this package has logged.

    Raises:
        RegistryError: It is some other MLflow model.
    """
    flavour = mlflow.models.Model.load(str(mlflow_model)).flavors.get("python_function", {})
    try:
        return mlflow_model / str(flavour["artifacts"]["model"]["path"])
    except (KeyError, TypeError):
        raise RegistryError(
            f"{mlflow_model}: not a model of this package: its MLmodel names no artifact 'model'"
        ) from None


def promote(client: MlflowClient, challenger: RegisteredVersion, compared_with: str | None) -> str | None:
    """Make a challenger the champion, if the champion is still the one it was compared with.

    The registry has no compare-and-set: two promotions within the same second could cross. So a caller holds
    the model's claim (`hinet_model.lifecycle.audit`) meanwhile.

    Args:
        client: From :func:`connect`.
        challenger: The version that passed the gate.
        compared_with: Version number of the champion it was judged against; ``None`` if there was none.

    Returns:
        Version number of the replaced champion, or ``None``.

    Raises:
        ChampionMovedError: Another version became champion since the comparison.
        RegistryError: The challenger is the champion already.
    """
    champion = find(client, challenger.name, CHAMPION)
    replaced = champion.version if champion is not None else None
    if replaced == challenger.version:
        raise RegistryError(f"model '{challenger.name}' version {challenger.version} is the champion already")
    if replaced != compared_with:
        raise ChampionMovedError(
            f"model '{challenger.name}': version {challenger.version} was compared with champion "
            f"{compared_with or '(none)'}, but the champion is now {replaced or '(none)'}; evaluate again"
        )
    # In this order a cut leaves a champion at all times, and a way back from it.
    client.set_model_version_tag(challenger.name, challenger.version, REPLACED_TAG, replaced or "")
    if replaced is not None:
        client.set_registered_model_alias(challenger.name, PREVIOUS_CHAMPION, replaced)
    client.set_registered_model_alias(challenger.name, CHAMPION, challenger.version)
    bearer = find(client, challenger.name, CHALLENGER)
    if bearer is not None and bearer.version == challenger.version:
        client.delete_registered_model_alias(challenger.name, CHALLENGER)
    return replaced


def rollback(client: MlflowClient, name: str) -> tuple[str, str]:
    """Return to the champion before this one; repeated calls go back further.

    Returns:
        ``(restored, withdrawn)``: version numbers of the champion from now on, and of the one before.

    Raises:
        MissingAliasError: There is no champion, or nothing to return to.
    """
    withdrawn = resolve(client, name, CHAMPION)
    previous = find(client, name, PREVIOUS_CHAMPION)
    if previous is None:
        raise MissingAliasError(
            f"model '{name}' has no alias '{PREVIOUS_CHAMPION}': champion {withdrawn.version} replaced none"
        )
    client.set_registered_model_alias(name, CHAMPION, previous.version)
    client.set_model_version_tag(name, withdrawn.version, "validation_status", "rolled_back")
    before = previous.tags.get(REPLACED_TAG, "")
    if before and before != withdrawn.version:
        client.set_registered_model_alias(name, PREVIOUS_CHAMPION, before)
    else:
        client.delete_registered_model_alias(name, PREVIOUS_CHAMPION)
    return previous.version, withdrawn.version
