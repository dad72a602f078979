"""Redaction: credentials that a URI carries are taken out wherever it is printed or recorded."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

# user:password@ up to the last @, since a password may hold one, or a slash; host:8020/a@b is no such thing.
_PASSWORD = re.compile(r"""://[^/?#\s:@'"]*:(?!\d+(?:[/?#]|\Z|\s))[^\s'"]*@""")
# token@; but the container of an Azure account (abfss://container@account) stands in that place too.
_USER = re.compile(r"""(?<!\babfs)(?<!\babfss)(?<!\bwasb)(?<!\bwasbs)://[^/?#\s'"@]+@""", re.IGNORECASE)
_SECRET_KEYS = r"token|secret|passw|pwd|credential|signature|api[-_]?key|access[-_]?key|account[-_]?key|auth"
_QUERY = re.compile(
    rf"""([?&;](?:[^=&;\s'"]*(?:{_SECRET_KEYS})[^=&;\s'"]*|sig)=)[^&;#\s'"]+""", re.IGNORECASE
)


def redact(text: str) -> str:
    """A text with ``***`` in place of what its URIs give away.

    Hidden are user and password before a host, and the values of query parameters that are named like a
    signature, a token, a key or a password. The rest of a URI stays, so that it still says where.
    """
    text = _PASSWORD.sub(f"://{HIDDEN}@", text)
    text = _USER.sub(f"://{HIDDEN}@", text)
    return _QUERY.sub(rf"\g<1>{HIDDEN}", text)


def redacted(value: Any) -> Any:
    """The same for every text in nested mappings and lists, settings say."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redacted(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(entry) for entry in value]
    return value


class RedactingFormatter(logging.Formatter):
    """Lines of a log, tracebacks included, without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
