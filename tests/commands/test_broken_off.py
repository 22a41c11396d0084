"""What ends a run in the middle: one line, the right exit code, and nothing left behind."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from checkpoint.tiny_llava import tree

from optimum_mllm_prune import MLLMPruner, pruner
from optimum_mllm_prune.checkpoint import VerificationError
from optimum_mllm_prune.commands import prune_run


BY_WEIGHTS = ("--importance", "magnitude_l2")
OUT_OF_MEMORY = (
    "out of memory: lower --batch-size or --num-samples, add --gradient-checkpointing, choose an importance without "
    "gradients (activation, magnitude_l2), add --repair none, name a --max-memory, or use another --device; in "
    "a recovery, --recover-set per_device_train_batch_size=1"
)
DISK_FULL = "the disk is full: free some room or choose another folder; nothing was kept"
INTERRUPTED = "interrupted; nothing was kept"


def raising(error):
    def stage(*_, **__):
        raise error

    return stage


@pytest.fixture
def half_written(monkeypatch, cwd):
    """Make saving fail after the weights were written; gives what lay in the current folder at that moment."""
    seen = []

    def break_off(error):
        def save(*_, **__):
            seen.extend(tree(cwd))
            raise error

        monkeypatch.setattr(prune_run.PruningPlan, "save", save)
        return seen

    return break_off


def test_the_disk_has_too_little_room(refused, llava, monkeypatch):
    # Told as soon as the plan is there, before anything is cut.
    monkeypatch.setattr(MLLMPruner, "prune", raising(AssertionError("too late")))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 2 * 10**6, 2 * 10**6))
    assert refused("--model", llava, "out", *BY_WEIGHTS) == (
        "the disk of 'out' has 0.00 GB left and the checkpoint needs 0.01 GB: free some room or choose another folder."
    )


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, DISK_FULL),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), 2, DISK_FULL),
        (PermissionError(errno.EACCES, "Permission denied", "rows.jsonl"), 2,
         "you have no right to open 'rows.jsonl': give another, or change its rights"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, DISK_FULL),
        (KeyboardInterrupt(), 130, INTERRUPTED),
        (RuntimeError("surprise\nin two lines"), 1,
         "RuntimeError: surprise in two lines (--debug shows the traceback)"),
    ],
    ids=["disk full", "quota", "no right", "disk full in safetensors", "Ctrl-C", "a bug"],
)  # fmt: skip
@pytest.mark.parametrize("output", ["out", "new/folders/out"])
def test_saving_breaks_off(refused, llava, half_written, output, error, code, line):
    seen = half_written(error)
    assert refused("--model", llava, output, *BY_WEIGHTS, code=code) == line
    assert any(".partial" in name and name.endswith("model.safetensors") for name in seen)


def test_an_existing_folder_outlives_a_broken_overwrite(refused, llava, half_written, cwd):
    (cwd / "out").mkdir()
    (cwd / "out" / "thesis.txt").write_text("not to be lost")
    seen = half_written(KeyboardInterrupt())
    assert refused("--model", llava, "out", *BY_WEIGHTS, "--overwrite", code=130) == INTERRUPTED
    assert any(".partial" in name for name in seen)


@pytest.mark.parametrize("stage", ["score", "prune", "save_pretrained"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["GPU", "CPU", "Python"],
)
def test_out_of_memory(refused, llava, rows, monkeypatch, stage, error):
    monkeypatch.setattr(MLLMPruner, stage, raising(error))
    assert refused("--model", llava, "--dataset", rows, "--num-samples", "2") == OUT_OF_MEMORY


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["GPU", "CPU"],
)
def test_out_of_memory_while_loading(refused, llava, monkeypatch, error):
    monkeypatch.setattr("transformers.LlavaForConditionalGeneration.from_pretrained", raising(error))
    assert refused("--model", llava, *BY_WEIGHTS) == OUT_OF_MEMORY


def test_a_failed_verification_keeps_nothing(refused, llava, monkeypatch):
    monkeypatch.setattr(pruner, "verify", raising(VerificationError("the logits differ by 0.5")))
    line = refused("--model", llava, "out", *BY_WEIGHTS, code=1)
    assert line == "the logits differ by 0.5; nothing was kept"


@pytest.mark.parametrize("moment", ["report_table", "upload"])
def test_ctrl_c_after_saving_says_what_is_kept(command, llava, unverified, monkeypatch, cwd, moment):
    monkeypatch.setattr(prune_run, moment, raising(KeyboardInterrupt()))
    done = command("--model", llava, "out", *BY_WEIGHTS, "--push-to-hub", "--repo-id", "me/it")
    assert done.code == 130
    assert done.lines == ["optimum-cli mllm-prune: error: interrupted; the checkpoint 'out' is complete"]
    assert (cwd / "out" / "model.safetensors").is_file()


def test_ctrl_c_while_pushing(command, llava, unverified, monkeypatch, cwd):
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", raising(KeyboardInterrupt()))
    done = command("--model", llava, "out", *BY_WEIGHTS, "--push-to-hub", "--repo-id", "me/it")
    assert done.code == 130
    assert done.lines == [
        "optimum-cli mllm-prune: error: interrupted; the checkpoint 'out' is complete but was not pushed; push it "
        "with `hf upload me/it out`"
    ]
    assert (cwd / "out" / "model.safetensors").is_file()


def test_out_of_memory_in_the_fresh_process(refused, llava, monkeypatch):
    monkeypatch.setattr(pruner, "verify", raising(MemoryError("the fresh process ran out of memory")))
    assert refused("--model", llava, "out", *BY_WEIGHTS) == OUT_OF_MEMORY


def test_debug_shows_the_traceback(command, llava, monkeypatch):
    monkeypatch.setattr(MLLMPruner, "score", raising(RuntimeError("surprise")))
    done = command("--model", llava, *BY_WEIGHTS, "--debug")
    assert done.code == 1
    assert done.lines[0] == "Traceback (most recent call last):"
    assert done.lines[-1].endswith("error: RuntimeError: surprise (--debug shows the traceback)")


def test_debug_of_wrong_input_ends_with_2_all_the_same(command, llava):
    done = command("--model", llava, "--ratio=2", "--debug")
    assert done.code == 2
    assert done.lines[0] == "Traceback (most recent call last):"
    assert done.lines[-1].startswith("optimum-cli mllm-prune: error: ratio must lie between 0 and 1")


def test_a_push_that_fails_keeps_the_checkpoint(command, llava, unverified, cwd):
    done = command("--model", llava, "out", *BY_WEIGHTS, "--push-to-hub", "--repo-id", "me/it")
    assert done.code == 2
    (line,) = done.lines
    assert line.startswith(
        "optimum-cli mllm-prune: error: the checkpoint 'out' is complete but could not be pushed to 'me/it': "
    )
    assert line.endswith("; push it with `hf upload me/it out`.")
    assert (cwd / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("moment", ["calibrating", pytest.param("saving", marks=pytest.mark.slow)])
def test_ctrl_c(moment, llava, rows, cwd):
    program = Path(sysconfig.get_path("scripts")) / "optimum-cli"
    # One row a pass, many times over, so that the bar is seen long before the end.
    words = ["--dataset", rows, "--batch-size", "1"] if moment == "calibrating" else BY_WEIGHTS
    with open(cwd / "stderr", "w+") as stderr:
        before = tree(cwd).keys()
        process = subprocess.Popen(
            [program, "mllm-prune", "--model", llava, "new/out", *words],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # A runner in the background of a shell ignores the signal, and its children would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            wait_until(lambda: started(moment, cwd), process)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()
        stderr.seek(0)
        said = stderr.read().replace("\r", "\n").strip().split("\n")
    assert said[-1] == f"optimum-cli mllm-prune: error: {INTERRUPTED}"
    assert "Traceback" not in "".join(said)
    assert tree(cwd).keys() == before


def started(moment, cwd):
    if moment == "calibrating":
        return "Calibrating" in (cwd / "stderr").read_text()
    # The fresh process that verifies is at work as soon as the scores, written last, are there.
    return any(name.endswith("pruning_scores.safetensors") for name in tree_or_nothing(cwd))


def tree_or_nothing(folder):
    try:
        return tree(folder)
    except FileNotFoundError:  # something was moved while it was looked at
        return {}


def wait_until(happened, process):
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, "the command ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_while_torch_is_imported():
    script = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.startswith('torch.'):\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from optimum.commands.optimum_cli import main\n"
        "sys.argv = ['optimum-cli', 'mllm-prune', '--model', 'any']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 130
    (line,) = done.stderr.splitlines()
    assert line.endswith(f"mllm-prune: error: {INTERRUPTED}")
