"""The demo runs, and touches no folder that it did not make."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from checkpoint.tiny_llava import tree


DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, DEMO, folder, "--test-rows", "7", "--runs", "width, random"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done, folder


@pytest.fixture
def demo(monkeypatch):
    """The script as a module."""
    spec = spec_from_file_location("demo", DEMO)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)
    spec.loader.exec_module(module)
    return module


def test_it_prints_a_table_and_writes_its_figures(ran):
    done, folder = ran
    results = json.loads((folder / "results.json").read_text())
    assert [result["name"] for result in results] == ["original", "width, random"]
    assert results[0]["accuracy"] > 90
    assert 29 < results[1]["removed"] < 46
    table = done.stdout.partition("7 held-out rows")[2]
    assert "original" in table and "width, random" in table
    assert (folder / "width-random" / "pruning_report.json").is_file()


def test_its_own_folder_is_emptied(demo, tmp_path):
    folder = demo.emptied(tmp_path / "new" / "out")
    (folder / "old.txt").write_text("old")
    kept = [path.name for path in demo.emptied(folder).iterdir()]
    assert kept == ["made_by_demo.txt"]


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_folder_that_it_did_not_make_is_left_alone(demo, monkeypatch, tmp_path, what):
    mine = tmp_path / "mine"
    if what == "folder":
        (mine / "data").mkdir(parents=True)
        (mine / "thesis.txt").write_text("not to be lost")
    else:
        mine.write_text("not to be lost")
    before = tree(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo.py", str(mine)])
    with pytest.raises(SystemExit) as end:
        demo.main()
    assert end.value.code == f"'{mine}' was not made by this script and would be emptied: name another folder."
    assert tree(tmp_path) == before
