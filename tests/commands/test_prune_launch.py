"""`mllm-prune` started as two processes: they share the calibration, the first does the rest."""

import json
from types import SimpleNamespace

import pytest
from launching import LAUNCH, TWO, launched


ALONE = "{} out, or start without accelerate launch (mllm-recover and mllm-eval can be launched by themselves)."
NO_ROWS = "several processes share calibration rows, and none are read: start without accelerate launch."


@pytest.mark.slow
def test_two_processes_make_what_one_does(command, llava, rows, cwd):
    words = ["--model", llava, "--dataset", rows, "--importance", "taylor_group", "--num-samples", "4"]
    words += ["--ratio", "0.2", "--repair", "none", "--batch-size", "2"]
    assert command(*words, "one").code == 0
    done = launched([*LAUNCH, *TWO, "-m", "optimum_mllm_prune.commands.prune", *words, "two"], cwd)
    one, two = (json.loads((cwd / name / "pruning_plan.json").read_text()) for name in ("one", "two"))
    for key in ("removed_layers", "removed_heads", "removed_channels"):
        assert one[key] == two[key]
    report = json.loads((cwd / "two" / "pruning_report.json").read_text())
    assert report["calibration"]["processes"] == 2
    assert report["calibration"]["samples"] == 4
    assert done.stdout.count("Saving, then verifying") == 1
    assert sorted(path.name for path in cwd.iterdir()) == ["one", "two"]


@pytest.fixture
def as_one_of_two(monkeypatch):
    """From when it is called on, this process is the first of two."""

    def begin():
        state = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True)
        for module in ("calibration.processes", "commands.prune_launch"):
            monkeypatch.setattr(f"optimum_mllm_prune.{module}.launch", lambda cpu=False: state)

    return begin


@pytest.mark.parametrize(
    "words",
    [["--steps", "2"], ["--search"], ["--recover", "lora"], ["--eval-dataset", "other"]],
    ids=["steps", "search", "recover", "evaluation"],
)
def test_what_one_process_must_do_is_refused(refused, llava, rows, as_one_of_two, words):
    as_one_of_two()
    line = refused("--model", llava, "out", "--dataset", rows, *words)
    assert line == "several processes share the calibration alone: leave " + ALONE.format(words[0])


@pytest.mark.parametrize("words", [["out", "--importance", "magnitude_l2"], ["--dry-run"]], ids=["weights", "sizes"])
def test_nothing_to_share_is_refused(refused, llava, as_one_of_two, words):
    as_one_of_two()
    assert refused("--model", llava, *words) == NO_ROWS


@pytest.mark.parametrize("source", ["--plan", "--scores"])
def test_what_was_scored_before_is_refused(refused, command, llava, as_one_of_two, source):
    assert command("--model", llava, "plan", "--importance", "magnitude_l2", "--dry-run").code == 0
    as_one_of_two()
    assert refused("--model", llava, "out", source, "plan") == NO_ROWS
