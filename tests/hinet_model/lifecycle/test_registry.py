"""Aliases move only as promised, and every refusal says which kind it is."""

from __future__ import annotations

import http.server
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from mlflow import MlflowClient

from hinet_model.lifecycle import registry
from hinet_model.lifecycle.registry import CHALLENGER, CHAMPION, PREVIOUS_CHAMPION


@pytest.fixture(scope="module")
def client(mlflow_store: str) -> MlflowClient:
    return registry.connect(mlflow_store)


@pytest.fixture
def model(client: MlflowClient, tmp_path: Path) -> str:
    """A registered model with versions 1 to 3, the last one the challenger."""
    name = f"model_{uuid.uuid4().hex[:8]}"
    client.create_registered_model(name)
    for number in (1, 2, 3):
        client.create_model_version(name, source=tmp_path.as_uri(), tags={"number": str(number)})
    client.set_registered_model_alias(name, CHALLENGER, "3")
    return name


def champion(client: MlflowClient, name: str) -> str | None:
    found = registry.find(client, name, CHAMPION)
    return found.version if found else None


def test_an_alias_and_a_number_resolve_to_the_same_version(client: MlflowClient, model: str) -> None:
    by_alias = registry.resolve(client, model, CHALLENGER)
    assert by_alias == registry.resolve(client, model, "3")
    assert by_alias.tags["number"] == "3"
    assert by_alias.uri == f"models:/{model}/3"


def test_unknown_model_version_and_alias_have_codes_of_their_own(client: MlflowClient, model: str) -> None:
    with pytest.raises(registry.UnknownModelError, match="no model is registered as 'nobody'") as unknown:
        registry.resolve(client, "nobody", CHAMPION)
    with pytest.raises(
        registry.MissingAliasError, match=r"no alias 'champion'; its aliases: challenger = 3"
    ) as alias:
        registry.resolve(client, model, CHAMPION)
    with pytest.raises(registry.UnknownVersionError, match="no version 9") as version:
        registry.resolve(client, model, "9")
    codes = {error.value.code for error in (unknown, alias, version)}
    assert codes == {"UNKNOWN_MODEL", "MISSING_ALIAS", "UNKNOWN_VERSION"}


def test_no_champion_yet_is_a_normal_case_and_no_model_is_not(client: MlflowClient, model: str) -> None:
    assert registry.find(client, model, CHAMPION) is None
    with pytest.raises(registry.UnknownModelError):
        registry.find(client, "nobody", CHAMPION)


def test_the_first_promotion_replaces_nothing(client: MlflowClient, model: str) -> None:
    assert registry.promote(client, registry.resolve(client, model, "3"), None) is None
    assert champion(client, model) == "3"
    assert registry.find(client, model, CHALLENGER) is None
    assert registry.find(client, model, PREVIOUS_CHAMPION) is None


def test_promotions_and_rollbacks_walk_the_same_way_back(client: MlflowClient, model: str) -> None:
    for number, before in (("1", None), ("2", "1"), ("3", "2")):
        assert registry.promote(client, registry.resolve(client, model, number), before) == before
    assert registry.rollback(client, model) == ("2", "3")
    assert registry.resolve(client, model, "3").tags["validation_status"] == "rolled_back"
    assert registry.rollback(client, model) == ("1", "2")
    assert champion(client, model) == "1"
    with pytest.raises(registry.MissingAliasError, match="previous_champion"):
        registry.rollback(client, model)
    assert champion(client, model) == "1"


def test_a_rollback_does_not_return_to_what_was_just_withdrawn(client: MlflowClient, model: str) -> None:
    for number, before in (("1", None), ("2", "1"), ("1", "2")):
        registry.promote(client, registry.resolve(client, model, number), before)
    assert registry.rollback(client, model) == ("2", "1")
    with pytest.raises(registry.MissingAliasError):
        registry.rollback(client, model)


def test_a_champion_that_moved_since_the_comparison_stops_the_promotion(
    client: MlflowClient, model: str
) -> None:
    registry.promote(client, registry.resolve(client, model, "1"), None)
    with pytest.raises(registry.ChampionMovedError, match="evaluate again"):
        registry.promote(client, registry.resolve(client, model, "3"), None)
    assert champion(client, model) == "1"


def test_the_champion_is_not_promoted_twice(client: MlflowClient, model: str) -> None:
    registry.promote(client, registry.resolve(client, model, "1"), None)
    with pytest.raises(registry.RegistryError, match="already"):
        registry.promote(client, registry.resolve(client, model, "1"), "1")


def test_a_challenger_registered_meanwhile_stays_challenger(client: MlflowClient, model: str) -> None:
    registry.promote(client, registry.resolve(client, model, "2"), None)
    assert registry.resolve(client, model, CHALLENGER).version == "3"


def test_a_version_without_files_is_refused(client: MlflowClient, model: str, tmp_path: Path) -> None:
    with pytest.raises(registry.RegistryError, match="files are gone"):
        registry.fetch(client, registry.resolve(client, model, "1"), tmp_path / "cache")


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns"])
def test_a_folder_as_store_is_refused_by_name(uri: str) -> None:
    with pytest.raises(registry.RegistryError, match="sqlite:///"):
        registry.connect(uri)


def test_a_broken_store_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"not a database" * 100)
    with pytest.raises(registry.RegistryError, match=r"broken\.db' does not answer"):
        registry.connect(f"sqlite:///{tmp_path}/broken.db")


class _Workspace(http.server.BaseHTTPRequestHandler):
    """As much of a Databricks workspace as opening it takes."""

    asked: ClassVar[list[tuple[str, str]]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((self.path, self.headers.get("Authorization", "")))
        body = b'{"experiments": []}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST  # noqa: N815 (the base class calls it so)

    def log_message(self, format: str, *args: object) -> None:
        """Quietly."""


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Workspace]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Workspace)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("DATABRICKS_HOST", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("DATABRICKS_TOKEN", "token-of-the-test")
    _Workspace.asked.clear()
    yield _Workspace
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("uri", ["databricks", "databricks-uc"])
def test_a_databricks_workspace_is_a_store_and_unity_catalog_its_registry(
    uri: str, workspace: type[_Workspace]
) -> None:
    client = registry.connect(uri)
    assert client.tracking_uri == "databricks"
    assert client._registry_uri == "databricks-uc"
    headers = [
        authorization for path, authorization in workspace.asked if "/mlflow/experiments/search" in path
    ]
    assert headers == ["Bearer token-of-the-test"]


@pytest.mark.parametrize(
    ("tracking", "models"),
    [
        ("databricks://staging", "databricks-uc://staging"),
        ("databricks-uc", "databricks-uc"),
        ("https://mlflow.example", "https://mlflow.example"),
        ("sqlite:///a.db", "sqlite:///a.db"),
    ],
)
def test_models_are_registered_beside_their_runs(tracking: str, models: str) -> None:
    assert registry.registry_uri(tracking) == models


@pytest.mark.parametrize("uri", ["local/mlruns", "file:///tmp/mlruns", "databricks_runs"])
def test_a_folder_is_no_store(uri: str) -> None:
    with pytest.raises(registry.RegistryError, match="is a folder, which MLflow no longer takes"):
        registry.connect(uri)


def test_a_refusal_shows_no_credentials() -> None:
    with pytest.raises(registry.RegistryError) as refused:
        registry.connect("postgresql+nosuchdriver://mlflow:hunter2@db/mlflow")
    assert "postgresql+nosuchdriver://***@db/mlflow" in str(refused.value)
    assert "hunter2" not in str(refused.value)
