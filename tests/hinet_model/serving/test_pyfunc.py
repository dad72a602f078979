"""A registered version loads and predicts anywhere, without Spark, Horovod or Petastorm."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import uvicorn
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from model_folders import BIG_ID, SNAPSHOT, encoder_state, raw_rows, save_small_model

from foundation.settings import UserError
from hinet_model.config import MlflowSettings
from hinet_model.lifecycle import publishing, registry
from hinet_model.serving.scorer import Scorer
from hinet_model.tracking.lineage import Lineage
from hinet_model.tracking.tracker import Tracker


@dataclass
class Published:
    """A version registered by a tracker."""

    version: registry.RegisteredVersion
    mlflow_model: Path
    folder: Path
    tracker: Tracker


@pytest.fixture(scope="module")
def published(mlflow_store: str, tmp_path_factory: pytest.TempPathFactory) -> Published:
    place = tmp_path_factory.mktemp("published")
    settings = MlflowSettings(
        tracking_uri=mlflow_store,
        experiment="pyfunc",
        registered_model="small",
        artifact_location=str(place / "artifacts"),
    )
    tracker = Tracker(settings, place / "run")
    tracker.start_run()
    folder = save_small_model(place / "model")
    lineage = Lineage.of(SNAPSHOT, plan_hash="p", world_size=2, seed=0)
    version = tracker.log_model(folder, lineage, "**Purpose.** A test.", {"model": "hinet"})
    assert version is not None
    client = registry.connect(mlflow_store)
    return Published(version, registry.fetch(client, version, place / "cache"), folder, tracker)


def _as_id(value: object) -> int:
    return int(str(value))


@pytest.fixture
def rows() -> pd.DataFrame:
    """Raw rows without null ids, as the signature wants them."""
    return raw_rows(encoder_state()).slice(0, 3).to_pandas()


def test_a_new_version_is_challenger_and_carries_its_lineage(published: Published) -> None:
    client = registry.connect(published.tracker.settings.tracking_uri)
    version = registry.resolve(client, "small", registry.CHALLENGER)
    assert version == published.version
    expected = {
        "delta_table": SNAPSHOT.table,
        "delta_version": "4",
        "contract_fingerprint": SNAPSHOT.contract_fingerprint,
        "encoder_digest": SNAPSHOT.encoder_digest,
        "run_id": published.tracker.run_id,
        "validation_status": "pending",
    }
    assert expected.items() <= version.tags.items()
    assert "git_sha" in version.tags
    assert client.get_run(published.tracker.run_id).info.status == "RUNNING"
    registered = client.get_model_version("small", version.version)
    assert registered.description == "**Purpose.** A test."
    assert registered.tags["model"] == "hinet"
    assert "champion" in client.get_registered_model("small").description


def test_the_model_folder_is_found_inside_the_registered_model(published: Published) -> None:
    folder = registry.model_folder(published.mlflow_model)
    assert Scorer.load(folder).state.digest == encoder_state().digest


def test_predictions_are_the_scorers(published: Published, rows: pd.DataFrame) -> None:
    loaded = mlflow.pyfunc.load_model(str(published.mlflow_model))
    predicted = loaded.predict(rows)
    assert list(predicted.columns) == ["scenario", "click_prob", "like_prob"]
    assert predicted["scenario"].tolist() == ["young", "old", "young"]
    expected = Scorer.load(published.folder).score(raw_rows(encoder_state()).slice(0, 3))
    np.testing.assert_allclose(predicted[["click_prob", "like_prob"]], expected, atol=1e-6)
    assert predicted["click_prob"].dtype == np.float64


def test_the_signature_is_wide_and_the_example_fits_it(published: Published) -> None:
    model = mlflow.models.Model.load(str(published.mlflow_model))
    inputs = {column["name"]: column["type"] for column in model.signature.inputs.to_dict()}
    names = ["user_id", "item_id", "age", "zip", "genres", "year", "recent_items"]
    names += ["journey", "journey__ages", "journey__kinds"]
    assert inputs == dict.fromkeys(names, "any")
    assert all(column.required for column in model.signature.inputs.inputs)
    assert model.metadata["kinds"] == encoder_state().raw_types
    assert model.signature.outputs.input_names() == ["scenario", "click_prob", "like_prob"]
    example = model.load_input_example(str(published.mlflow_model))
    assert example["user_id"].tolist()[:2] == [1, BIG_ID]


def test_requirements_are_pinned_and_need_no_spark(published: Published) -> None:
    lines = (published.mlflow_model / "requirements.txt").read_text().split()
    assert all("==" in line for line in lines)
    names = {line.partition("==")[0].lower() for line in lines}
    assert {"torch", "pyarrow", "numpy", "pydantic"} <= names
    assert not names & {"pyspark", "horovod", "petastorm", "delta-spark"}


def test_an_unknown_scenario_is_refused_by_name(published: Published, rows: pd.DataFrame) -> None:
    loaded = mlflow.pyfunc.load_model(str(published.mlflow_model))
    with pytest.raises(UserError, match=r"row 1: age = 150\.0"):
        loaded.predict(rows.assign(age=[20.0, 150.0, 20.0]))


def test_a_missing_column_is_refused_by_name(published: Published, rows: pd.DataFrame) -> None:
    loaded = mlflow.pyfunc.load_model(str(published.mlflow_model))
    with pytest.raises(MlflowException, match="zip"):
        loaded.predict(rows.drop(columns="zip"))
    python_model = loaded.unwrap_python_model()
    with pytest.raises(UserError, match=r"'zip' is missing; did you mean 'zipp'"):
        python_model.predict(None, rows.rename(columns={"zip": "zipp"}))


def test_ids_that_passed_through_floats_are_refused(published: Published, rows: pd.DataFrame) -> None:
    loaded = mlflow.pyfunc.load_model(str(published.mlflow_model))
    with pytest.raises(
        UserError, match=r"row 1: column 'user_id' = .*passed through floats.*send it as text"
    ):
        loaded.predict(rows.assign(user_id=rows["user_id"].astype("float64")))


ANSWERS: dict[str, Any] = {
    "nulls beside whole numbers": {"user_id": [1, None, 3]},
    "nullable whole numbers": {"user_id": pd.array([1, None, 3], dtype="Int64")},
    "a big id as text": {"user_id": [None, str(BIG_ID), "3"]},
    "whole numbers for doubles": {"age": [25, 40, 12], "year": [1990, None, 2000]},
    "numbers as text": {"age": ["25", " 40 ", "1.2e1"]},
    "categories": {"zip": pd.Categorical(["12345", "00000", None])},
    "lists with nulls": {"recent_items": [[20, None], None, []]},
    "nothing at all": {"user_id": [None, None, None], "year": [None, None, None]},
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_training_took_is_scored(published: Published, rows: pd.DataFrame, name: str) -> None:
    loaded = mlflow.pyfunc.load_model(str(published.mlflow_model))
    predicted = loaded.predict(rows.assign(**ANSWERS[name]))
    exact = raw_rows(encoder_state()).slice(0, 3).to_pydict()
    for column, values in ANSWERS[name].items():
        read = {"user_id": _as_id, "age": float, "year": float}.get(column, lambda value: value)
        exact[column] = [
            read(value) if isinstance(value, list) or not pd.isna(value) else None for value in values
        ]
    scorer = Scorer.load(published.folder)
    expected = scorer.score(pa.table(exact, schema=scorer.raw_schema))
    np.testing.assert_allclose(predicted[["click_prob", "like_prob"]], expected, atol=1e-6)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "text for an id": (
        {"user_id": ["1", "two", None]},
        r"row 1: column 'user_id' = 'two'; expected a whole number",
    ),
    "half an id": ({"user_id": [1.5, 2.0, None]}, r"row 0: column 'user_id' = 1\.5: expected a whole number"),
    "an id too big": ({"user_id": [2**64, 2, 3]}, r"row 0: column 'user_id' = '18446744073709551616'"),
    "text for a number": (
        {"year": ["1990", "soon", None]},
        r"row 1: column 'year' = 'soon'; expected a number",
    ),
    "a time for a number": (
        {"year": pd.to_datetime(["2024-01-01"] * 3)},
        r"column 'year' is of type timestamp",
    ),
    "a number for text": (
        {"zip": [12345, 2, 3]},
        r"column 'zip' is of type int64; expected text: 007 and 7 are two",
    ),
    "a number for a list": (
        {"recent_items": [1, 2, 3]},
        r"column 'recent_items' is of type int64; expected a list",
    ),
    "ages of other slots": (
        {"journey__ages": [[1, 90], [7], [5000]]},
        r"row 1: column 'journey__ages' lists 1 values; expected 0, as many as 'journey'",
    ),
    "a null among ages": ({"journey__ages": [[1, None], [], [5000]]}, r"column 'journey__ages' lists a null"),
    "a list for an id": ({"user_id": [[1], [2], None]}, r"column 'user_id' is of type list"),
    "an object": ({"user_id": [{"a": 1}, 2, 3]}, r"column 'user_id'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_training_would_not_take_is_refused_in_one_line(
    published: Published, rows: pd.DataFrame, name: str
) -> None:
    columns, words = REFUSED[name]
    loaded = mlflow.pyfunc.load_model(str(published.mlflow_model))
    with pytest.raises(UserError, match=words) as caught:
        loaded.predict(rows.assign(**columns))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def address(published: Published) -> Iterator[str]:
    """Where MLflow's own server answers for the model."""
    app = scoring_server.init(mlflow.pyfunc.load_model(str(published.mlflow_model)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/invocations"
    server.should_exit = True
    thread.join(10)


def post(address: str, body: object) -> tuple[int, dict[str, Any]]:
    """Status and content of the answer to a JSON request."""
    content = {"Content-Type": "application/json"}
    request = urllib.request.Request(address, json.dumps(body).encode(), content)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize("form", ["dataframe_records", "dataframe_split"])
def test_rest_scores_nulls_and_big_ids_exactly(published: Published, address: str, form: str) -> None:
    exact = raw_rows(encoder_state()).to_pylist()
    requests = [exact, [{**row, "user_id": row["user_id"] and str(row["user_id"])} for row in exact]]
    expected = Scorer.load(published.folder).score(raw_rows(encoder_state()))
    for rows in (requests[0][:3], requests[1]):
        split = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
        status, answer = post(address, {form: split if form == "dataframe_split" else rows})
        assert status == 200, answer
        found = [row["click_prob"] for row in answer["predictions"]]
        np.testing.assert_allclose(found, expected[: len(rows), 0], atol=1e-6)


def test_rest_refuses_in_one_line_without_a_stack_trace(address: str) -> None:
    rows = [{**row, "year": "soon"} for row in raw_rows(encoder_state()).to_pylist()[:1]]
    status, answer = post(address, {"dataframe_records": rows})
    assert status == 400
    assert answer["error_code"] == "INVALID_PARAMETER_VALUE"
    assert "row 0: column 'year' = 'soon'; expected a number" in answer["message"]
    assert "Traceback" not in json.dumps(answer)


def test_it_serves_in_a_process_without_spark_horovod_and_petastorm(
    published: Published, rows: pd.DataFrame, tmp_path: Path
) -> None:
    request = {"dataframe_split": json.loads(rows.to_json(orient="split"))}
    program = f"""
        import json, sys
        FORBIDDEN = {{"pyspark", "horovod", "petastorm", "delta"}}
        class Hook:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in FORBIDDEN:
                    raise ImportError(name + " is not installed here")
        sys.meta_path.insert(0, Hook())
        try:
            import pyspark
        except ImportError:
            pass
        else:
            raise SystemExit("the hook does not work")
        import mlflow
        from mlflow.pyfunc.scoring_server import infer_and_parse_data
        model = mlflow.pyfunc.load_model({str(published.mlflow_model)!r})
        import hinet_model
        assert {str(published.mlflow_model)!r} in hinet_model.__file__, hinet_model.__file__
        frame = infer_and_parse_data(json.loads(sys.stdin.read()), model.metadata.get_input_schema())
        print("PREDICTED " + json.dumps(model.predict(frame).to_dict(orient="list")))
        assert not FORBIDDEN & {{name.partition(".")[0] for name in sys.modules}}
    """
    done = subprocess.run(
        # -I: neither the checkout nor the environment leads to the package; only the artifact has it.
        [sys.executable, "-I", "-c", textwrap.dedent(program)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("PREDICTED ")]
    predicted = json.loads(line.removeprefix("PREDICTED "))
    expected = Scorer.load(published.folder).score(raw_rows(encoder_state()).slice(0, 3))
    np.testing.assert_allclose(predicted["click_prob"], expected[:, 0], atol=1e-6)
    np.testing.assert_allclose(predicted["like_prob"], expected[:, 1], atol=1e-6)


def test_a_model_that_answers_otherwise_through_mlflow_is_refused(
    published: Published, tmp_path: Path
) -> None:
    publishing.check_pyfunc(published.mlflow_model)
    copy = Path(shutil.copytree(published.mlflow_model, tmp_path / "model"))
    (code,) = copy.glob("*.py")
    honest = code.read_text()
    assert 'scores = self.scorer.score_encoded(encoded).astype("float64")' in honest
    code.write_text(honest.replace('.astype("float64")', '.astype("float64") * 1.01'))
    with pytest.raises(
        registry.RegistryError, match=r"MLflow serves other probabilities .* where the logit is"
    ):
        publishing.check_pyfunc(copy)
