"""The set-up's own decisions: edits to Horovod's source, names of what is missing, a stamp that tells changes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BUILD_TOOLS = Path(__file__).parents[2] / "build_tools"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BUILD_TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


horovod_wheel, setup_environment = load("horovod_wheel"), load("setup_environment")


def source_tree(folder: Path) -> Path:
    for edit in horovod_wheel.EDITS:
        file = folder / edit.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"before\n{edit.old}\nafter\n")
    return folder


def test_every_edit_is_made_and_nothing_else_is_touched(tmp_path: Path) -> None:
    horovod_wheel.apply_edits(source_tree(tmp_path))
    for edit in horovod_wheel.EDITS:
        assert (tmp_path / edit.path).read_text() == f"before\n{edit.new}\nafter\n"


@pytest.mark.parametrize("copies", [0, 2])
def test_a_source_that_an_edit_does_not_fit_stops_the_build(tmp_path: Path, copies: int) -> None:
    edit = horovod_wheel.EDITS[-1]
    (source_tree(tmp_path) / edit.path).write_text(f"{edit.old}\n" * copies)
    with pytest.raises(SystemExit, match=rf"gloo_controller\.cc.*occurs {copies} times"):
        horovod_wheel.apply_edits(tmp_path)


def test_the_stall_inspector_learns_its_ranks() -> None:
    (edit,) = (edit for edit in horovod_wheel.EDITS if edit.path.endswith("gloo_controller.cc"))
    assert (edit.old, edit.new) == ("global_ranks_.reserve(size_);", "global_ranks_.resize(size_);")


def test_wheels_of_other_kinds_have_other_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HINET_CACHE", str(tmp_path))
    assert horovod_wheel.cache_folder(gpu=True) != horovod_wheel.cache_folder(gpu=False)
    before = horovod_wheel.cache_folder(gpu=False)
    monkeypatch.setattr(horovod_wheel, "EDITS", horovod_wheel.EDITS[:1])
    assert horovod_wheel.cache_folder(gpu=False) != before


def test_a_cpu_build_does_not_see_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nvcc").write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin")
    environment = horovod_wheel.build_environment(gpu=False)
    assert str(tmp_path) not in environment["PATH"].split(":")
    assert environment["HOROVOD_CPU_OPERATIONS"] == "GLOO"
    assert environment["HOROVOD_LOCAL_VERSION"].startswith("torch2.")


def test_what_the_machine_lacks_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_environment.shutil, "which", lambda tool: None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    lines = setup_environment.missing()
    for word in ("Java 17", "g++", "cmake"):
        (line,) = (line for line in lines if word in line)
        assert "apt-get install" in line


def test_nothing_is_missing_here() -> None:
    assert setup_environment.missing() == []


def test_the_stamp_follows_the_files_that_decide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("one==1\n")
    monkeypatch.setattr(setup_environment, "DECIDING_FILES", (tmp_path / "constraints.txt",))
    before = setup_environment.wanted_stamp(gpu=False)
    assert before == setup_environment.wanted_stamp(gpu=False) != setup_environment.wanted_stamp(gpu=True)
    (tmp_path / "constraints.txt").write_text("one==2\n")
    assert setup_environment.wanted_stamp(gpu=False) != before
