"""`mllm-prune` broken off while it scores: the same command goes on from there, and leaves nothing else behind."""

import json

import pytest

from optimum_mllm_prune.calibration import engine, progress
from optimum_mllm_prune.commands import prune_run
from optimum_mllm_prune.errors import UserInputError


@pytest.fixture
def broken_off(monkeypatch):
    """Everything is kept at once; gives how many passes were made, and after how many Ctrl-C comes."""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    seen = {"passes": 0, "stop at": None}
    one_pass = engine._pass

    def counted(*args):
        if seen["passes"] == seen["stop at"]:
            raise KeyboardInterrupt
        seen["passes"] += 1
        one_pass(*args)

    monkeypatch.setattr(engine, "_pass", counted)
    return seen


@pytest.fixture
def words(llava, rows):
    words = ["--model", llava, "--dataset", rows, "--importance", "wanda", "--num-samples", "8", "--batch-size", "2"]
    return [*words, "--repair", "none", "--ratio", "0.2", "--dry-run"]


def test_ctrl_c_and_given_again(command, words, cwd, broken_off):
    assert command(*words, "whole").code == 0
    assert broken_off["passes"] == 4
    broken_off.update({"passes": 0, "stop at": 3})
    done = command(*words, "out")
    assert done.code == 130
    told = "interrupted; what was scored is kept in 'out.calibration': the same command goes on from there"
    assert done.lines[-1].endswith(told)
    assert sorted(path.name for path in cwd.iterdir()) == ["out.calibration", "whole"]
    broken_off.update({"passes": 0, "stop at": None})
    # As of a process that was killed while it wrote.
    (cwd / "out.calibration.partial").write_bytes(b"half")
    assert command(*words, "out").code == 0
    assert broken_off["passes"] == 1
    assert sorted(path.name for path in cwd.iterdir()) == ["out", "whole"]
    whole, again = (json.loads((cwd / name / "pruning_plan.json").read_text()) for name in ("whole", "out"))
    assert again["scores"] == whole["scores"]


def test_wrong_input_leaves_nothing(refused, words, broken_off, monkeypatch):
    def refuse(*_):
        raise UserInputError("no")

    monkeypatch.setattr(prune_run, "plan_table", refuse)
    assert refused(*words, "out") == "no"
    assert broken_off["passes"] == 4


def test_wrong_input_keeps_what_was_there(command, refused, words, cwd, broken_off, monkeypatch):
    broken_off["stop at"] = 3
    assert command(*words, "out").code == 130
    broken_off["stop at"] = None

    def refuse(*_):
        raise UserInputError("no")

    monkeypatch.setattr(prune_run, "plan_table", refuse)
    done = command(*words, "out")
    assert (done.code, done.lines[-1]) == (2, "optimum-cli mllm-prune: error: no")
    assert (cwd / "out.calibration").is_file()
