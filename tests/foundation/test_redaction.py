"""No credential of a URI survives redaction, and the rest of it does."""

from __future__ import annotations

import logging

import pytest

from foundation.redaction import RedactingFormatter, redact, redacted


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://mlflow:s3cret@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
        ("mysql+pymysql://u:p@ss/w?rd@db/x", "mysql+pymysql://***@db/x"),
        ("https://dapi0123@host/path", "https://***@host/path"),
        ("https://u:12345@host:443/a", "https://***@host:443/a"),
        ("s3://b/t?X-Amz-Signature=ab%2F&region=x", "s3://b/t?X-Amz-Signature=***&region=x"),
        (
            "https://a.blob.core.windows.net/c?sv=1&sig=Zz%3D&se=2",
            "https://a.blob.core.windows.net/c?sv=1&sig=***&se=2",
        ),
        (
            "s3://b?AWSAccessKeyId=AK&aws_secret_access_key=SK&x=1",
            "s3://b?AWSAccessKeyId=***&aws_secret_access_key=***&x=1",
        ),
        ("jdbc:sqlserver://h:1433;password=pw;db=x", "jdbc:sqlserver://h:1433;password=***;db=x"),
        ("https://h/a?access_token=t#here", "https://h/a?access_token=***#here"),
    ],
)
def test_credentials_are_hidden_and_the_place_is_not(uri: str, shown: str) -> None:
    assert redact(uri) == shown
    assert redact(f"cannot open '{uri}': refused") == f"cannot open '{shown}': refused"


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///local/mlflow/mlflow.db",
        "abfss://container@account.dfs.core.windows.net/warehouse",
        "wasbs://container@account.blob.core.windows.net/x",
        "hdfs://namenode:8020/data/day@2024",
        "s3://bucket/table?versionId=3",
        "databricks://profile",
        "user@example.com",
        "file:///a/b@c",
    ],
)
def test_what_is_no_credential_stays(uri: str) -> None:
    assert redact(uri) == uri


def test_settings_are_redacted_at_any_depth() -> None:
    settings = {"mlflow": {"tracking_uri": "https://u:p@h"}, "paths": ["s3://k:s@b", 3, None]}
    assert redacted(settings) == {
        "mlflow": {"tracking_uri": "https://***@h"},
        "paths": ["s3://***@b", 3, None],
    }


def test_a_log_shows_no_credential_not_even_in_a_traceback() -> None:
    formatter = RedactingFormatter("%(message)s")
    try:
        raise ValueError("no answer from https://u:hunter2@host")
    except ValueError as error:
        record = logging.LogRecord("x", 40, "f", 1, "at %s", ("https://u:hunter2@host",), None)
        record.exc_info = (ValueError, error, error.__traceback__)
    text = formatter.format(record)
    assert "hunter2" not in text
    assert text.count("https://***@host") == 3, "the message, the line of code, the error"
