"""Benchmarks are handed over to a harness. lm-eval itself runs here; what it cannot be made to do, a stand-in does."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import scenes
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, AutoProcessor

from optimum_mllm_prune import MLLMPruner, PruningConfig
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.evaluation import exact_match, generate_answers, harnesses, reference_answers
from optimum_mllm_prune.evaluation.tasks import TaskScore, run_tasks, task_scores


EXAMPLES = Path(__file__).parents[2] / "examples"
LLAVA = EXAMPLES / "digit_scenes" / "llava"
LM_EVAL = EXAMPLES / "lm_eval"

# Takes the place of a harness: writes down how it was called, then does as its "play.py" says.
STAND_IN = """
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
known = {name: os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "HF_HUB_OFFLINE")}
(here / "call.json").write_text(json.dumps({"argv": sys.argv[1:], "environment": known, "pid": os.getpid()}))
output = Path(sys.argv[sys.argv.index("--output_path") + 1])
exec((here / "play.py").read_text())
"""
TASK_LIST = """
class TaskManager:
    def __init__(self, include_path=None):
        self.all_tasks = ["mmmu_val", "mmmu_val_art", "textvqa", *([include_path] if include_path else [])]
"""
WRITE = """
(output / "some__model").mkdir()
(output / "some__model" / {name!r}).write_text({text!r})
"""


def results_of(task="vqa", version=1.0, better=True, n=10, **metrics):
    return {
        "results": {task: {"alias": task, "sample_len": n, **metrics}},
        "group_subtasks": {},
        "versions": {task: version},
        "higher_is_better": {task: {key.split(",")[0]: better for key in metrics if "_stderr" not in key}},
        "n-samples": {task: {"original": 100, "effective": n}},
    }


RESULTS = results_of(**{"acc,none": 0.5, "acc_stderr,none": 0.1})


@pytest.fixture(params=["lm-eval", "lmms-eval"])
def harness(request):
    return request.param


@pytest.fixture
def stand_in(tmp_path, monkeypatch, harness):
    """Installs a stand-in for the harness and returns what sets its play; its folder is `stand_in.folder`."""
    folder = tmp_path / harnesses.HARNESSES[harness].module
    folder.mkdir()
    for name, text in (("__init__.py", ""), ("__main__.py", STAND_IN), ("tasks.py", TASK_LIST)):
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def play(text):
        (folder / "play.py").write_text(text)

    play.folder = folder
    play(WRITE.format(name="results_2026-01-01T00-00-00.json", text=json.dumps(RESULTS)))
    return play


def called(stand_in):
    return json.loads((stand_in.folder / "call.json").read_text())


# lm-eval itself, on rows and checkpoints of our own.


@pytest.fixture(scope="module")
def digit_scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    rows = scenes.build(train=1, test=63, seed=5)
    rows.save_to_disk(folder)
    return folder, rows["test"]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned, by half")
    pruner = MLLMPruner.from_pretrained(LLAVA)
    pruner.prune(PruningConfig(method="width", ratio=0.5, importance="magnitude_l2")).save_pretrained(folder)
    AutoProcessor.from_pretrained(LLAVA).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("checkpoint", "limit"), [("whole", None), ("pruned", 60)])
def test_the_score_of_lm_eval_is_ours(checkpoint, limit, digit_scenes, pruned, monkeypatch):
    folder, rows = digit_scenes
    rows = rows.select(range(limit or len(rows)))
    path = pruned if checkpoint == "pruned" else LLAVA
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
    answers = generate_answers(model, AutoProcessor.from_pretrained(path), rows)
    ours = exact_match(answers, reference_answers(rows))
    monkeypatch.setenv("DIGIT_SCENES", str(folder))
    (score,) = run_tasks(
        str(path), ["digit_scenes"], include_path=LM_EVAL, limit=limit, batch_size=16, dtype="float32", device="cpu"
    )
    assert 100 * score.value == pytest.approx(ours, abs=1e-9)
    assert score.n == len(rows)
    assert (score.task, score.metric, score.higher_is_better, score.version) == (
        "digit_scenes",
        "exact_match",
        True,
        "1.0",
    )
    # Standard error of a mean.
    assert score.stderr == pytest.approx((score.value * (1 - score.value) / (len(rows) - 1)) ** 0.5)
    low, high = (90, 100) if checkpoint == "whole" else (20, 80)
    assert low < ours < high


@pytest.mark.slow
def test_lm_eval_does_not_know_a_task():
    line = r"^lm-eval knows no task 'digit_scene', 'xyzzy': did you mean digit_scenes\.$"
    with pytest.raises(UserInputError, match=line):
        run_tasks(str(LLAVA), ["digit_scene", "xyzzy"], include_path=LM_EVAL)


@pytest.fixture
def load():
    spec = importlib.util.spec_from_file_location("digit_scenes_rows", LM_EVAL / "digit_scenes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load


def test_rows_of_the_example_come_from_the_named_folder(load, digit_scenes, monkeypatch):
    folder, rows = digit_scenes
    monkeypatch.setenv("DIGIT_SCENES", str(folder))
    found = load(pretrained="a model", dtype="float32")["test"]
    assert isinstance(found, Dataset)
    assert found["messages"] == rows["messages"]


def test_the_example_says_what_is_missing(load, monkeypatch):
    monkeypatch.delenv("DIGIT_SCENES", raising=False)
    with pytest.raises(
        FileNotFoundError, match=r"^DIGIT_SCENES is not set: let it name the folder that scenes.py wrote"
    ):
        load()


# How a harness is called.


@pytest.mark.parametrize("harness", ["lm-eval"], indirect=True)
def test_command_line_of_lm_eval(stand_in):
    options = {"limit": 5, "batch_size": 4, "dtype": "float16", "device": "cuda:1", "seed": 7}
    run_tasks("me/model", ["vqa", "mme"], include_path=stand_in.folder, **options)
    *words, _ = called(stand_in)["argv"]
    model_args = {"pretrained": "me/model", "dtype": "float16"}
    assert words == [
        *("run", "--apply_chat_template", "--model", "hf-multimodal", "--model_args", json.dumps(model_args)),
        *("--tasks", "vqa,mme", "--batch_size", "4", "--seed", "7", "--limit", "5", "--device", "cuda:1"),
        *("--include_path", str(stand_in.folder), "--output_path"),
    ]


@pytest.mark.parametrize("harness", ["lmms-eval"], indirect=True)
def test_command_line_of_lmms_eval(stand_in):
    options = {"limit": 5, "dtype": "float16", "device": "cuda:1", "seed": 7}
    run_tasks("me/model", ["vqa", "mme"], harness="lmms-eval", include_path=stand_in.folder, **options)
    *words, _ = called(stand_in)["argv"]
    assert words == [
        *("--model", "llava_hf", "--model_args", "pretrained=me/model,dtype=float16"),
        *("--tasks", "vqa,mme", "--batch_size", "1", "--seed", "7", "--limit", "5", "--device", "cuda:1"),
        *("--include_path", str(stand_in.folder), "--output_path"),
    ]


def test_what_is_not_asked_for_is_left_to_the_harness(stand_in, harness):
    run_tasks("me/model", ["vqa"], harness=harness, harness_model="another_class")
    words = called(stand_in)["argv"]
    assert words[words.index("--model") + 1] == "another_class"
    assert not {"--limit", "--device", "--include_path"} & set(words)
    assert not [word for word in words if "dtype" in word]


def test_a_harness_is_a_process_of_its_own(stand_in, harness, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    before = set(sys.modules)
    run_tasks("me/model", ["vqa"], harness=harness)
    call = called(stand_in)
    assert call["environment"] == {"RANK": None, "LOCAL_RANK": None, "WORLD_SIZE": None, "HF_HUB_OFFLINE": "1"}
    assert call["pid"] != os.getpid()
    assert not {name for name in set(sys.modules) - before if name.startswith(("lm_eval", "lmms_eval"))}
    assert not Path(call["argv"][-1]).exists()


def test_bars_are_shown_and_nothing_else(stand_in, harness, capfd):
    noise = (
        "import sys; print('table'); sys.stderr.write('INFO hello\\n\\r 50%|#  | 1/2\\r100%|## | 2/2\\nlast words')\n"
    )
    stand_in(noise + (stand_in.folder / "play.py").read_text())
    run_tasks("me/model", ["vqa"], harness=harness)
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", " 50%|#  | 1/2\r100%|## | 2/2\n")


def test_whoever_is_interrupted_ends_the_harness(stand_in, harness, monkeypatch):
    stand_in("import time; sys.stderr.write('50%|#  | 1/2\\n'); sys.stderr.flush(); time.sleep(60)")

    def interrupt(text):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.stderr, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_tasks("me/model", ["vqa"], harness=harness)
    with pytest.raises(ProcessLookupError):
        os.kill(called(stand_in)["pid"], 0)


# What it brings back.


@pytest.mark.parametrize(
    ("harness", "name"),
    [("lm-eval", "results_2026-11-25T14-14-52.219466.json"), ("lmms-eval", "20261125_141452_results.json")],
    indirect=["harness"],
)
def test_results_are_read_from_where_they_are_written(stand_in, harness, name, tmp_path):
    stand_in(WRITE.format(name=name, text=json.dumps(RESULTS | {"config": {"model_args": f"pretrained={tmp_path}"}})))
    scores = run_tasks(str(tmp_path), ["vqa"], harness=harness)
    assert scores == [TaskScore("vqa", "acc", 0.5, 0.1, True, 10, "1.0")]
    assert str(tmp_path) not in repr(scores)


def test_scores_in_the_form_of_lm_eval():
    found = {
        "results": {
            "arts": {"name": "arts", "alias": "arts", "sample_len": 30, "acc,none": 0.25, "acc_stderr,none": "N/A"},
            "music": {"alias": " - music", "sample_len": 10, "f1,strict": 0.5, "f1_stderr,strict": 0.125},
            "dance": {
                "alias": " - dance",
                "sample_len": 20,
                "loss,none": float("nan"),
                "loss_stderr,none": float("nan"),
            },
        },
        "group_subtasks": {"all": ["arts"], "arts": ["music", "dance"]},
        "versions": {"arts": None, "music": "Yaml", "dance": 2.0},
        "higher_is_better": {"arts": {"acc": None}, "music": {"f1": True}, "dance": {"loss": False}},
        "n-samples": {"music": {"original": 99, "effective": 10}, "dance": {"original": 20, "effective": 20}},
    }
    arts, music, dance = task_scores(found)
    assert arts == TaskScore("arts", "acc", 0.25, None, None, 30, None)
    assert music == TaskScore("music", "f1,strict", 0.5, 0.125, True, 10, "Yaml")
    assert dance.value != dance.value
    assert (dance.metric, dance.stderr, dance.higher_is_better, dance.n, dance.version) == (
        "loss",
        None,
        False,
        20,
        "2.0",
    )


def test_scores_in_the_form_of_lmms_eval():
    """As `consolidate_results` of its `evaluator_utils.py` makes it: three kinds of standard errors, other values."""
    metrics = {
        "mme_perception,none": 1500.5,
        "mme_perception_stderr,none": "N/A",
        "mme_perception_stderr_clt,none": 3.5,
        "mme_perception_stderr_clustered,none": 4.5,
        "submission,none": None,
        "submission_stderr,none": "N/A",
        "by_kind,none": {"art": 1.0},
    }
    found = results_of("mme", version=0.0, n=5.0, **metrics)
    assert task_scores(found) == [TaskScore("mme", "mme_perception", 1500.5, None, True, 5, "0.0")]


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.floats(-1e9, 1e9), min_size=1))
def test_every_number_comes_back(metrics):
    metrics = {name: value for name, value in metrics.items() if not name.endswith("_stderr")} or {"acc": 0.0}
    written = {f"{name},none": value for name, value in metrics.items()}
    errors = {f"{name}_stderr,none": 0.5 for name in metrics}
    found = json.loads(json.dumps(results_of(**written, **errors)))
    assert {score.metric: score.value for score in task_scores(found)} == metrics
    assert {score.stderr for score in task_scores(found)} == {0.5}


def test_a_benchmark_that_a_server_scores_is_refused():
    line = r"^mmbench: the harness gives no score; take a benchmark that it can score by itself\.$"
    with pytest.raises(UserInputError, match=line):
        task_scores(results_of("mmbench", **{"submission,none": None, "submission_stderr,none": "N/A"}))


# What goes wrong.


@pytest.mark.parametrize("found", [None, "namespace"])
@pytest.mark.parametrize(("harness", "extra"), [("lm-eval", "eval"), ("lmms-eval", "lmms")], indirect=["harness"])
def test_a_harness_that_is_not_installed(harness, extra, found, monkeypatch):
    spec = importlib.util.spec_from_loader("a folder of this name", None) if found else None
    monkeypatch.setattr(harnesses, "find_spec", lambda module: spec)
    line = rf"^{harness} is not installed: pip install 'optimum-mllm-prune\[{extra}\]'\.$"
    with pytest.raises(UserInputError, match=line):
        run_tasks("me/model", ["vqa"], harness=harness)


CRASH = """
sys.stderr.write({said!r})
sys.exit({code})
"""


@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [
        ("Traceback\n  File 'x'\nOSError: no model me/model.\nLog in first.\n", 1, "OSError: no model me/model"),
        ("ValueError: first\n\nDuring handling\n\nmy.OwnException: then\n 5%|# |\n", 0, "my.OwnException: then"),
        ("Traceback\nValueError: a\nINFO bye\n", 0, "ValueError: a"),
        ("usage: x\nx: error: no such option\n", 2, "x: error: no such option"),
        ("", 3, "the process ended with 3"),
    ],
)
def test_a_crash_is_told_in_its_own_words(stand_in, harness, said, code, reason):
    stand_in(CRASH.format(said=said, code=code))
    with pytest.raises(UserInputError) as error:
        run_tasks("me/model", ["vqa"], harness=harness)
    assert str(error.value) == f"{harness} failed ({reason}): mend that, or leave its tasks out."


@pytest.mark.parametrize(
    "play",
    [
        CRASH.format(said="torch.OutOfMemoryError: CUDA out of memory. Tried to\n", code=1),
        "import signal; os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_memory_that_runs_out_is_told_as_such(stand_in, harness, play):
    stand_in(play)
    with pytest.raises(MemoryError, match=f"^{harness} ran out of memory$"):
        run_tasks("me/model", ["vqa"], harness=harness)


@pytest.mark.parametrize(
    ("asked", "instead"),
    [
        ("mmmu_va", "did you mean mmmu_val or mmmu_val_art"),
        ("textvq, mmmu_va", "did you mean textvqa or mmmu_val or mmmu_val_art"),
        ("xyzzy", "name one of its own or a folder of yours"),
    ],
)
@pytest.mark.parametrize("end", ["", ". Try `lmms-eval --tasks list` to list out all available names"])
def test_an_unknown_task_is_named_with_near_ones(stand_in, harness, asked, instead, end):
    stand_in(CRASH.format(said=f"Traceback\nValueError: Tasks not found: {asked}{end}\n", code=1))
    with pytest.raises(UserInputError) as error:
        run_tasks("me/model", asked.split(", "), harness=harness)
    quoted = ", ".join(f"'{name}'" for name in asked.split(", "))
    assert str(error.value) == f"{harness} knows no task {quoted}: {instead}."


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"harness": "helm"}, r"unknown harness 'helm': use one of lm-eval, lmms-eval\."),
        ({"tasks": []}, r"no task is named: name at least one\."),
        ({"include_path": Path("nowhere")}, r"there is no folder 'nowhere' with task files: name another\."),
        ({"limit": 0}, r"limit must be at least 1, got 0\."),
        ({"batch_size": 0}, r"batch_size must be at least 1, got 0\."),
    ],
)
def test_wrong_arguments_are_named(wrong, line):
    arguments = {"tasks": ["vqa"], **wrong}
    with pytest.raises(UserInputError, match=f"^{line}$"):
        run_tasks("me/model", arguments.pop("tasks"), **arguments)


@pytest.mark.parametrize("harness", ["lmms-eval"], indirect=True)
def test_lmms_eval_takes_no_comma(stand_in, harness):
    line = r"^lmms-eval cannot be told of 'a, b/model': give a name without a comma\.$"
    with pytest.raises(UserInputError, match=line):
        run_tasks("a, b/model", ["vqa"], harness=harness)
