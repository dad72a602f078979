"""The Databricks bundle, checked offline by rules of our own; every rule is shown to find a planted fault."""

from __future__ import annotations

import argparse
import copy
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from job_files import ROOT, parser_of

from feature_eng.contract import load_contract
from foundation.settings import UserError, load_settings
from hinet_model.settings import RunSettings

RESOURCES = ROOT / "resources"

# What the bundle's variables without a default may be in a workspace.
GIVEN = {
    "raw_data": "/Volumes/main/hinet/raw/ml-1m",
    "warehouse": "/Volumes/main/hinet/warehouse",
    "checkpoints": "/Volumes/main/hinet/checkpoints",
    "tracking_uri": "https://mlflow.example.com",
    "artifact_location": "/Volumes/main/hinet/artifacts",
    "horovod_wheel": "/Volumes/main/hinet/wheels/horovod.whl",
    "node_type_id": "gpu-node",
    "alert_email": "someone@example.com",
}
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_JOB_PARAMETER = re.compile(r"\{\{job\.parameters\.(\w+)\}\}")
_WORKSPACE = {"workspace.file_path": str(ROOT), "bundle.name": "hinet-on-spark", "bundle.target": "dev"}
_MAPS_OF_STRINGS = ("spark_conf", "spark_env_vars", "custom_tags")
_TRIGGERS = ("trigger", "schedule", "continuous")

Bundle = dict[str, Any]


class _NoDuplicates(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML would keep the last."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]  # type: ignore[no-untyped-call]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise ValueError(f"{node.start_mark}: twice: {sorted(twice)}")
    return loader.construct_mapping(node, deep=True)


_NoDuplicates.add_constructor("tag:yaml.org,2002:map", _mapping)


def load_bundle() -> Bundle:
    """The bundle with its included resources merged in, as the command line merges them; a copy to change."""
    return copy.deepcopy(_read_bundle())


@cache
def _read_bundle() -> Bundle:
    bundle: Bundle = yaml.load((ROOT / "databricks.yml").read_text(), _NoDuplicates)
    included = [path for pattern in bundle["include"] for path in sorted(ROOT.glob(pattern))]
    assert included, "databricks.yml includes no file"
    for path in included:
        content = yaml.load(path.read_text(), _NoDuplicates)
        for kind, entries in content["resources"].items():
            bundle.setdefault("resources", {}).setdefault(kind, {}).update(entries)
    # Anchors give one object several places; a planted fault shall be in one of them.
    read: Bundle = yaml.safe_load(yaml.dump(bundle, Dumper=_NoAliases))
    return read


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def strings(node: Any) -> Iterator[str]:
    """Every string value below a node."""
    if isinstance(node, dict):
        for value in node.values():
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)
    elif isinstance(node, str):
        yield node


def jobs(bundle: Bundle) -> dict[str, Any]:
    found: dict[str, Any] = bundle["resources"]["jobs"]
    return found


def tasks(bundle: Bundle) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name of the job, the job, and the task, for all tasks."""
    for name, job in jobs(bundle).items():
        for task in job["tasks"]:
            yield name, job, task


# -- the rules: each gives one line per fault ----------------------------------------------------------


def undeclared_variables(bundle: Bundle) -> Iterator[str]:
    known = {f"var.{name}" for name in bundle["variables"]} | set(_WORKSPACE)
    for text in strings(bundle):
        for reference in _REFERENCE.findall(text):
            if reference not in known:
                yield f"${{{reference}}} is not declared"
    for name, target in bundle["targets"].items():
        for variable in target.get("variables", {}):
            if variable not in bundle["variables"]:
                yield f"target {name} sets the unknown variable {variable}"


def unused_variables(bundle: Bundle) -> Iterator[str]:
    used = {reference for text in strings(bundle) for reference in _REFERENCE.findall(text)}
    yield from (f"variable {name} is not used" for name in bundle["variables"] if f"var.{name}" not in used)


def unknown_job_parameters(bundle: Bundle) -> Iterator[str]:
    for name, job in jobs(bundle).items():
        declared = {parameter["name"] for parameter in job.get("parameters", [])}
        used = {found for text in strings(job["tasks"]) for found in _JOB_PARAMETER.findall(text)}
        yield from (f"{name}: parameter {parameter} is not declared" for parameter in sorted(used - declared))
        yield from (f"{name}: parameter {parameter} is not used" for parameter in sorted(declared - used))
        yield from (
            f"{name}: default of parameter {parameter['name']} is not quoted"
            for parameter in job.get("parameters", [])
            if not isinstance(parameter["default"], str)
        )


def wrong_task_keys(bundle: Bundle) -> Iterator[str]:
    for name, job in jobs(bundle).items():
        keys = [task["task_key"] for task in job["tasks"]]
        yield from (f"{name}: task {key} is there twice" for key in {k for k in keys if keys.count(k) > 1})
        after = {
            task["task_key"]: [d["task_key"] for d in task.get("depends_on", [])] for task in job["tasks"]
        }
        for key, dependencies in after.items():
            yield from (f"{name}: {key} depends on unknown {d}" for d in dependencies if d not in after)
        done: set[str] = set()
        while ready := {key for key in after if key not in done and set(after[key]) & set(after) <= done}:
            done |= ready
        if done != set(after):
            yield f"{name}: tasks depend on each other in a cycle: {sorted(set(after) - done)}"


def unknown_clusters(bundle: Bundle) -> Iterator[str]:
    for name, job, task in tasks(bundle):
        known = {cluster["job_cluster_key"] for cluster in job.get("job_clusters", [])}
        if task.get("job_cluster_key") not in known:
            yield f"{name}/{task['task_key']}: unknown cluster {task.get('job_cluster_key')}"


def missing_files(bundle: Bundle) -> Iterator[str]:
    for name, _, task in tasks(bundle):
        path = RESOURCES / task["spark_python_task"]["python_file"]
        if not path.is_file():
            yield f"{name}/{task['task_key']}: no file {task['spark_python_task']['python_file']}"
    for variable in ("contract", "config"):
        if not (ROOT / bundle["variables"][variable]["default"]).is_file():
            yield f"variable {variable}: no file {bundle['variables'][variable]['default']}"


def wheels_that_nothing_builds(bundle: Bundle) -> Iterator[str]:
    builds = any(
        artifact.get("type") == "whl" and artifact.get("build")
        for artifact in bundle.get("artifacts", {}).values()
    )
    for name, _, task in tasks(bundle):
        local = [
            item["whl"] for item in task.get("libraries", []) if item.get("whl", "").startswith("../dist/")
        ]
        if not local:
            yield f"{name}/{task['task_key']}: does not install this package"
        elif not builds:
            yield f"{name}/{task['task_key']}: {local[0]} is built by no artifact"


def more_than_one_trigger(bundle: Bundle) -> Iterator[str]:
    for name, job in jobs(bundle).items():
        given = [key for key in _TRIGGERS if key in job] + list(job.get("trigger", {}))
        kinds = [key for key in given if key in (*_TRIGGERS[1:], "file_arrival", "table_update", "periodic")]
        if len(kinds) > 1:
            yield f"{name}: more than one trigger: {kinds}"


def unquoted_maps(node: Any, where: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _MAPS_OF_STRINGS:
                yield from (
                    f"{where}/{key}/{name}: {item!r} is not quoted"
                    for name, item in value.items()
                    if not isinstance(item, str)
                )
            else:
                yield from unquoted_maps(value, f"{where}/{key}")
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from unquoted_maps(value, f"{where}/{place}")


def clusters_unfit_for_training(bundle: Bundle) -> Iterator[str]:
    for name, job in jobs(bundle).items():
        for entry in job.get("job_clusters", []):
            cluster, where = entry["new_cluster"], f"{name}/{entry['job_cluster_key']}"
            version = resolved(cluster["spark_version"], bundle)
            if "-ml-" in version and cluster.get("data_security_mode") != "SINGLE_USER":
                yield f"{where}: {version} needs data_security_mode SINGLE_USER"
            if "autoscale" in cluster or "num_workers" not in cluster:
                yield f"{where}: Horovod needs a fixed num_workers, no autoscale"
            conf = cluster.get("spark_conf", {})
            wanted = {"spark.speculation": "false", "spark.dynamicAllocation.enabled": "false"}
            if "gpu" in version:
                wanted["spark.task.resource.gpu.amount"] = "1"
            for key, value in wanted.items():
                if conf.get(key) != value:
                    yield f"{where}: {key} is {conf.get(key)}; expected {value}"


def unattended_jobs(bundle: Bundle) -> Iterator[str]:
    for name, job in jobs(bundle).items():
        if job.get("max_concurrent_runs") != 1 or not job.get("queue", {}).get("enabled"):
            yield f"{name}: expected max_concurrent_runs 1 and a queue"
        rules = job.get("health", {}).get("rules", [])
        if not any(rule["metric"] == "RUN_DURATION_SECONDS" for rule in rules):
            yield f"{name}: no health rule on the duration"
        if not job.get("email_notifications", {}).get("on_failure"):
            yield f"{name}: nobody hears of a failure"
    for name, _, task in tasks(bundle):
        # A task whose failure does not fail the run is not covered by the job's own notification.
        if not task.get("email_notifications", {}).get("on_failure"):
            yield f"{name}/{task['task_key']}: nobody hears of a failure"


def refused_options(bundle: Bundle) -> Iterator[str]:
    for name, job, task in tasks(bundle):
        where = f"{name}/{task['task_key']}"
        python_file = RESOURCES / task["spark_python_task"]["python_file"]
        if not python_file.is_file():
            continue
        options = [resolved(text, bundle, job) for text in task["spark_python_task"]["parameters"]]
        parser = parser_of(python_file)
        try:
            given = parser.parse_args(options)
            if hasattr(given, "contract"):
                load_contract(given.contract, given.overrides)
            else:
                load_settings(RunSettings, given.config, given.overrides)
        except (argparse.ArgumentError, SystemExit) as error:
            yield f"{where}: {python_file.name} does not take {options}: {error}"
        except UserError as error:
            yield f"{where}: {error}"


Rule = Callable[[Bundle], Iterator[str]]
RULES: tuple[Rule, ...] = (
    undeclared_variables,
    unused_variables,
    unknown_job_parameters,
    wrong_task_keys,
    unknown_clusters,
    missing_files,
    wheels_that_nothing_builds,
    more_than_one_trigger,
    unquoted_maps,
    clusters_unfit_for_training,
    unattended_jobs,
    refused_options,
)


def resolved(text: str, bundle: Bundle, job: dict[str, Any] | None = None) -> str:
    """A string with the values of its references, as far as they have one."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name in _WORKSPACE:
            return _WORKSPACE[name]
        variable = bundle["variables"].get(name.removeprefix("var."), {})
        return str(variable.get("default", GIVEN.get(name.removeprefix("var."), match[0])))

    defaults = {item["name"]: str(item["default"]) for item in (job or {}).get("parameters", [])}
    text = _JOB_PARAMETER.sub(lambda match: defaults.get(match[1], match[0]), text)
    return _REFERENCE.sub(value, text)


# -- the tests -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_bundle_keeps_the_rule(rule: Rule) -> None:
    assert list(rule(load_bundle())) == []


def test_job_has_all_stages_in_order() -> None:
    (job,) = jobs(load_bundle()).values()
    stages = [Path(task["spark_python_task"]["python_file"]).stem for task in job["tasks"]]
    assert stages == ["build_features", "train", "evaluate", "promote", "score"]
    # Studies and simulations are no stages of a flow that brings models into service.
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == {*stages, "study", "simulate_ab"}


def test_targets_of_production_run_as_a_service_principal() -> None:
    targets = load_bundle()["targets"]
    assert set(targets) == {"dev", "staging", "prod"}
    for name in ("staging", "prod"):
        assert targets[name]["mode"] == "production"
        assert targets[name]["run_as"]["service_principal_name"]
        assert targets[name]["workspace"]["root_path"]


def test_variables_that_must_be_given_are_those_without_a_default() -> None:
    variables = load_bundle()["variables"]
    assert {name for name, variable in variables.items() if "default" not in variable} == set(GIVEN)


def _task(bundle: Bundle, key: str) -> dict[str, Any]:
    found: dict[str, Any] = next(task for _, _, task in tasks(bundle) if task["task_key"] == key)
    return found


def _cluster(bundle: Bundle) -> dict[str, Any]:
    found: dict[str, Any] = jobs(bundle)["hinet"]["job_clusters"][0]["new_cluster"]
    return found


def _parameters(bundle: Bundle, key: str) -> list[str]:
    found: list[str] = _task(bundle, key)["spark_python_task"]["parameters"]
    return found


FAULTS: list[tuple[str, Rule, Callable[[Bundle], Any]]] = [
    ("reference to an undeclared variable", undeclared_variables,
     lambda b: _parameters(b, "train").append("${var.warehous}")),
    ("target that sets an undeclared variable", undeclared_variables,
     lambda b: b["targets"]["prod"].update(variables={"registred_model": "x"})),
    ("variable that nothing uses", unused_variables,
     lambda b: b["variables"].update(spare={"default": "x"})),
    ("undeclared job parameter", unknown_job_parameters,
     lambda b: _parameters(b, "train").append("{{job.parameters.epoch}}")),
    ("job parameter that nothing uses", unknown_job_parameters,
     lambda b: jobs(b)["hinet"]["parameters"].append({"name": "spare", "default": "x"})),
    ("number as default of a job parameter", unknown_job_parameters,
     lambda b: jobs(b)["hinet"]["parameters"][2].update(default=8)),
    ("dependency on an unknown task", wrong_task_keys,
     lambda b: _task(b, "train")["depends_on"].append({"task_key": "features"})),
    ("tasks that wait for each other", wrong_task_keys,
     lambda b: _task(b, "build_features").update(depends_on=[{"task_key": "promote"}])),
    ("two tasks of one name", wrong_task_keys,
     lambda b: _task(b, "evaluate").update(task_key="train")),
    ("unknown cluster", unknown_clusters,
     lambda b: _task(b, "score").update(job_cluster_key="cpu")),
    ("script that is not there", missing_files,
     lambda b: _task(b, "score")["spark_python_task"].update(python_file="../jobs/scores.py")),
    ("contract that is not there", missing_files,
     lambda b: b["variables"]["contract"].update(default="conf/contracts/movie.yml")),
    ("wheel without an artifact", wheels_that_nothing_builds, lambda b: b.pop("artifacts")),
    ("task without this package", wheels_that_nothing_builds, lambda b: _task(b, "score").pop("libraries")),
    ("schedule beside a trigger", more_than_one_trigger,
     lambda b: jobs(b)["hinet"].update(schedule={"quartz_cron_expression": "0 0 4 * * ?"})),
    ("unquoted value in Spark's settings", unquoted_maps,
     lambda b: _cluster(b)["spark_conf"].update({"spark.task.cpus": 4})),
    ("unquoted environment variable", unquoted_maps,
     lambda b: _cluster(b)["spark_env_vars"].update({"HINET": True})),
    ("machine-learning runtime in shared mode", clusters_unfit_for_training,
     lambda b: _cluster(b).update(data_security_mode="USER_ISOLATION")),
    ("number of nodes that changes", clusters_unfit_for_training,
     lambda b: _cluster(b).update(autoscale={"min_workers": 1, "max_workers": 4})),
    ("speculation", clusters_unfit_for_training,
     lambda b: _cluster(b)["spark_conf"].update({"spark.speculation": "true"})),
    ("no GPU per task", clusters_unfit_for_training,
     lambda b: _cluster(b)["spark_conf"].pop("spark.task.resource.gpu.amount")),
    ("runs side by side", unattended_jobs, lambda b: jobs(b)["hinet"].update(max_concurrent_runs=2)),
    ("no queue", unattended_jobs, lambda b: jobs(b)["hinet"].pop("queue")),
    ("no health rule", unattended_jobs, lambda b: jobs(b)["hinet"].pop("health")),
    ("no notification", unattended_jobs, lambda b: _task(b, "promote").pop("email_notifications")),
    ("option that the script does not know", refused_options,
     lambda b: _parameters(b, "evaluate").extend(["--version", "3"])),
    ("required option left out", refused_options,
     lambda b: _task(b, "build_features")["spark_python_task"].update(parameters=["--warehouse", "/x"])),
    ("setting that does not exist", refused_options,
     lambda b: _parameters(b, "train").extend(["--set", "training.epoch=3"])),
    ("number of nodes that does not divide the lanes", refused_options,
     lambda b: b["variables"]["num_workers"].update(default=3)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "plant"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS]
)
def test_planted_fault_is_found(rule: Rule, plant: Callable[[Bundle], Any]) -> None:
    bundle = load_bundle()
    plant(bundle)
    assert list(rule(bundle))


def test_every_rule_has_a_planted_fault() -> None:
    assert {rule for _, rule, _ in FAULTS} == set(RULES)
