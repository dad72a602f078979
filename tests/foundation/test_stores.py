"""Stores: places in one form, and files that are there whole or not at all, on paths and on an object store."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foundation import access, places, session, stores
from foundation.s3_packages import S3_EXCLUDES
from foundation.stores import StoreError

HERE = os.getcwd()


@pytest.mark.parametrize(
    ("given", "one_form", "spark"),
    [
        ("/a/b", "/a/b", "/a/b"),
        ("a/b c%20", f"{HERE}/a/b c%20", f"{HERE}/a/b c%20"),
        ("file:/a/b%20c", "/a/b c", "/a/b c"),
        ("file:///a/b?c", "/a/b?c", "/a/b?c"),
        ("/Volumes/main/x", "/Volumes/main/x", "/Volumes/main/x"),
        ("dbfs:/x/y", "/dbfs/x/y", "dbfs:/x/y"),
        ("dbfs:///x/y", "/dbfs/x/y", "dbfs:/x/y"),
        ("s3://bucket/a b%20/c", "s3://bucket/a b%20/c", "s3a://bucket/a b%20/c"),
        ("s3a://bucket//a/", "s3://bucket/a", "s3a://bucket/a"),
        ("S3://bucket", "s3://bucket", "s3a://bucket"),
        ("gs://bucket/a", "gs://bucket/a", "gs://bucket/a"),
        ("abfss://c@acc.dfs.core.windows.net/a", "abfss://c@acc.dfs.core.windows.net/a",
         "abfss://c@acc.dfs.core.windows.net/a"),
        ("run:1/x", f"{HERE}/run:1/x", f"{HERE}/run:1/x"),
    ],
)  # fmt: skip
def test_a_place_has_one_form_and_spark_its_own_spelling(given: str, one_form: str, spark: str) -> None:
    assert stores.normalised(given) == one_form
    assert stores.normalised(one_form) == one_form
    assert places.for_spark(given) == spark


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("hdfs://host/x", "scheme 'hdfs' are not supported; expected a path or one of file:, s3:"),
        ("abfs://c@a/x", "did you mean 'abfss'"),
        ("s3:/bucket/x", "lacks its bucket; expected s3://bucket/key"),
        ("s3:bucket/x", "lacks its bucket"),
        ("s3:///x", "lacks its bucket"),
        ("file://host/x", "names a host"),
        ("file:x", "no absolute path; expected file:/path"),
        ("", "empty place"),
    ],
)
def test_a_place_that_cannot_be_used_is_refused_by_name(given: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        stores.normalised(given)


@pytest.mark.parametrize("given", ["s3://who:hush@bucket/x", "gs://hush@bucket/x"])
def test_a_place_with_credentials_is_refused_without_repeating_them(given: str) -> None:
    with pytest.raises(StoreError, match="holds credentials; expected") as refused:
        stores.normalised(given)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("place", "below", "found"),
    [
        ("training", "s3a://bucket/wh", "s3://bucket/wh/training"),
        ("training", None, f"{HERE}/training"),
        ("/t", "s3://bucket/wh", "/t"),
        ("gs://b/t", "wh", "gs://b/t"),
    ],
)
def test_a_relative_place_is_below_the_folder_given(place: str, below: str | None, found: str) -> None:
    assert stores.beside(place, below) == found


def test_nothing_is_above_a_bucket() -> None:
    assert (stores.parent("s3://b/x/y"), stores.parent("s3://b/x"), stores.name_of("s3://b/x/y")) == (
        "s3://b/x",
        "s3://b",
        "y",
    )
    with pytest.raises(StoreError, match="is a bucket"):
        stores.parent("s3://b")


@pytest.fixture(params=["path", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder, by path and by URI, with a name that must be neither encoded nor decoded."""
    if request.param == "path":
        return f"{tmp_path}/a b%20é"
    return f"{request.getfixturevalue('object_store')}/{tmp_path.name}/a b%20é"


def test_what_is_written_is_there_whole_and_replaces_what_was(folder: str) -> None:
    file = stores.join(folder, "deep", "x.json")
    assert not stores.exists(folder)
    stores.write_bytes(file, b"123456")
    stores.write_text(file, "né")
    assert (stores.read_text(file), stores.size(file), stores.is_file(file)) == ("né", 3, True)
    assert stores.exists(folder)
    assert not stores.is_file(folder)
    assert (stores.names(folder), stores.names(stores.join(folder, "deep"))) == (["deep"], ["x.json"])


def test_files_know_when_they_were_written(folder: str) -> None:
    before = time.time()
    file = stores.join(folder, "x")
    stores.write_bytes(file, b"1")
    found, missing = stores.times([file, stores.join(folder, "y")])
    assert missing is None
    assert found is not None
    assert before - 2 < found < time.time() + 2  # object stores count whole seconds


def test_what_is_not_there_is_named(folder: str) -> None:
    file = stores.join(folder, "x")
    assert (stores.names(folder), stores.sizes([file]), stores.is_file(file)) == ([], [None], False)
    for ask in (stores.read_bytes, stores.size, lambda place: stores.download(place, Path("nowhere") / "x")):
        with pytest.raises(FileNotFoundError, match="x"):
            ask(file)
    stores.delete(file)
    stores.delete(folder)


def test_files_travel_both_ways_byte_for_byte(folder: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000  # more than one part of an upload
    (tmp_path / "there").write_bytes(content)
    stores.upload(tmp_path / "there", stores.join(folder, "x"))
    stores.download(stores.join(folder, "x"), tmp_path / "new" / "back")
    assert (tmp_path / "new" / "back").read_bytes() == content
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["back"]
    with stores.open_input(stores.join(folder, "x")) as stream:
        assert stream.read_at(4, 254) == b"\xfe\xff\x00\x01"


def test_a_file_is_written_and_read_by_a_local_name(folder: str) -> None:
    file = stores.join(folder, "x.pt")
    with stores.writing(file) as draft:
        draft.write_bytes(b"1234")
        assert not stores.exists(file)
    with stores.reading(file) as found:
        assert found.read_bytes() == b"1234"
        assert found.suffix == ".pt"
    assert stores.names(folder) == ["x.pt"]


def test_a_file_whose_writing_fails_is_not_there(folder: str) -> None:
    file = stores.join(folder, "x.pt")

    def fail() -> None:
        with stores.writing(file) as draft:
            draft.write_bytes(b"12")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert not stores.exists(file)
    with pytest.raises(FileNotFoundError, match="x"), stores.reading(file):
        pass


def test_a_folder_is_removed_with_all_that_is_in_it(folder: str) -> None:
    for name in ("a/1", "a/b/2", "c"):
        stores.write_bytes(stores.join(folder, name), b"1")
    stores.delete(stores.join(folder, "a"))
    assert stores.names(folder) == ["c"]
    stores.delete(stores.join(folder, "c"))
    assert not stores.is_file(stores.join(folder, "c"))


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores.write_bytes(tmp_path / "x", b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        stores.write_bytes(tmp_path / "x", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"old")]


def test_a_bucket_that_is_not_there_is_named(object_store: str) -> None:
    with pytest.raises((StoreError, FileNotFoundError), match="nosuch"):
        stores.read_bytes("s3://nosuchbucket/x")
    with pytest.raises(StoreError, match="s3://nosuchbucket/x: the store refuses"):
        stores.write_bytes("s3://nosuchbucket/x", b"1")


def test_spark_and_delta_rs_are_told_the_same_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in access.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    assert access.spark_conf(["/a", "gs://b/c"]) == {}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "who")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    conf = access.spark_conf(["s3://b/c"])
    assert conf == {
        "spark.hadoop.fs.s3a.endpoint": "http://127.0.0.1:9000",
        "spark.hadoop.fs.s3a.endpoint.region": "us-east-1",
        "spark.hadoop.fs.s3a.path.style.access": "true",
        "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
    }
    assert access.for_delta_rs("s3a://b/a b") == (
        "s3://b/a%20b",
        {
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "who",
            "AWS_SECRET_ACCESS_KEY": "secret",
        },
    )
    assert access.environment().keys() == {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def test_a_table_whose_log_delta_rs_would_not_find_is_refused_by_name() -> None:
    with pytest.raises(
        StoreError, match="s3://b/a%20b: a table's log cannot be read where a name holds a percent sign"
    ):
        access.for_delta_rs("s3://b/a%20b")
    assert access.for_delta_rs("gs://b/100%")[0] == "gs://b/100%25"


def test_what_spark_alone_was_told_holds_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in access.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    access.adopt(
        {
            "spark.hadoop.fs.s3a.endpoint": "127.0.0.1:9000",
            "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
            "spark.hadoop.fs.s3a.access.key": "who",
            "spark.hadoop.fs.s3a.endpoint.region": "us-east-1",
        }
    )
    try:
        assert access.environment() == {
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
            "AWS_ACCESS_KEY_ID": "who",
            "AWS_REGION": "eu-central-1",
        }
    finally:
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID"):
            os.environ.pop(name, None)


def test_a_local_session_fetches_the_client_of_s3_only_where_a_place_needs_it() -> None:
    plain = session.wanted_conf({}, {}, ["/a"])
    assert plain["spark.jars.packages"] == session.DELTA_PACKAGE
    assert "spark.jars.excludes" not in plain
    given = {"spark.jars.packages": "software.amazon.awssdk:s3:9.9", "spark.jars.excludes": "a:b"}
    wanted = session.wanted_conf(given, {}, ["/a", "s3a://b/c"])
    packages = wanted["spark.jars.packages"].split(",")
    assert packages[:2] == ["software.amazon.awssdk:s3:9.9", session.DELTA_PACKAGE]
    assert [name.split(":")[1] for name in packages[2:]] == ["hadoop-aws", "s3-transfer-manager", "sts"]
    assert wanted["spark.jars.excludes"] == ",".join(("a:b", *S3_EXCLUDES))
    on_cluster = session.wanted_conf({"spark.master": "yarn"}, {}, ["s3://b/c"])
    assert "hadoop-aws" not in on_cluster["spark.jars.packages"]


def test_places_need_neither_spark_nor_torch() -> None:
    program = "import sys; sys.modules['pyspark'] = sys.modules['torch'] = None; import foundation.stores"
    subprocess.run([sys.executable, "-c", program], check=True)
