"""Places: where something lies, by path or URI, in the one form that everything here and every record has.

A *place* is a path or a URI as a user gives it. :func:`normalised` turns it into its one form: an absolute path
where the files are local or mounted, else ``s3://bucket/key``, ``gs://bucket/key`` or
``abfss://container@account.dfs.core.windows.net/key``. What follows the scheme is taken letter by letter: object
keys are not percent-encoded in it.

Spark reads the same places in a spelling of its own (:func:`for_spark`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from foundation.redaction import redact
from foundation.settings import UserError, suggestion

Place = str | os.PathLike[str]

SCHEMES = ("file", "s3", "s3a", "gs", "abfss", "dbfs")
"""Schemes of the places that can be used; a path without one is local."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


class StoreError(UserError):
    """A place that cannot be used; names it and what was expected."""


def normalised(place: Place) -> str:
    """The one form of a place; see the module's text.

    Args:
        place: A path, relative to the current directory or absolute, or a URI of one of `SCHEMES`.

    Raises:
        StoreError: Another scheme, or a URI that lacks its bucket.
    """
    text = os.fspath(place)
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if not has_scheme(text) and not (colon and scheme in SCHEMES):
        if not text:
            raise StoreError("an empty place; expected a path or a URI")
        return str(Path(text).absolute())
    if scheme not in SCHEMES:
        raise StoreError(
            f"{text}: stores of scheme '{scheme}' are not supported; expected a path or one of "
            f"{', '.join(f'{known}:' for known in SCHEMES)}{suggestion(scheme, SCHEMES)}"
        )
    authority, slash, path = rest[2:].partition("/") if rest.startswith("//") else ("", rest[:1], rest[1:])
    if scheme in ("file", "dbfs"):
        if authority not in ("", "localhost") or slash != "/":
            raise StoreError(f"{text}: names a host or no absolute path; expected {scheme}:/path")
        # Databricks mounts its file system, on the driver and on every worker.
        return str(Path("/", unquote(path)) if scheme == "file" else Path("/dbfs", path.lstrip("/")))
    if not authority:
        raise StoreError(f"{text}: lacks its bucket; expected {scheme}://bucket/key")
    if ":" in authority or ("@" in authority and scheme != "abfss"):
        raise StoreError(
            f"{redact(text)}: holds credentials; expected {scheme}://bucket/key, and credentials in the environment"
        )
    key = "/".join(part for part in path.split("/") if part)
    return f"{'s3' if scheme == 's3a' else scheme}://{authority}{'/' if key else ''}{key}"


def has_scheme(place: Place) -> bool:
    """Whether a place is a URI, such as ``file:/x`` or ``s3://bucket/x``."""
    return _SCHEME.match(os.fspath(place)) is not None


def scheme_of(place: Place) -> str:
    """Scheme of a place in its one form: ``file`` for local and mounted paths, ``s3``, ``gs``, ``abfss``."""
    return normalised(place).partition("://")[0] if "://" in normalised(place) else "file"


def is_local(place: Place) -> bool:
    """Whether the files of a place lie on a local or mounted path."""
    return scheme_of(place) == "file"


def join(place: Place, *names: str) -> str:
    """A place below another one, in its one form."""
    return "/".join([normalised(place).rstrip("/"), *(name.strip("/") for name in names)])


def parent(place: Place) -> str:
    """The place above another one, in its one form."""
    text = normalised(place)
    if is_local(text):
        return str(Path(text).parent)
    above, _, _ = text.rpartition("/")
    if above.endswith("/"):
        raise StoreError(f"{text}: is a bucket, nothing is above it")
    return above


def name_of(place: Place) -> str:
    """Last part of a place."""
    return normalised(place).rpartition("/")[2]


def beside(place: Place, below: str | None) -> str:
    """A place as a user gives it that may be relative to a folder, in its one form.

    Args:
        place: Path or URI; absolute ones are taken as they are.
        below: Folder that a relative path is in; None is the current directory.
    """
    text = os.fspath(place)
    if below is None or has_scheme(text) or Path(text).is_absolute():
        return normalised(text)
    return join(below, text)


def for_spark(place: Place) -> str:
    """A place as Spark spells it: ``s3a:`` for S3, ``dbfs:`` for what Databricks mounts below ``/dbfs``."""
    text = normalised(place)
    if text.startswith("s3://"):
        return f"s3a{text[2:]}"
    return f"dbfs:{text.removeprefix('/dbfs')}" if text.startswith("/dbfs/") else text
