"""The project's own texts: the README names what exists, commands are accepted, rules of the house hold."""

from __future__ import annotations

import configparser
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from job_files import JOBS, ROOT, commands_in, parser_of

from feature_eng.contract import Source, to_contract
from foundation import stores
from foundation.session import DELTA_PACKAGE
from foundation.settings import load_settings, read_yaml
from hinet_model.settings import RunSettings

# Folders of a checkout that hold no source: what .gitignore names, and version control itself.
_IGNORED = {"__pycache__", "local", "spark-warehouse", "metastore_db", "mlruns", "shared"}
_TEXTS = [
    "README.md",
    "docs/adding_data.md",
    "docs/adding_a_model.md",
    "docs/models.md",
    "docs/cluster.md",
    "docs/databricks.md",
    "docs/faults.md",
    "docs/object_stores.md",
    "CHANGELOG.md",
]


_LONG = {
    "feature_eng/delta.py": "the only reader and writer of Delta tables: what it refuses stands beside what it reads",
    "feature_eng/encoder/state.py": "the closed set of operations, and the state that they make up",
    "foundation/settings.py": "reading, checking and explaining are one walk over the same schema",
    "hinet_model/data/batch.py": "a batch and its layout are defined by each other",
    "hinet_model/lifecycle/promotion.py": "the gate: every rule, and the cells and pools that it holds for",
    "hinet_model/lifecycle/registry.py": "every call to the registry, so that aliases move in one place",
    "hinet_model/nn/native/routed_experts.cpp": "one operation, forward and backward, tile by tile",
    "hinet_model/serving/scorer.py": "from raw rows to probabilities, and the folder that makes it possible",
    "hinet_model/tracking/tracker.py": "every call that a run makes to MLflow, and its delivery",
    "hinet_model/training/checkpoint.py": "what makes a checkpoint whole, from its beginning to its pruning",
}
"""Files of more than 300 lines, and why each is one story all the same."""


def source_files(root: Path = ROOT) -> set[str]:
    """Every file of the source tree but ``__init__.py``, relative to the root."""
    found = set()
    for folder, folders, names in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if name == ".ci"
            or not (
                name.startswith(".")
                or name in _IGNORED
                or name.endswith(".egg-info")
                or (Path(folder) == root and name in ("build", "dist"))
            )
        ]
        found |= {
            (Path(folder) / name).relative_to(root).as_posix()
            for name in names
            # In a linked work tree .git is a file.
            if name not in ("__init__.py", "derby.log", ".git")
        }
    return found


def tree_files(text: str) -> dict[str, str]:
    """Files of the README's tree, with what it says of each."""
    block = text.split("## The tree", 1)[1].split("```text\n", 1)[1].split("\n```", 1)[0]
    folders: list[str] = []
    files: dict[str, str] = {}
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, says = line.strip().partition(" ")
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            assert "".join([*folders, name]) not in files, f"twice in the tree: {name}"
            files["".join([*folders, name])] = says.strip()
    return files


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_no_two_files_of_tests_share_a_name() -> None:
    """pytest imports them by that name alone, and stops at the second one."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert len(names) > 50
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_readme_tree_lists_exactly_the_files_that_exist() -> None:
    listed, existing = set(tree_files(readme())), source_files()
    assert len(existing) > 100
    assert sorted(existing - listed) == [], "not in the README's tree"
    assert sorted(listed - existing) == [], "in the README's tree, but not there"


def test_readme_tree_says_something_of_each_file() -> None:
    assert [name for name, says in tree_files(readme()).items() if len(says) < 5] == []


def test_a_missing_and_an_invented_file_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.py").touch()
    (tmp_path / "jobs" / "__init__.py").touch()
    listed = tree_files("## The tree\n\n```text\njobs/      the jobs\n  score.py   scores\n```\n")
    assert source_files(tmp_path) == {"jobs/train.py"}
    assert listed == {"jobs/score.py": "scores"}


@pytest.mark.parametrize("text", _TEXTS)
def test_links_lead_to_files(text: str) -> None:
    content = (ROOT / text).read_text(encoding="utf-8")
    folder = (ROOT / text).parent
    targets = re.findall(r"\]\(([^)#:]+)\)", content)
    assert [target for target in targets if not (folder / target).exists()] == []


def test_readme_shows_a_picture_that_is_well_formed() -> None:
    assert "![" in readme()
    assert ElementTree.parse(ROOT / "docs" / "flow.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_every_job_has_help_with_examples_that_it_accepts(job: Path) -> None:
    text = parser_of(job).format_help()
    commands = commands_in(text)
    assert "examples:" in text
    assert (
        any(line.strip().startswith("spark-submit ") for line in text.splitlines()) or job.stem == "promote"
    )
    assert [path for path, _ in commands if path != job] == []
    assert len(commands) >= 2
    for _, options in commands:
        assert parser_of(job).parse_args(options)


@pytest.mark.parametrize("text", [text for text in _TEXTS if text != "CHANGELOG.md"])
def test_commands_in_the_texts_are_accepted_and_their_files_exist(text: str) -> None:
    commands = commands_in((ROOT / text).read_text(encoding="utf-8"))
    assert commands or text in (
        "docs/databricks.md",
        "docs/faults.md",
        "docs/adding_a_model.md",
        "docs/models.md",
        "docs/object_stores.md",
    )
    for job, options in commands:
        given = parser_of(job).parse_args(options)
        if hasattr(given, "config"):
            load_settings(RunSettings, ROOT / given.config, given.overrides)


def test_readme_runs_every_job_by_python_and_by_spark_submit() -> None:
    for start in ("python ", "spark-submit "):
        lines = "\n".join(line for line in readme().splitlines() if line.strip().startswith(start))
        assert {job for job, _ in commands_in(lines)} == set(JOBS)


def test_contract_of_the_guide_is_a_contract(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "adding_data.md").read_text(encoding="utf-8")
    # The contract, a section `source` that shows all there is, and parts of contracts, tested beside contracts.
    whole, source, *_ = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    contract = to_contract(yaml.safe_load(whole), "docs/adding_data.md")
    assert len(contract.scenario_names) == 5
    assert contract.task_names == ("click", "cart", "order")
    (tmp_path / "source.yml").write_text(source)
    tables = Source.model_validate(read_yaml(tmp_path / "source.yml")["source"])
    assert set(tables.tables) == {"shown", "users", "items"}
    assert [join.table for join in tables.join] == ["users", "items"]


def test_training_settings_read_the_table_that_the_contract_of_that_name_writes() -> None:
    warehouse = parser_of(ROOT / "jobs" / "build_features.py").get_default("warehouse")
    for path in (ROOT / "conf" / "contracts").glob("*.yml"):
        name = yaml.safe_load(path.read_text(encoding="utf-8"))["name"]
        settings = load_settings(RunSettings, ROOT / "conf" / "train" / path.name)
        assert settings.data.location == stores.join(warehouse, name, "training")


@pytest.mark.parametrize("name", ["local.conf", "cluster.conf"])
def test_spark_settings_fit_training(name: str) -> None:
    lines = (ROOT / "conf" / "spark" / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split(None, 1) for line in lines if line.strip() and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs)
    given = {key: value.strip() for key, value in pairs}
    assert len(given) == len(pairs), "a key is there twice"
    assert all(key.startswith("spark.") for key in given)
    assert DELTA_PACKAGE in given["spark.jars.packages"].split(",")
    assert given["spark.speculation"] == given["spark.dynamicAllocation.enabled"] == "false"
    assert given["spark.task.maxFailures"] == "1"
    # The master of a cluster is the user's; one machine has one.
    assert ("spark.master" in given) == (name == "local.conf")


def test_every_package_is_in_the_distribution() -> None:
    options = configparser.ConfigParser()
    options.read(ROOT / "setup.cfg")
    included = options["options.packages.find"]["include"].split()
    assert included == ["foundation*", "feature_eng*", "hinet_model*"]
    for package in ("foundation", "feature_eng", "hinet_model"):
        folders = {path.parent for path in (ROOT / package).rglob("*.py")}
        assert folders
        assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_pins_of_the_package_are_those_of_the_constraints() -> None:
    options = configparser.ConfigParser()
    options.read(ROOT / "setup.cfg")
    required = [line for line in options["options"]["install_requires"].splitlines() if "==" in line]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert len(required) >= 8
    # Horovod is built, not fetched.
    assert [line for line in required if line not in constraints] == ["horovod==0.28.1"]


def test_decisions_are_numbered_without_gaps() -> None:
    names = sorted(path.name for path in (ROOT / "docs" / "adr").glob("*.md"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    for name in names:
        text = (ROOT / "docs" / "adr" / name).read_text(encoding="utf-8")
        assert text.startswith(f"# {name[:4]}. ")
        assert [
            part for part in ("Status:", "## Context", "## Decision", "## Consequences") if part not in text
        ] == []


def test_only_jobs_configure_logging_and_nothing_prints() -> None:
    faults = []
    for package in ("foundation", "feature_eng", "hinet_model", "jobs"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if re.search(r"^\s*print\(", text, flags=re.MULTILINE):
                faults.append(f"{path}: prints")
            if "basicConfig" in text and path != ROOT / "foundation" / "job.py":
                faults.append(f"{path}: configures logging")
    assert faults == []


def test_a_file_of_more_than_300_lines_has_a_reason() -> None:
    long = [
        path.relative_to(ROOT).as_posix()
        for package in ("foundation", "feature_eng", "hinet_model", "jobs", "benchmarks", "build_tools")
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".cpp") and len(path.read_text(encoding="utf-8").splitlines()) > 300
    ]
    assert sorted(long) == sorted(_LONG)
