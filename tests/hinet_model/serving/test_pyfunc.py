"""A registered version loads and predicts anywhere, without Spark, Horovod or Petastorm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
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
    version = tracker.log_model(folder, Lineage.of(SNAPSHOT, plan_hash="p", world_size=2, seed=0))
    assert version is not None
    client = registry.connect(mlflow_store)
    return Published(version, registry.fetch(client, version, place / "cache"), folder, tracker)


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
    assert inputs == {
        "user_id": "long",
        "item_id": "long",
        "age": "double",
        "zip": "string",
        "genres": "string",
        "year": "double",
        "recent_items": "array",
    }
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
    python_model = mlflow.pyfunc.load_model(str(published.mlflow_model)).unwrap_python_model()
    with pytest.raises(UserError, match="user_id"):
        python_model.predict(None, rows.assign(user_id=rows["user_id"].astype("float64")))


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
