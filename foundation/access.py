"""Access: how the store of a place is reached, by each of those who ask it: Arrow, delta-rs and Spark.

Credentials, endpoints and regions come from the environment, or from Spark's settings where the environment says
nothing (docs/object_stores.md); nothing of it is in a place, a setting or a record.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, urlsplit

from pyarrow import fs

from foundation.places import Place, StoreError, normalised, scheme_of

_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")

ENVIRONMENT = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
)
"""Variables that say how a store is reached, and that a process started elsewhere needs too."""


def filesystem(place: Place) -> tuple[fs.FileSystem, str]:
    """Arrow's file system of a place, and the path in it.

    Raises:
        StoreError: The store cannot be used here; says what it lacks.
    """
    text = normalised(place)
    scheme = scheme_of(text)
    if scheme == "file":
        return fs.LocalFileSystem(), text
    authority, _, key = text.partition("://")[2].partition("/")
    try:
        if scheme == "s3":
            return _s3(authority, tuple(_s3_settings().items())), f"{authority}/{key}".rstrip("/")
        if scheme == "gs":
            return _gcs(), f"{authority}/{key}".rstrip("/")
        container, _, account = authority.partition("@")
        return _azure(account.partition(".")[0]), f"{container}/{key}".rstrip("/")
    except (OSError, ValueError) as error:
        raise StoreError(f"{text}: the store cannot be opened: {error}") from error


def for_delta_rs(place: Place) -> tuple[str, dict[str, str] | None]:
    """A table's place as delta-rs takes it: path or percent-encoded URI, and how its store is reached."""
    text = normalised(place)
    scheme = scheme_of(text)
    if scheme == "file":
        return _without_percent(text) if "%" in text else text, None
    if _ENCODED.search(text):
        raise StoreError(
            f"{text}: a table's log cannot be read where a name holds a percent sign before two hexadecimal digits "
            "(delta-rs decodes it); expected another name"
        )
    address = f"{scheme}://{quote(text.partition('://')[2], safe='/@')}"
    if scheme != "s3":
        return address, None  # delta-rs reads GOOGLE_* and AZURE_* itself
    settings = _s3_settings()
    options = {f"AWS_{name.upper()}": value for name, value in settings.items() if name != "endpoint_url"}
    options["AWS_REGION"] = settings.get("region") or _region_of(_authority(text))
    if "endpoint_url" in settings:
        options["AWS_ENDPOINT_URL"] = settings["endpoint_url"]
        options["AWS_ALLOW_HTTP"] = str(settings["endpoint_url"].startswith("http://")).lower()
    return address, options


def spark_conf(places: Sequence[Place]) -> dict[str, str]:
    """Settings with which Spark reaches the stores of these places: those of S3A, from the environment.

    Credentials are not among them: Spark and S3A read the same variables by themselves.
    """
    if not any(scheme_of(place) == "s3" for place in places):
        return {}
    settings = _s3_settings()
    conf = {}
    if "region" in settings:
        conf["spark.hadoop.fs.s3a.endpoint.region"] = settings["region"]
    if "endpoint_url" in settings:
        conf["spark.hadoop.fs.s3a.endpoint"] = settings["endpoint_url"]
        # A server of one's own has no host name for each bucket.
        conf["spark.hadoop.fs.s3a.path.style.access"] = "true"
        conf["spark.hadoop.fs.s3a.connection.ssl.enabled"] = str(
            settings["endpoint_url"].startswith("https://")
        ).lower()
    return conf


def adopt(conf: Mapping[str, str]) -> None:
    """Take over how Spark reaches S3 where the environment does not say it: one answer for all who ask.

    Args:
        conf: Spark's settings.
    """
    wanted = {
        "AWS_ENDPOINT_URL": "fs.s3a.endpoint",
        "AWS_REGION": "fs.s3a.endpoint.region",
        "AWS_ACCESS_KEY_ID": "fs.s3a.access.key",
        "AWS_SECRET_ACCESS_KEY": "fs.s3a.secret.key",
        "AWS_SESSION_TOKEN": "fs.s3a.session.token",
    }
    given = {name: conf.get(f"spark.hadoop.{key}", "") for name, key in wanted.items()}
    endpoint = given["AWS_ENDPOINT_URL"]
    if endpoint and "://" not in endpoint:
        plain = conf.get("spark.hadoop.fs.s3a.connection.ssl.enabled", "true").lower() == "false"
        given["AWS_ENDPOINT_URL"] = f"{'http' if plain else 'https'}://{endpoint}"
    for name, value in given.items():
        if value:
            os.environ.setdefault(name, value)


def environment() -> dict[str, str]:
    """What a process started elsewhere needs in its environment to reach the same stores."""
    return {name: os.environ[name] for name in ENVIRONMENT if os.environ.get(name)}


def _authority(text: str) -> str:
    return text.partition("://")[2].partition("/")[0]


def _s3_settings() -> dict[str, str]:
    """How S3 is reached, by the variables that the AWS tools share."""
    env = os.environ
    found = {
        "endpoint_url": env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL"),
        "region": env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION"),
        "access_key_id": env.get("AWS_ACCESS_KEY_ID"),
        "secret_access_key": env.get("AWS_SECRET_ACCESS_KEY"),
        "session_token": env.get("AWS_SESSION_TOKEN"),
    }
    settings = {name: value for name, value in found.items() if value}
    if "endpoint_url" in settings:
        settings.setdefault("region", "us-east-1")  # what servers of one's own call theirs
    return settings


def _without_percent(path: str) -> str:
    """Another place for a local table: delta-rs decodes ``%20`` in a local path, where it is meant as it stands.

    It resolves links too, so the table's entries are linked, not its folder.
    """
    other = _scratch(path)
    if Path(path).is_dir():
        for entry in Path(path).iterdir():
            with contextlib.suppress(FileExistsError):
                (other / entry.name).symlink_to(entry)
    return str(other)


@lru_cache
def _scratch(path: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="hinet-table-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@lru_cache
def _region_of(bucket: str) -> str:
    return str(fs.resolve_s3_region(bucket))


@lru_cache
def _s3(bucket: str, settings: tuple[tuple[str, str], ...]) -> fs.FileSystem:
    given = dict(settings)
    endpoint = urlsplit(given["endpoint_url"]) if "endpoint_url" in given else None
    return fs.S3FileSystem(
        access_key=given.get("access_key_id"),
        secret_key=given.get("secret_access_key"),
        session_token=given.get("session_token"),
        region=given.get("region") or _region_of(bucket),
        scheme=endpoint.scheme if endpoint else "https",
        endpoint_override=endpoint.netloc if endpoint else None,
        connect_timeout=10,
    )


@lru_cache
def _gcs() -> fs.FileSystem:
    return fs.GcsFileSystem()


@lru_cache
def _azure(account: str) -> fs.FileSystem:
    import fsspec

    try:
        # adlfs reads AZURE_STORAGE_* itself, and falls back on the identity of the machine.
        system = fsspec.filesystem("abfss", account_name=account, anon=False)
    except ImportError as error:
        raise StoreError(
            "abfss: stores of Azure need a package that is not installed: pip install adlfs"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(system))
